//! A histogram of durations with fixed buckets, in the text format of Prometheus.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Durations, counted by bucket. Observing takes no lock; what is read while others observe may
/// lack the newest.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds in seconds, rising.
    bounds: Vec<f64>,
    /// A count for each bound, and one for what lies beyond.
    counts: Vec<AtomicU64>,
    sum_nanos: AtomicU64,
}

impl Histogram {
    /// A histogram with these upper bounds in seconds, rising.
    pub fn new(bounds: Vec<f64>) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum_nanos: AtomicU64::new(0) }
    }

    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Relaxed);
    }

    /// Appends it under `name`.
    pub fn write(&self, text: &mut String, name: &str, help: &str) {
        // Writing to a String can't fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        self.write_samples(text, name, "");
    }

    /// Appends its samples alone, with these labels.
    pub fn write_samples(&self, text: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut seen = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            seen += count.load(Relaxed);
            let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {seen}");
        }
        seen += self.counts[self.bounds.len()].load(Relaxed);
        let sum = Duration::from_nanos(self.sum_nanos.load(Relaxed)).as_secs_f64();
        let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {seen}");
        let all = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(text, "{name}_sum{all} {sum}\n{name}_count{all} {seen}");
    }

    /// Counts so many that took no time.
    pub fn observe_instants(&self, count: u64) {
        self.counts[0].fetch_add(count, Relaxed);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }
}

/// `count` bounds from `first`, each `step` above the last.
pub fn linear(first: f64, step: f64, count: u32) -> impl Iterator<Item = f64> {
    (0..count).map(move |n| step.mul_add(f64::from(n), first))
}

/// `count` bounds from `first`, each `factor` times the last.
pub fn exponential(first: f64, factor: f64, count: u32) -> impl Iterator<Item = f64> {
    (0..count).scan(first, move |next, _| {
        let bound = *next;
        *next *= factor;
        Some(bound)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up_and_hold_their_bounds() {
        let histogram = Histogram::new(vec![0.25, 1.0]);
        for millis in [250, 251, 1_000, 1_001, 9_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut text = String::new();
        histogram.write(&mut text, "x_seconds", "An x");
        let expected = "# HELP x_seconds An x\n# TYPE x_seconds histogram\n\
            x_seconds_bucket{le=\"0.25\"} 1\nx_seconds_bucket{le=\"1\"} 3\n\
            x_seconds_bucket{le=\"+Inf\"} 5\nx_seconds_sum 11.502\nx_seconds_count 5\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn bounds_are_those_of_the_names() {
        assert_eq!(linear(0.25, 0.25, 2).collect::<Vec<_>>(), [0.25, 0.5]);
        assert_eq!(exponential(0.001, 2.0, 3).collect::<Vec<_>>(), [0.001, 0.002, 0.004]);
    }
}
