//! `add-*` and `del-*`: how long a runtime waits for the plugin.

use std::time::Duration;

use anyhow::Result;

use super::plugin::{MIZZEN, Plugin};
use crate::{
    bench::{
        Figure, statistics,
        turns::{self, Quantity, Rounds},
    },
    load::Measured,
};

/// Median of ADDs, one after the other.
pub const ADD_P50: &str = "add-p50";
/// The slowest of a hundred of them.
pub const ADD_P99: &str = "add-p99";
/// Fifty ADDs at once, until the last has its answer.
pub const ADD_PARALLEL: &str = "add-50-parallel";
/// Median of DELs, one after the other.
pub const DEL_P50: &str = "del-p50";

/// Pods of a turn.
const PODS: usize = 25;
/// Pods at once.
const AT_ONCE: usize = 50;

/// `add-p50` and `add-p99`.
pub fn adds(plugins: &[Plugin], rounds: u32) -> Result<Vec<Figure>> {
    let taken = turns::quiet(ADD_P50, plugins, rounds, p50, |plugin| {
        let pods = plugin.pods(PODS)?;
        let took = plugin.each("ADD", &pods)?;
        plugin.at_once("DEL", &pods)?;
        Ok(measured(&took))
    })?;
    let mut figures = figures(ADD_P50, plugins, &taken, rounds, (p50, 0.35));
    figures.extend(self::figures(ADD_P99, plugins, &taken, rounds, (p99, 0.5)));
    Ok(figures)
}

/// `add-50-parallel`.
pub fn parallel(plugins: &[Plugin], rounds: u32) -> Result<Vec<Figure>> {
    let taken = turns::quiet(ADD_PARALLEL, plugins, rounds, p50, |plugin| {
        let pods = plugin.pods(AT_ONCE)?;
        let took = plugin.at_once("ADD", &pods)?;
        plugin.at_once("DEL", &pods)?;
        Ok(measured(&[took]))
    })?;
    Ok(figures(ADD_PARALLEL, plugins, &taken, rounds, (p50, 0.3)))
}

/// `del-p50`.
pub fn dels(plugins: &[Plugin], rounds: u32) -> Result<Vec<Figure>> {
    let taken = turns::quiet(DEL_P50, plugins, rounds, p50, |plugin| {
        let pods = plugin.pods(PODS)?;
        plugin.at_once("ADD", &pods)?;
        Ok(measured(&plugin.each("DEL", &pods)?))
    })?;
    Ok(figures(DEL_P50, plugins, &taken, rounds, (p50, 0.5)))
}

fn p50(measured: &Measured) -> f64 {
    measured.p50_us
}

fn p99(measured: &Measured) -> f64 {
    measured.p99_us
}

fn measured(took: &[Duration]) -> Measured {
    let mut us: Vec<f64> = took.iter().map(|took| took.as_secs_f64() * 1e6).collect();
    us.sort_by(f64::total_cmp);
    let worst = us.len().saturating_sub(1) * 99 / 100;
    Measured {
        operations: us.len() as u64,
        p50_us: statistics::median(&us),
        p99_us: us.get(worst).copied().unwrap_or(f64::NAN),
        ..Measured::default()
    }
}

/// Ratios to the reference, with the bar for ours; and what calls took.
fn figures(
    name: &str,
    plugins: &[Plugin],
    taken: &Rounds,
    rounds: u32,
    (quantity, bar): (Quantity, f64),
) -> Vec<Figure> {
    let noise = taken.noise(quantity);
    let mut figures = Vec::new();
    for (at, plugin) in plugins.iter().enumerate().skip(2) {
        let contender = format!("{} / ptp", plugin.label);
        let ratio = Figure::ratio(name, taken.to_reference(at, quantity), contender, rounds);
        figures.push(if plugin.label == MIZZEN { ratio.at_most(bar, noise.spread) } else { ratio });
    }
    figures.push(Figure::ratio(format!("{name}-aa"), noise, "ptp / ptp", rounds));
    for (at, plugin) in plugins.iter().enumerate().filter(|(at, _)| *at != 1) {
        let took = taken.plain(at, quantity);
        figures.push(Figure::of(format!("{name}-us"), took, "us", plugin.label, rounds));
    }
    figures
}
