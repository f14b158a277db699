//! `scale-flatness`, `vs-nft-connect-rate`: new connections as the number of services grows.

use anyhow::Result;

use super::{
    Figure, catalogue,
    contender::{BESIDE, Seat, Way},
    sockets,
    turns::{self, Pace, Rounds},
};
use crate::load::Measured;

/// How long a turn is.
const MILLIS: u64 = 120;
/// How many turns a sample takes.
const TURNS: u32 = 4;

/// Traffic that concerns no service may not become slower than this by ours.
const BESIDE_MIN: f64 = 0.97;

/// A point of a curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The contender.
    pub label: String,
    /// How many services; 0 where there are none, as on a bare node.
    pub size: u32,
    /// Median latency of a connection in microseconds.
    pub p50_us: f64,
    /// The latency that one connection of a hundred exceeds.
    pub p99_us: f64,
    /// Half-spread of the median.
    pub spread: f64,
    /// CPU time of a connection in microseconds, client and server.
    pub cpu_us: f64,
}

/// The figures, and the curves that are drawn.
pub fn measure(seats: &[Seat], rounds: u32) -> Result<(Vec<Figure>, Vec<Point>)> {
    let port = catalogue::ECHO_PORT;
    let mut ways: Vec<Way> = seats[..2].iter().map(|seat| seat.direct(port)).collect();
    ways.extend(seats[2..].iter().map(|seat| seat.by_service(port)));
    // Traffic that concerns no service, on nodes with services.
    let beside = seats[2..].iter().filter(|seat| seat.size == catalogue::RULES_MAX);
    ways.extend(beside.map(|seat| seat.direct(port)));
    let taken = turns::quiet("connections", &ways, Pace { rounds, turns: TURNS }, rate, |way| {
        sockets::load(way, "connect", MILLIS)
    })?;
    let points = ways.iter().enumerate().filter(|(at, _)| *at != 1);
    let points = points.map(|(at, way)| point(&taken, at, way)).collect();
    Ok((figures(&ways, &taken, rounds), points))
}

fn rate(measured: &Measured) -> f64 {
    measured.rate
}

fn p50(measured: &Measured) -> f64 {
    measured.p50_us
}

fn point(taken: &Rounds, at: usize, way: &Way) -> Point {
    let (median, p99) = (taken.plain(at, p50), taken.plain(at, |measured| measured.p99_us));
    Point {
        label: way.label.clone(),
        size: way.size,
        p50_us: median.value,
        p99_us: p99.value,
        spread: median.spread,
        cpu_us: taken.plain(at, |measured| measured.cpu_us).value,
    }
}

fn figures(ways: &[Way], taken: &Rounds, rounds: u32) -> Vec<Figure> {
    let noise = taken.noise(rate).spread;
    let find = |label: &str, size: u32| {
        ways.iter().position(|way| way.label.starts_with(label) && way.size == size)
    };
    let mut figures = Vec::new();
    for (label, limit) in [("mizzen", 1.03), ("nftables", f64::NAN), ("iptables", f64::NAN)] {
        let sizes = ways.iter().filter(|way| way.label.starts_with(label)).map(|way| way.size);
        let (Some(most), Some(one)) = (sizes.max(), find(label, 1)) else { continue };
        let Some(at) = find(label, most).filter(|_| most > 1) else { continue };
        let contender = format!("{label}, connect p50 at {most} services / at 1");
        let figure = Figure::ratio("scale-flatness", taken.ratio(at, one, p50), contender, rounds);
        figures.push(if limit.is_nan() { figure } else { figure.at_most(limit, noise) });
    }
    for size in catalogue::SIZES {
        if let (Some(ours), Some(nft)) = (find("mizzen", size), find("nftables", size)) {
            let contender = format!("mizzen / nftables, {size} services");
            let ratio = taken.ratio(ours, nft, rate);
            figures.push(
                Figure::ratio("vs-nft-connect-rate", ratio, contender, rounds)
                    .at_least(1.15, noise),
            );
        }
    }
    for (at, way) in ways.iter().enumerate().filter(|(_, way)| way.label.starts_with(BESIDE)) {
        let ratio = taken.to_reference(at, rate);
        let contender = format!("{} / bare, {} services", way.label, way.size);
        let figure = Figure::ratio("direct-beside-services", ratio, contender, rounds);
        let ours = way.label.ends_with("mizzen");
        figures.push(if ours { figure.at_least(BESIDE_MIN, noise) } else { figure });
    }
    figures
}
