//! The agent's metrics, read by name.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// What one look at `/metrics` gave: name with labels, and value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// From the text format of Prometheus.
    pub fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// A value that must be there.
    pub fn get(&self, name: &str) -> Result<f64> {
        self.find(name).with_context(|| format!("the agent has no metric {name}"))
    }

    /// A value that may be there.
    pub fn find(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// The buckets of a histogram without other labels: upper bound and cumulative count, lowest
    /// first. Empty where there is no such histogram.
    pub fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let start = format!("{name}_bucket{{le=\"");
        let bucket = |(key, count): (&String, &f64)| {
            let bound = key.strip_prefix(&start)?.strip_suffix("\"}")?;
            Some((bound.replace("+Inf", "inf").parse().ok()?, *count))
        };
        let mut buckets: Vec<(f64, f64)> = self.0.iter().filter_map(bucket).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }
}

/// The bound that a share of what came between two looks does not exceed, interpolated within its
/// bucket; NaN where nothing came.
pub fn quantile(before: &[(f64, f64)], after: &[(f64, f64)], share: f64) -> f64 {
    let earlier = |bound: f64| {
        before.iter().find(|(b, _)| b.total_cmp(&bound).is_eq()).map_or(0.0, |(_, count)| *count)
    };
    let news: Vec<(f64, f64)> =
        after.iter().map(|(bound, count)| (*bound, count - earlier(*bound))).collect();
    let Some(&(_, total)) = news.last() else { return f64::NAN };
    if total <= 0.0 {
        return f64::NAN;
    }
    let wanted = share * total;
    let mut below = (0.0, 0.0);
    for (bound, count) in news {
        if count >= wanted {
            if bound.is_infinite() {
                return below.0;
            }
            let within = (wanted - below.1) / (count - below.1).max(f64::MIN_POSITIVE);
            return below.0 + (bound - below.0) * within;
        }
        below = (bound, count);
    }
    below.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_their_labels() {
        let metrics = Metrics::parse("# HELP a b\na 3\nb{c=\"d e\"} 0.5\n");
        assert_eq!(metrics.find("a"), Some(3.0));
        assert_eq!(metrics.find("b{c=\"d e\"}"), Some(0.5));
        assert!(metrics.get("b").is_err());
    }

    #[test]
    fn quantiles_are_of_what_came_between() {
        let text = |one: u32, two: u32, all: u32| {
            format!(
                "h_bucket{{le=\"0.001\"}} {one}\nh_bucket{{le=\"0.01\"}} {two}\n\
                 h_bucket{{le=\"+Inf\"}} {all}\n"
            )
        };
        let before = Metrics::parse(&text(0, 50, 50)).buckets("h");
        let after = Metrics::parse(&text(100, 250, 250)).buckets("h");
        assert_eq!(after.iter().map(|b| b.1).collect::<Vec<_>>(), [100.0, 250.0, 250.0]);
        // 200 came: 100 up to 1 ms, 100 between 1 and 10 ms.
        assert!((quantile(&before, &after, 0.5) - 0.001).abs() < 1e-9);
        assert!((quantile(&before, &after, 0.75) - 0.0055).abs() < 1e-9);
        assert!(quantile(&after, &after, 0.99).is_nan());
    }
}
