//! What holds of the resolver as a whole, under CoreDNS's names.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    panic,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{SERVER, head, sample};
use crate::metrics::{
    escaped,
    histogram::{Histogram, exponential},
};

/// Panics of this process, in whatever part.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts panics from now on; what was done of them before is done still.
pub fn count_panics() {
    static FIRST: Once = Once::new();
    FIRST.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Relaxed);
            before(info);
        }));
    });
}

/// Zones, and the plugins of CoreDNS whose work is done for names in them.
pub type Plugins = BTreeSet<(String, &'static str)>;

/// The counters.
#[derive(Debug)]
pub struct General {
    plugins: Mutex<Plugins>,
    /// Datagrams of upstreams that were no answers to the question.
    pub passed_over: AtomicU64,
    all_failing: AtomicU64,
    health: Histogram,
}

impl Default for General {
    fn default() -> Self {
        Self {
            plugins: Mutex::default(),
            passed_over: AtomicU64::default(),
            all_failing: AtomicU64::default(),
            health: Histogram::new(exponential(0.000_25, 10.0, 5).collect()),
        }
    }
}

impl General {
    /// Says what is done for which names, in the place of what was said before.
    pub fn enable(&self, plugins: Plugins) {
        *self.plugins.lock().unwrap_or_else(PoisonError::into_inner) = plugins;
    }

    /// Somebody was asked though all upstreams of the name had failed.
    pub fn all_failing(&self) {
        self.all_failing.fetch_add(1, Relaxed);
    }

    /// A question for `/health` was answered after `time`.
    pub fn told_health(&self, time: Duration) {
        self.health.observe(time);
    }

    /// All of them, in the text format of Prometheus.
    pub(super) fn write(&self, text: &mut String) {
        head(text, "coredns_build_info", "gauge", "1, with the version of the agent");
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "coredns_build_info{{goversion=\"\",revision=\"\",version=\"mizzen-{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        );
        head(text, "coredns_plugin_enabled", "gauge", "1 for each zone and what is done for it");
        for (zone, name) in &*self.plugins.lock().unwrap_or_else(PoisonError::into_inner) {
            let zone = escaped(zone);
            let labels = format!("{SERVER},zone=\"{zone}\",view=\"\",name=\"{name}\"");
            let _ = writeln!(text, "coredns_plugin_enabled{{{labels}}} 1");
        }
        let dropped = format!("{SERVER},zones=\".\",view=\"\"");
        for (name, help, labels, count) in [
            ("coredns_panics_total", "Panics of the agent", "", &PANICS),
            (
                "coredns_cache_drops_total",
                "Datagrams of upstreams that were no answers to the question",
                &*dropped,
                &self.passed_over,
            ),
            (
                "coredns_forward_healthcheck_broken_total",
                "Questions asked though all upstreams had failed",
                "",
                &self.all_failing,
            ),
        ] {
            head(text, name, "counter", help);
            sample(text, name, labels, count);
        }
        let name = "coredns_health_request_duration_seconds";
        self.health.write(text, name, "How long questions for /health took");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_counted_and_said_as_before() {
        count_panics();
        count_panics();
        let before = PANICS.load(Relaxed);
        let died = std::thread::spawn(|| panic!("a defect, for a test")).join();
        assert!(died.is_err());
        assert!(PANICS.load(Relaxed) > before);
    }

    #[test]
    fn what_is_done_for_which_names_is_the_last_word() {
        let general = General::default();
        general.enable([(".".to_owned(), "forward"), (".".to_owned(), "cache")].into());
        general.enable([("corp.".to_owned(), "forward")].into());
        general.all_failing();
        let mut text = String::new();
        general.write(&mut text);
        let enabled: Vec<_> =
            text.lines().filter(|line| line.starts_with("coredns_plugin_enabled{")).collect();
        let line = "coredns_plugin_enabled{server=\"dns://.:53\",zone=\"corp.\",view=\"\",\
                    name=\"forward\"} 1";
        assert_eq!(enabled, [line]);
        assert!(text.contains("\ncoredns_forward_healthcheck_broken_total 1\n"), "{text}");
    }
}
