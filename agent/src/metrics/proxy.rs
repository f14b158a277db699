//! kube-proxy's metrics, under its names and with its buckets, so that dashboards and the
//! scalability tests' queries go on working (reference 1b); and a finer histogram of our own,
//! since a change takes us less than the smallest of those buckets.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

use super::histogram::{Histogram, exponential, linear};
use crate::{
    arrivals::{Arrival, Arrivals, Kind},
    desired::WithoutLocalEndpoints,
};

/// What kube-proxy counts.
#[derive(Debug)]
pub struct ProxyMetrics {
    sync_duration: Histogram,
    network_programming: Histogram,
    watch_to_map: Histogram,
    /// Milliseconds since 1970.
    last_sync: AtomicU64,
    /// By traffic policy (internal, external) and family (IPv4, IPv6).
    without_local: [[AtomicU64; 2]; 2],
    host_ports_left_out: AtomicU64,
    /// Answers with 200 and with 503.
    healthz: [AtomicU64; 2],
    livez: [AtomicU64; 2],
}

impl Default for ProxyMetrics {
    fn default() -> Self {
        let minutes = linear(0.25, 0.25, 2)
            .chain(linear(1.0, 1.0, 59))
            .chain(linear(60.0, 5.0, 12))
            .chain(linear(120.0, 30.0, 7));
        let fine = [
            0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.003, 0.004, 0.005, 0.007_5, 0.01, 0.02,
            0.05, 0.1, 0.2, 0.5, 1.0,
        ];
        Self {
            sync_duration: Histogram::new(exponential(0.001, 2.0, 15).collect()),
            network_programming: Histogram::new(minutes.collect()),
            watch_to_map: Histogram::new(fine.into()),
            last_sync: AtomicU64::default(),
            without_local: Default::default(),
            host_ports_left_out: AtomicU64::default(),
            healthz: Default::default(),
            livez: Default::default(),
        }
    }
}

impl ProxyMetrics {
    /// A pass over the tables that took `duration` is done, and they now show `shown`.
    pub fn synced(&self, duration: Duration, shown: &[Arrival]) {
        self.sync_duration.observe(duration);
        let now = SystemTime::now();
        self.last_sync.store(millis(now), Relaxed);
        let instant = Instant::now();
        for arrival in shown {
            // A list is no change: how long ago what it says happened, nobody knows.
            if !arrival.listed {
                self.watch_to_map.observe(instant.saturating_duration_since(arrival.at));
            }
            if let Some(trigger) = arrival.trigger {
                // Another machine's clock may be ahead of ours.
                self.network_programming.observe(now.duration_since(trigger).unwrap_or_default());
            }
        }
    }

    /// What a traffic policy Local leaves without a local endpoint.
    pub fn set_without_local(&self, counts: &WithoutLocalEndpoints) {
        for (held, counts) in self.without_local.iter().zip([counts.internal, counts.external]) {
            for (held, count) in held.iter().zip(counts) {
                held.store(count, Relaxed);
            }
        }
    }

    /// How many host ports of pods a service has, or another pod.
    pub fn set_host_ports_left_out(&self, count: u64) {
        self.host_ports_left_out.store(count, Relaxed);
    }

    /// How many host ports of pods a service has, or another pod.
    pub fn host_ports_left_out(&self) -> u64 {
        self.host_ports_left_out.load(Relaxed)
    }

    /// `/healthz` was answered.
    pub fn healthz(&self, healthy: bool) {
        self.healthz[usize::from(!healthy)].fetch_add(1, Relaxed);
    }

    /// `/livez` was answered.
    pub fn livez(&self, healthy: bool) {
        self.livez[usize::from(!healthy)].fetch_add(1, Relaxed);
    }

    pub(super) fn write(&self, text: &mut String, arrivals: &Arrivals) {
        self.sync_duration.write(
            text,
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "How long one pass over the tables took",
        );
        self.network_programming.write(
            text,
            "kubeproxy_network_programming_duration_seconds",
            "From the change of a pod or service to the tables that show it",
        );
        self.watch_to_map.write(
            text,
            "mizzen_watch_to_map_seconds",
            "From the arrival of a watch event to the tables that show it",
        );
        for (name, help, at) in [
            (
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When the tables were last as desired",
                self.last_sync.load(Relaxed),
            ),
            (
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When a change last arrived",
                arrivals.last_queued().map_or(0, millis),
            ),
        ] {
            let seconds = Duration::from_millis(at).as_secs_f64();
            gauge(text, name, help);
            let _ = writeln!(text, "{name} {seconds}");
        }
        for (name, kind) in [("endpoint", Kind::Slices), ("service", Kind::Services)] {
            let (pending, total) = (arrivals.pending(kind), arrivals.total(kind));
            let metric = format!("kubeproxy_sync_proxy_rules_{name}_changes_pending");
            gauge(text, &metric, "Changes that the tables do not show yet");
            let _ = writeln!(text, "{metric} {pending}");
            let metric = format!("kubeproxy_sync_proxy_rules_{name}_changes_total");
            counter(text, &metric, "Changes that arrived");
            let _ = writeln!(text, "{metric} {total}");
        }
        self.write_without_local(text);
        let name = "mizzen_host_ports_left_out";
        gauge(text, name, "Host ports of pods that a service or a later pod has");
        let _ = writeln!(text, "{name} {}", self.host_ports_left_out());
        self.write_health(text);
    }

