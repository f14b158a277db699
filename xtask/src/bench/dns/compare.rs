//! `cpu-per-query-vs-unbound`, `p99-vs-unbound`: the same questions to all servers in turn.

use anyhow::Result;

use super::{
    load::{self, Pace},
    questions,
    seat::{MIZZEN, Seat},
};
use crate::{
    bench::{
        Figure,
        turns::{self, Quantity, Rounds},
    },
    load::Measured,
};

/// CPU time of the server for each question that it answered.
pub const CPU: &str = "cpu-per-query-vs-unbound";
/// Latency at a rate that all of them keep up with.
pub const P99: &str = "p99-vs-unbound";

const RATE: u32 = 5_000;
const WARM_UP: f64 = 0.3;
const SECONDS: f64 = 1.5;

/// CPU time per question under saturation. The reference stands first, twice.
pub fn cpu(seats: &[Seat], rounds: u32) -> Result<Vec<Figure>> {
    let data = questions::data(questions::services().map(|(name, _)| name));
    let taken = turns::quiet(CPU, seats, rounds, cpu_of, |seat| {
        load::run(seat, &data, Pace::Saturating, WARM_UP)?;
        load::run(seat, &data, Pace::Saturating, SECONDS)
    })?;
    let mut figures = against(CPU, seats, &taken, rounds, cpu_of, Some(0.95));
    figures.extend(each("cpu-per-query", "us", seats, &taken, rounds, cpu_of));
    figures.extend(each("queries-per-second", "1/s", seats, &taken, rounds, |m| m.rate));
    Ok(figures)
}

/// Latency at a fixed rate.
pub fn latency(seats: &[Seat], rounds: u32) -> Result<Vec<Figure>> {
    let data = questions::data(questions::services().map(|(name, _)| name));
    let taken = turns::quiet(P99, seats, rounds, p99_of, |seat| {
        load::run(seat, &data, Pace::PerSecond(RATE), WARM_UP)?;
        load::run(seat, &data, Pace::PerSecond(RATE), SECONDS)
    })?;
    let mut figures = against(P99, seats, &taken, rounds, p99_of, Some(1.0));
    figures.extend(against("p50-vs-unbound", seats, &taken, rounds, p50_of, None));
    figures.extend(each("p99-at-5000", "us", seats, &taken, rounds, p99_of));
    figures.extend(each("p50-at-5000", "us", seats, &taken, rounds, p50_of));
    figures.extend(each("cpu-per-query-at-5000", "us", seats, &taken, rounds, cpu_of));
    Ok(figures)
}

fn cpu_of(measured: &Measured) -> f64 {
    measured.cpu_us
}

/// The latency that one question of a hundred exceeds.
pub(super) fn p99_of(measured: &Measured) -> f64 {
    measured.p99_us
}

/// The median latency.
pub(super) fn p50_of(measured: &Measured) -> f64 {
    measured.p50_us
}

/// Each server over the reference, and the reference over itself.
fn against(
    name: &str,
    seats: &[Seat],
    taken: &Rounds,
    rounds: u32,
    quantity: Quantity,
    bound: Option<f64>,
) -> Vec<Figure> {
    let reference = seats[turns::REFERENCE].label;
    let noise = taken.noise(quantity);
    let mut figures: Vec<Figure> = (turns::REFERENCE + 2..seats.len())
        .map(|at| {
            let label = seats[at].label;
            let ratio = taken.to_reference(at, quantity);
            let figure = Figure::ratio(name, ratio, format!("{label} / {reference}"), rounds);
            match bound.filter(|_| label == MIZZEN) {
                Some(bound) => figure.at_most(bound, noise.spread),
                None => figure,
            }
        })
        .collect();
    let contender = format!("{reference} / {reference}");
    figures.push(Figure::ratio(format!("{name}-aa"), noise, contender, rounds));
    figures
}

/// Each server's quantity itself.
fn each(
    name: &str,
    unit: &'static str,
    seats: &[Seat],
    taken: &Rounds,
    rounds: u32,
    quantity: Quantity,
) -> Vec<Figure> {
    let own = seats.iter().enumerate().filter(|(at, _)| *at != turns::REFERENCE + 1);
    own.map(|(at, seat)| Figure::of(name, taken.plain(at, quantity), unit, seat.label, rounds))
        .collect()
}
