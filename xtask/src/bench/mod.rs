//! Benchmarks: ratios of contenders that take turns in one run, never absolute times of one.
//!
//! ```text
//!  catalogue (pure: services) ──> objects (API) ──> world: API server, triples, contenders
//!                            └──> rules (nftables, iptables) ──┘         │
//!  sockets, scale, packet, update, … ──> turns ──> statistics ──> Figure ┴─> report, plot
//! ```
//! That is `services`; `cni`, `dns` and `control-plane` have contenders of their own and share the
//! rest.

pub mod catalogue;
pub mod cni;
pub mod conntrack;
pub mod contender;
pub mod control_plane;
pub mod deleted;
pub mod dns;
pub mod frame;
pub mod interrupt;
pub mod kube_proxy;
pub mod maps;
pub mod mizzen;
pub mod objects;
pub mod packet;
pub mod plot;
pub mod programs;
pub mod report;
pub mod results;
pub mod rules;
pub mod scale;
pub mod scrape;
pub mod services;
pub mod sockets;
pub mod statistics;
pub mod takeover;
pub mod triple;
pub mod turns;
pub mod update;
pub mod whole;
pub mod world;

use anyhow::Result;
use serde::Serialize;

pub use results::{Options, Results};
use turns::Summary;

/// What is compared: each has figures of its own, and a section of `docs/benchmarks.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// Service load balancing
    Services,
    /// The pod network
    Cni,
    /// Cluster DNS
    Dns,
    /// API server and store
    ControlPlane,
}

impl Area {
    /// In the order of their sections.
    pub const ALL: [Self; 4] = [Self::Services, Self::Cni, Self::Dns, Self::ControlPlane];

    /// The title of its section.
    pub fn title(self) -> &'static str {
        match self {
            Self::Services => "Services",
            Self::Cni => "Pod network",
            Self::Dns => "Cluster DNS",
            Self::ControlPlane => "Control plane",
        }
    }

    /// Every name that `--only` can begin with.
    pub fn names(self) -> Vec<&'static str> {
        match self {
            Self::Services => services::names(),
            Self::Cni => cni::NAMES.to_vec(),
            Self::Dns => dns::NAMES.to_vec(),
            Self::ControlPlane => control_plane::NAMES.to_vec(),
        }
    }

    /// Measures what is wanted on clusters of its own, and removes them.
    pub fn measure(self, options: &Options) -> Result<Results> {
        match self {
            Self::Services => services::measure(options),
            Self::Cni => cni::measure(options),
            Self::Dns => dns::measure(options),
            Self::ControlPlane => control_plane::measure(options),
        }
    }
}

/// One measured figure, as `--json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The area.
    pub area: Area,
    /// The name, as the issues' tables have it.
    pub name: String,
    /// The median.
    pub value: f64,
    /// `ratio`, `s`, `MB`, `calls`.
    pub unit: &'static str,
    /// What was measured, and against what.
    pub contender: String,
    /// How many rounds.
    pub rounds: u32,
    /// Half of the distance between the quartiles.
    pub spread: f64,
    /// What it must be.
    #[serde(skip)]
    pub bar: Option<Bar>,
}

/// What a figure must be, with the slack that the machine's noise gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    /// The bound.
    pub bound: f64,
    /// Whether the figure must not be below it; else it must not be above.
    pub at_least: bool,
    /// How far it may be beyond.
    pub slack: f64,
}

impl Figure {
    /// A figure; [`Results`] notes whose it is when it takes it along.
    pub fn of(
        name: impl Into<String>,
        summary: Summary,
        unit: &'static str,
        contender: impl Into<String>,
        rounds: u32,
    ) -> Self {
        let (name, contender) = (name.into(), contender.into());
        let Summary { value, spread } = summary;
        Self { area: Area::Services, name, value, unit, contender, rounds, spread, bar: None }
    }

    /// A ratio.
    pub fn ratio(
        name: impl Into<String>,
        summary: Summary,
        contender: impl Into<String>,
        rounds: u32,
    ) -> Self {
        Self::of(name, summary, "ratio", contender, rounds)
    }

    /// A figure of one measurement.
    pub fn once(
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        contender: impl Into<String>,
    ) -> Self {
        Self::of(name, Summary { value, spread: 0.0 }, unit, contender, 1)
    }

    /// The same with a bar: no less than this, give or take the noise.
    pub fn at_least(self, bound: f64, slack: f64) -> Self {
        Self { bar: Some(Bar { bound, at_least: true, slack }), ..self }
    }

    /// The same with a bar: no more than this, give or take the noise.
    pub fn at_most(self, bound: f64, slack: f64) -> Self {
        Self { bar: Some(Bar { bound, at_least: false, slack }), ..self }
    }

    /// The spread, for people: one round has none.
    pub fn spread_text(&self) -> String {
        if self.rounds > 1 { format!("{:.3}", self.spread) } else { "–".to_owned() }
    }

    /// Whether it is what it must be; none where nothing is asked of it.
    pub fn is_met(&self) -> Option<bool> {
        self.bar.map(|bar| {
            if bar.at_least {
                self.value >= bar.bound - bar.slack
            } else {
                self.value <= bar.bound + bar.slack
            }
        })
    }
}

impl std::fmt::Display for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", if self.at_least { ">=" } else { "<=" }, self.bound)
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, value, unit, contender, rounds, .. } = self;
        let spread = self.spread_text();
        write!(
            f,
            "{name:<28} {value:>10.3} {unit:<6} ± {spread:<8} {contender} ({rounds} rounds)"
        )?;
        match (self.bar, self.is_met()) {
            (Some(bar), Some(true)) => write!(f, ", must be {bar}: met"),
            (Some(bar), _) => write!(f, ", must be {bar}: NOT met"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        let summary = Summary { value: 0.98, spread: 0.01 };
        Figure::of("socket-rr", summary, "ratio", "mizzen / direct", 7)
    }

    #[test]
    fn a_figure_is_an_object_with_the_documented_fields() {
        let expected = serde_json::json!({
            "area": "services", "name": "socket-rr", "value": 0.98, "unit": "ratio",
            "contender": "mizzen / direct", "rounds": 7, "spread": 0.01,
        });
        let found = serde_json::to_value(figure().at_least(0.99, 0.0)).expect("JSON");
        assert_eq!(found, expected);
    }

    #[test]
    fn a_single_round_has_no_spread() {
        let once = Figure::once("audit-cpu", 0.6, "% of a core", "mizzen-agent").to_string();
        assert!(once.contains("± – "), "{once}");
        assert!(figure().to_string().contains("± 0.010 "), "{}", figure());
    }

    #[test]
    fn a_bar_gives_way_by_the_noise_and_no_more() {
        assert_eq!(figure().is_met(), None);
        assert_eq!(figure().at_least(0.99, 0.0).is_met(), Some(false));
        assert_eq!(figure().at_least(0.99, 0.015).is_met(), Some(true));
        assert_eq!(figure().at_most(0.95, 0.01).is_met(), Some(false));
        assert_eq!(figure().at_most(1.03, 0.0).is_met(), Some(true));
    }
}
