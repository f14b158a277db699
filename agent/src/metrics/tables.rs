//! The state of the tables: what had to be healed, and how full each one is.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

use crate::apply::maps::Usage;

/// Share of a table's bound from which an operator should know, in percent.
const PRESSURE_WARNING: u64 = 80;

/// What is known of the tables. Interior mutability: shared with those who read it.
#[derive(Debug, Default)]
pub struct TableMetrics {
    /// Healed elements by what they were of.
    healed: Mutex<BTreeMap<&'static str, u64>>,
    usage: Mutex<BTreeMap<&'static str, Usage>>,
}

impl TableMetrics {
    /// Counts what was found otherwise than it should be, and mended.
    pub fn healed(&self, what: &'static str, count: u64) {
        *locked(&self.healed).entry(what).or_default() += count;
    }

    /// How many elements of something were healed so far.
    pub fn healed_of(&self, what: &str) -> u64 {
        locked(&self.healed).get(what).copied().unwrap_or(0)
    }

    /// How many elements were healed so far.
    pub fn healed_in_all(&self) -> u64 {
        locked(&self.healed).values().sum()
    }

    /// How full tables are, by name.
    pub fn usage(&self) -> Vec<Usage> {
        locked(&self.usage).values().copied().collect()
    }

    /// Notes how full tables are, and logs when one comes close to its bound.
    pub fn note(&self, usage: impl IntoIterator<Item = Usage>) {
        let mut known = locked(&self.usage);
        for usage in usage {
            let before = known.insert(usage.map, usage);
            if let Some(warning) = warning(&usage)
                && before.is_none_or(|before| !is_tight(&before))
            {
                tracing::warn!(map = usage.map, warning, "a table comes close to its bound");
            }
        }
    }

    /// What an operator should know: tables that come close to their bound.
    pub fn warnings(&self) -> Vec<String> {
        locked(&self.usage).values().filter_map(warning).collect()
    }

    /// In the text format of Prometheus.
    pub fn write(&self, text: &mut String) {
        head(text, "mizzen_healed_total", "counter", "Elements found altered, and mended");
        for (what, count) in locked(&self.healed).iter() {
            // Writing to a String can't fail.
            let _ = writeln!(text, "mizzen_healed_total{{what=\"{what}\"}} {count}");
        }
        let usage = locked(&self.usage);
        let name = "mizzen_map_pressure";
        head(text, name, "gauge", "How full a table is, of what it can grow to");
        for Usage { map, used, max, .. } in usage.values() {
            let share = f64::from(*used) / f64::from(*max);
            let _ = writeln!(text, "{name}{{map=\"{map}\"}} {share:.4}");
        }
        let name = "mizzen_map_entries";
        head(text, name, "gauge", "Elements in a table");
        for Usage { map, used, .. } in usage.values() {
            let _ = writeln!(text, "{name}{{map=\"{map}\"}} {used}");
        }
        let name = "mizzen_map_capacity";
        head(text, name, "gauge", "Elements that a table has room for at present");
        for Usage { map, now, .. } in usage.values() {
            let _ = writeln!(text, "{name}{{map=\"{map}\"}} {now}");
        }
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn is_tight(usage: &Usage) -> bool {
    u64::from(usage.used) * 100 >= u64::from(usage.max) * PRESSURE_WARNING
}

fn warning(usage: &Usage) -> Option<String> {
    let Usage { map, used, max, .. } = usage;
    is_tight(usage).then(|| {
        format!(
            "map {map} holds {used} of at most {max} entries: what does not fit will be refused; \
             see what fills it before it does"
        )
    })
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_fills_up_is_told_before_it_is_full() {
        let metrics = TableMetrics::default();
        let usage = |used| Usage { map: "SETS", used, now: 100, max: 1_000 };
        metrics.note([usage(799)]);
        assert!(metrics.warnings().is_empty());
        metrics.note([usage(800)]);
        assert!(metrics.warnings()[0].contains("map SETS holds 800 of at most 1000 entries"));
        metrics.healed("SETS", 2);
        metrics.healed("SETS", 1);
        let mut text = String::new();
        metrics.write(&mut text);
        for line in [
            "mizzen_healed_total{what=\"SETS\"} 3",
            "mizzen_map_pressure{map=\"SETS\"} 0.8000",
            "mizzen_map_capacity{map=\"SETS\"} 100",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{text}");
        }
    }
}
