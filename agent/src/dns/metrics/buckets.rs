//! A histogram of whole numbers, with labels: octets, or nanoseconds that are written as seconds.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// What the numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Octets,
    Seconds,
}

/// Upper bounds in nanoseconds: 0.25 ms and each time the double, up to 8 s.
pub(super) const TIMES: [u64; 16] = {
    let mut bounds = [250_000; 16];
    let mut place = 1;
    while place < bounds.len() {
        bounds[place] = 2 * bounds[place - 1];
        place += 1;
    }
    bounds
};

/// Upper bounds in octets, as CoreDNS has them.
pub(super) const SIZES: [u64; 14] =
    [0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16_000, 32_000, 48_000, 64_000];

/// Numbers, counted by bucket. Observing takes no lock.
#[derive(Debug)]
pub(super) struct Buckets<const N: usize> {
    unit: Unit,
    bounds: &'static [u64; N],
    counts: [AtomicU64; N],
    /// Of those beyond the last bound.
    beyond: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize> Buckets<N> {
    pub(super) fn new(unit: Unit, bounds: &'static [u64; N]) -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { unit, bounds, counts, beyond: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    pub(super) fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts.get(bucket).unwrap_or(&self.beyond).fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    pub(super) fn observe_time(&self, time: Duration) {
        self.observe(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds what was observed elsewhere.
    pub(super) fn add(&self, other: &Self) {
        let ours = self.counts.iter().chain([&self.beyond, &self.sum]);
        let theirs = other.counts.iter().chain([&other.beyond, &other.sum]);
        for (ours, theirs) in ours.zip(theirs) {
            ours.fetch_add(theirs.load(Relaxed), Relaxed);
        }
    }

    /// Whether nothing was observed.
    pub(super) fn is_empty(&self) -> bool {
        self.counts.iter().chain([&self.beyond]).all(|count| count.load(Relaxed) == 0)
    }

    /// Appends its samples under `name`.
    pub(super) fn write(&self, text: &mut String, name: &str, labels: &str) {
        let mut seen = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            seen += count.load(Relaxed);
            let bound = self.shown(*bound);
            // Writing to a String can't fail.
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {seen}");
        }
        seen += self.beyond.load(Relaxed);
        let sum = self.shown(self.sum.load(Relaxed));
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {seen}");
        let _ = writeln!(text, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {seen}");
    }

    fn shown(&self, value: u64) -> String {
        match self.unit {
            Unit::Octets => value.to_string(),
            Unit::Seconds => Duration::from_nanos(value).as_secs_f64().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up_and_hold_their_bounds() {
        let times = Buckets::new(Unit::Seconds, &TIMES);
        assert!(times.is_empty());
        for micros in [250, 251, 20_000_000] {
            times.observe_time(Duration::from_micros(micros));
        }
        let mut text = String::new();
        times.write(&mut text, "x", "a=\"b\"");
        for line in [
            "x_bucket{a=\"b\",le=\"0.00025\"} 1\n",
            "x_bucket{a=\"b\",le=\"0.0005\"} 2\n",
            "x_bucket{a=\"b\",le=\"8.192\"} 2\n",
            "x_bucket{a=\"b\",le=\"+Inf\"} 3\n",
            "x_sum{a=\"b\"} 20.000501\nx_count{a=\"b\"} 3\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!times.is_empty());
    }
}