    fn write_without_local(&self, text: &mut String) {
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        gauge(text, name, "Service ports with a Local traffic policy and no local endpoint");
        for (policy, held) in ["internal", "external"].into_iter().zip(&self.without_local) {
            for (family, count) in ["IPv4", "IPv6"].into_iter().zip(held) {
                let labels = format!("traffic_policy=\"{policy}\",ip_family=\"{family}\"");
                let _ = writeln!(text, "{name}{{{labels}}} {}", count.load(Relaxed));
            }
        }
    }

    fn write_health(&self, text: &mut String) {
        for (what, counts) in [("healthz", &self.healthz), ("livez", &self.livez)] {
            let name = format!("kubeproxy_proxy_{what}_total");
            counter(text, &name, "Answers to health checks");
            for (code, count) in ["200", "503"].into_iter().zip(counts) {
                let _ = writeln!(text, "{name}{{code=\"{code}\"}} {}", count.load(Relaxed));
            }
        }
    }
}

fn gauge(text: &mut String, name: &str, help: &str) {
    // Writing to a String can't fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
}

fn counter(text: &mut String, name: &str, help: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &ProxyMetrics, arrivals: &Arrivals) -> String {
        let mut text = String::new();
        metrics.write(&mut text, arrivals);
        text
    }

    #[test]
    fn f44_names_types_and_buckets_are_kube_proxys() {
        let text = text(&ProxyMetrics::default(), &Arrivals::default());
        for (name, kind) in [
            ("sync_proxy_rules_duration_seconds", "histogram"),
            ("network_programming_duration_seconds", "histogram"),
            ("sync_proxy_rules_last_timestamp_seconds", "gauge"),
            ("sync_proxy_rules_last_queued_timestamp_seconds", "gauge"),
            ("sync_proxy_rules_endpoint_changes_pending", "gauge"),
            ("sync_proxy_rules_endpoint_changes_total", "counter"),
            ("sync_proxy_rules_service_changes_pending", "gauge"),
            ("sync_proxy_rules_service_changes_total", "counter"),
            ("sync_proxy_rules_no_local_endpoints_total", "gauge"),
            ("proxy_healthz_total", "counter"),
            ("proxy_livez_total", "counter"),
        ] {
            assert!(text.contains(&format!("# TYPE kubeproxy_{name} {kind}\n")), "{name}:\n{text}");
        }
        let bounds = |name: &str| -> Vec<&str> {
            let head = format!("kubeproxy_{name}_bucket{{le=\"");
            let bound = |line| str::strip_prefix(line, &head)?.split('"').next();
            text.lines().filter_map(bound).collect()
        };
        let mut minutes: Vec<String> = ["0.25", "0.5"].map(str::to_owned).into();
        minutes.extend((1..60).chain((60..120).step_by(5)).map(|n: u32| n.to_string()));
        minutes.extend((120..=300).step_by(30).map(|n: u32| n.to_string()));
        minutes.push("+Inf".into());
        assert_eq!(bounds("network_programming_duration_seconds"), minutes);
        let sync = bounds("sync_proxy_rules_duration_seconds");
        assert_eq!((sync.len(), sync[0], sync[14]), (16, "0.001", "16.384"));
    }

    #[test]
    fn latencies_count_changes_and_no_lists() {
        let metrics = ProxyMetrics::default();
        let ago = SystemTime::now() - Duration::from_secs(7);
        let arrival = |listed, trigger| Arrival {
            revision: 1,
            kind: Kind::Slices,
            at: Instant::now(),
            listed,
            trigger,
        };
        let shown = [arrival(false, Some(ago)), arrival(true, None), arrival(false, None)];
        metrics.synced(Duration::from_millis(3), &shown);
        let text = text(&metrics, &Arrivals::default());
        for line in [
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"6\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"8\"} 1",
            "kubeproxy_network_programming_duration_seconds_count 1",
            "mizzen_watch_to_map_seconds_count 2",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 1",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}:\n{text}");
        }
    }

    #[test]
    fn b87_sets_without_local_endpoints_have_policy_and_family() {
        let metrics = ProxyMetrics::default();
        metrics.set_without_local(&WithoutLocalEndpoints { internal: [1, 2], external: [3, 4] });
        let text = text(&metrics, &Arrivals::default());
        for (policy, family, count) in [
            ("internal", "IPv4", 1),
            ("internal", "IPv6", 2),
            ("external", "IPv4", 3),
            ("external", "IPv6", 4),
        ] {
            let line = format!(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total{{traffic_policy=\"{policy}\",\
                 ip_family=\"{family}\"}} {count}\n"
            );
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
