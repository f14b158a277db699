//! `socket-*`: what a service costs at the socket, against the backend's own address.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Figure, catalogue,
    contender::{BESIDE, Seat, Way},
    triple::{At, CPU, other_cpu},
    turns::{self, Pace, Quantity, Rounds},
};
use crate::load::Measured;

/// How many services there are.
pub const SIZE: u32 = 1_000;

/// How long a turn is.
const MILLIS: u64 = 150;
/// How many turns a sample takes.
const TURNS: u32 = 4;

/// A figure of this group.
struct Kind {
    name: &'static str,
    /// The mode of the load generator; empty: iperf3.
    mode: &'static str,
    port: u16,
    /// The bar for Mizzen's ratio.
    must: f64,
}

const KINDS: &[Kind] = &[
    Kind { name: "socket-throughput", mode: "", port: catalogue::IPERF_PORT, must: 0.99 },
    Kind { name: "socket-rr", mode: "rr", port: catalogue::ECHO_PORT, must: 0.99 },
    Kind { name: "socket-connect-rate", mode: "connect", port: catalogue::ECHO_PORT, must: 0.97 },
    Kind { name: "socket-udp-rr", mode: "udp-unconnected", port: catalogue::ECHO_PORT, must: 0.95 },
    Kind {
        name: "socket-udp-rr-connected",
        mode: "udp-connected",
        port: catalogue::ECHO_PORT,
        must: 0.95,
    },
];

/// The names of the figures.
pub fn names() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|kind| kind.name)
}

/// Measures those that are wanted. The first two seats are the reference.
pub fn measure(seats: &[Seat], rounds: u32, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for kind in KINDS.iter().filter(|kind| wanted(kind.name)) {
        let mut ways: Vec<Way> = seats[..2].iter().map(|seat| seat.direct(kind.port)).collect();
        ways.extend(seats[2..].iter().map(|seat| seat.by_first_service(kind.port)));
        ways.extend(seats[2..].iter().map(|seat| seat.direct(kind.port)));
        let rounds_taken =
            turns::quiet(kind.name, &ways, Pace { rounds, turns: TURNS }, rate, |way| {
                one(kind, way)
            })?;
        figures.extend(ratios(kind, &ways, &rounds_taken, rounds));
    }
    Ok(figures)
}

fn rate(measured: &Measured) -> f64 {
    measured.rate
}

fn ratios(kind: &Kind, ways: &[Way], taken: &Rounds, rounds: u32) -> Vec<Figure> {
    let noise = taken.noise(rate);
    let find = |label: &str| ways.iter().position(|way| way.label == label);
    let mut figures = Vec::new();
    if let (Some(ours), Some(direct)) = (find("mizzen"), find(&format!("{BESIDE} mizzen"))) {
        let ratio = taken.ratio(ours, direct, rate);
        figures.push(
            Figure::ratio(kind.name, ratio, "mizzen / direct on the same node", rounds)
                .at_least(kind.must, noise.spread),
        );
    }
    for (at, way) in ways.iter().enumerate().skip(2) {
        let contender = format!("{} / bare", way.label);
        figures.push(Figure::ratio(kind.name, taken.to_reference(at, rate), contender, rounds));
    }
    figures.push(Figure::ratio(format!("{}-aa", kind.name), noise, "bare / bare", rounds));
    if !kind.mode.is_empty() {
        let cpu: Quantity = |measured| measured.cpu_us;
        for (at, way) in ways.iter().enumerate().filter(|(at, _)| *at != 1) {
            let plain = taken.plain(at, cpu);
            figures.push(Figure::of(
                format!("{}-cpu", kind.name),
                plain,
                "us",
                way.label.clone(),
                rounds,
            ));
        }
    }
    figures
}

fn one(kind: &Kind, way: &Way) -> Result<Measured> {
    if kind.mode.is_empty() { throughput(way) } else { load(way, kind.mode, MILLIS) }
}

/// A turn of the load generator.
pub fn load(way: &Way, mode: &str, millis: u64) -> Result<Measured> {
    let xtask = std::env::current_exe()?.display().to_string();
    let stat = way.triple.cgroup()?.join("cpu.stat").display().to_string();
    let (cpu, millis, target) = (CPU.to_string(), millis.to_string(), way.target.to_string());
    let argv = [
        xtask.as_str(),
        "load",
        mode,
        &target,
        "--millis",
        &millis,
        "--cpu",
        &cpu,
        "--cpu-stat",
        &stat,
    ];
    let text = way
        .triple
        .capture(At::Client, &argv)
        .with_context(|| format!("{}, {}", way.label, way.target))?;
    serde_json::from_str(&text).with_context(|| format!("the load generator printed {text:?}"))
}

fn throughput(way: &Way) -> Result<Measured> {
    let (ip, port) = (way.target.ip().to_string(), way.target.port().to_string());
    let cpus = format!("{CPU},{}", other_cpu());
    let argv = ["iperf3", "-c", &ip, "-p", &port, "-t", "1", "-A", &cpus, "-J"];
    let text = way
        .triple
        .capture(At::Client, &argv)
        .with_context(|| format!("{}, {}", way.label, way.target))?;
    let result: Value = serde_json::from_str(&text)?;
    let rate = result["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(Measured { rate: rate.context("iperf3 gave no rate")?, ..Measured::default() })
}
