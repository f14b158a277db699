//! Benchmarks: ratios of contenders that take turns in one run, never absolute times of one.

pub mod report;
pub mod services;
pub mod statistics;

use serde::Serialize;

/// One measured figure, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The area: `services`.
    pub area: &'static str,
    /// The name, as the issues' tables have it.
    pub name: &'static str,
    /// The median.
    pub value: f64,
    /// `ratio`, `s`, `MB`, `calls`.
    pub unit: &'static str,
    /// What was measured, and against what.
    pub contender: &'static str,
    /// How many rounds.
    pub rounds: u32,
    /// Half of the distance between the quartiles.
    pub spread: f64,
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:<28} {:>10.3} {:<6} ± {:<8.3} {} ({} rounds)",
            self.name, self.value, self.unit, self.spread, self.contender, self.rounds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_an_object_with_the_documented_fields() {
        let figure = Figure {
            area: "services",
            name: "socket-rr",
            value: 0.99,
            unit: "ratio",
            contender: "clusterip/direct",
            rounds: 7,
            spread: 0.01,
        };
        let expected = serde_json::json!({
            "area": "services", "name": "socket-rr", "value": 0.99, "unit": "ratio",
            "contender": "clusterip/direct", "rounds": 7, "spread": 0.01,
        });
        assert_eq!(serde_json::to_value(figure).expect("JSON"), expected);
    }
}
