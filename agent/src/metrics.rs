//! What the agent counts about itself, and the text in which it is read.

#[cfg(test)]
mod exposition;
pub mod histogram;
mod process;
pub mod proxy;
pub mod requests;
pub mod staleness;
pub mod tables;
pub mod traffic;

use std::{
    borrow::Cow,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use mizzen_ebpf_abi::counters::Counter;

use crate::{arrivals::Arrivals, dns, resets};
use proxy::ProxyMetrics;
use staleness::Staleness;
use tables::TableMetrics;

/// What the eBPF programs counted, read when asked for.
pub trait ProgramCounters: Send + Sync {
    /// Every counter with its value; empty where they can't be read.
    fn read(&self) -> Vec<(Counter, u64)>;
}

impl ProgramCounters for crate::datapath::Counters {
    fn read(&self) -> Vec<(Counter, u64)> {
        self.all().unwrap_or_default()
    }
}

macro_rules! metrics {
    ($( $field:ident: $kind:literal $name:literal $help:literal; )*) => {
        /// Counters and gauges of the agent. Shared behind an `Arc`.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $( #[doc = $help] pub $field: AtomicU64, )*
            /// The state of the tables.
            pub tables: TableMetrics,
            /// What kube-proxy counts.
            pub proxy: ProxyMetrics,
            /// Changes on their way to the tables.
            pub arrivals: Arrivals,
            /// The resolver's.
            pub dns: Arc<dns::metrics::Metrics>,
            /// How old what watches told is.
            pub staleness: Arc<Staleness>,
            /// Of sockets whose endpoints were deleted.
            pub resets: Arc<resets::Counts>,
        }

        impl Metrics {
            /// In the text format of Prometheus.
            fn write(&self, text: &mut String) {
                $( metric(text, $name, $kind, $help, self.$field.load(Relaxed)); )*
                self.resets.write(text);
            }
        }
    };
}

metrics! {
    map_calls: "counter" "mizzen_map_calls_total"
        "bpf() calls that changed the tables or waited; elements of a batch count singly";
    map_writes: "counter" "mizzen_map_writes_total"
        "Elements of the tables written or removed";
    map_bytes: "counter" "mizzen_map_bytes_written_total"
        "Bytes of the elements of the tables written or removed, keys included";
    set_flips: "counter" "mizzen_map_set_flips_total"
        "Backend sets that were led to another range of slots";
    plans: "counter" "mizzen_plans_total"
        "Plans that were not empty";
    plan_failures: "counter" "mizzen_plan_failures_total"
        "Plans that failed; the tables are then read and compared anew";
    sweep_failures: "counter" "mizzen_sweep_failures_total"
        "Times flows or clients that ended could not be removed";
    services: "gauge" "mizzen_services"
        "Services in the cluster";
    sets: "gauge" "mizzen_backend_sets"
        "Ports of services, by family, that the tables hold";
    last_plan_micros: "gauge" "mizzen_last_plan_duration_microseconds"
        "How long the last change took from the snapshot to the tables";
}

impl resets::Counts {
    fn write(&self, text: &mut String) {
        let name = "mizzen_sockets_destroyed_total";
        let help =
            "Sockets that were destroyed because the endpoint behind their service was deleted";
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
        for (protocol, count) in [("TCP", &self.tcp), ("UDP", &self.udp)] {
            let _ = writeln!(text, "{name}{{protocol=\"{protocol}\"}} {}", count.load(Relaxed));
        }
        let name = "mizzen_socket_destroy_failures_total";
        let help = "Deleted endpoints whose sockets were not looked for in some namespace";
        metric(text, name, "counter", help, self.failures.load(Relaxed));
    }
}

fn metric(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    // Writing to a String can't fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
}

impl Metrics {
    /// What kube-proxy calls so: of both families together, for a plan is of both.
    fn write_failures(&self, text: &mut String) {
        for (what, help, count) in [
            ("sync", "Times the tables could not be made as desired", &self.plan_failures),
            ("cleanup", "Times what had ended could not be removed", &self.sweep_failures),
        ] {
            let name = format!("kubeproxy_sync_proxy_rules_nftables_{what}_failures_total");
            metric(text, &name, "counter", help, count.load(Relaxed));
        }
    }

    /// Everything as text: the agent's, the programs', and the process' own.
    pub fn render(&self, programs: Option<&dyn ProgramCounters>) -> String {
        let mut text = String::new();
        self.write(&mut text);
        self.tables.write(&mut text);
        self.proxy.write(&mut text, &self.arrivals);
        self.write_failures(&mut text);
        if let Some(requests) = self.dns.requests() {
            requests.write_as_kube_proxy(&mut text);
        }
        self.staleness.write(&mut text, Instant::now());
        self.dns.write(&mut text);
        if let Some(programs) = programs {
            let name = "mizzen_datapath_events_total";
            let help = "What the eBPF programs counted since they were first loaded";
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
            for (counter, value) in programs.read() {
                let _ = writeln!(text, "{name}{{event=\"{}\"}} {value}", counter.name());
            }
        }
        process::write(&mut text);
        process::write_build(&mut text);
        text
    }
}

/// A label's value as the text format wants it, whatever is in it.
pub fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return value.into();
    }
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Programs;

    impl ProgramCounters for Programs {
        fn read(&self) -> Vec<(Counter, u64)> {
            vec![(Counter::Rejected, 3)]
        }
    }

    #[test]
    fn the_text_has_a_line_for_each() {
        let metrics = Metrics::default();
        metrics.map_writes.store(7, Relaxed);
        let text = metrics.render(Some(&Programs));
        assert!(text.contains("\nmizzen_map_writes_total 7\n"), "{text}");
        assert!(text.contains("\n# TYPE mizzen_map_calls_total counter\n"), "{text}");
        assert!(text.contains("\nmizzen_datapath_events_total{event=\"rejected\"} 3\n"), "{text}");
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
    }

    #[test]
    fn failures_have_kube_proxys_names_too() {
        let metrics = Metrics::default();
        metrics.plan_failures.store(2, Relaxed);
        metrics.sweep_failures.store(3, Relaxed);
        let text = metrics.render(None);
        for line in ["sync_failures_total 2", "cleanup_failures_total 3"] {
            let line = format!("\nkubeproxy_sync_proxy_rules_nftables_{line}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        let version = concat!("mizzen-", env!("CARGO_PKG_VERSION"));
        let build = format!("\nkubernetes_build_info{{git_version=\"{version}\",platform=\"linux/");
        assert!(text.contains(&build), "{text}");
    }
}
