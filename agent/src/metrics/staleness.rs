//! For how long the API server has told nothing of a kind: what is known of it stays in force and
//! grows old.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// By kind, since when its watch fails; `None` while it works. Shared behind an `Arc`.
#[derive(Debug, Default)]
pub struct Staleness {
    since: Mutex<BTreeMap<&'static str, Option<Instant>>>,
}

impl Staleness {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<Instant>>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch of `kind` failed.
    pub fn fails(&self, kind: &'static str, now: Instant) {
        self.lock().entry(kind).or_default().get_or_insert(now);
    }

    /// The watch of `kind` works.
    pub fn works(&self, kind: &'static str) {
        self.lock().insert(kind, None);
    }

    /// In the text format of Prometheus.
    pub(super) fn write(&self, text: &mut String, now: Instant) {
        let name = "mizzen_watch_stale_seconds";
        let help = "How long the API server has not been heard of a kind; 0 while its watch works";
        // Writing to a String can't fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        for (kind, since) in &*self.lock() {
            let age = since.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
            let _ = writeln!(text, "{name}{{kind=\"{kind}\"}} {age:.3}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dns_71_age_counts_from_the_first_failure_to_the_next_success() {
        let (staleness, start) = (Staleness::default(), Instant::now());
        let age = |after: u64| {
            let mut text = String::new();
            staleness.write(&mut text, start + Duration::from_secs(after));
            text.lines().last().unwrap().rsplit(' ').next().unwrap().to_owned()
        };
        staleness.works("services");
        assert_eq!(age(10), "0.000");
        staleness.fails("services", start);
        staleness.fails("services", start + Duration::from_secs(5));
        assert_eq!(age(10), "10.000");
        staleness.works("services");
        assert_eq!(age(20), "0.000");
    }
}
