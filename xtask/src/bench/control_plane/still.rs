//! What a control plane takes before and without load, and with much in it.

use std::{thread, time::Duration};

use anyhow::Result;

use super::{
    IDLE_CPU, IDLE_RSS, LARGE, START, START_100MB,
    load::{Load, text},
    server::Server,
};
use crate::bench::{Figure, turns::Summary};

/// For the start's work to come to an end.
const SETTLING: Duration = Duration::from_secs(5);
/// For how long idleness is looked at.
const IDLE: Duration = Duration::from_secs(30);

/// `start-in-process`.
pub(super) fn start(load: &Load, rounds: u32) -> Result<Vec<Figure>> {
    starts(load, START, 100.0, rounds, &[])
}

/// `start-100mb`.
pub(super) fn start_with_data(load: &Load, rounds: u32) -> Result<Vec<Figure>> {
    let folder = load.folder("data")?;
    load.run(&["fill", "--dir", text(&folder)?])?;
    starts(load, START_100MB, 300.0, rounds, &["--dir", text(&folder)?])
}

fn starts(
    load: &Load,
    name: &str,
    bound_ms: f64,
    rounds: u32,
    more: &[&str],
) -> Result<Vec<Figure>> {
    let mut samples = Vec::new();
    for _round in 0..rounds {
        let mut arguments = vec!["start", "--times", "1"];
        arguments.extend(more);
        samples.push(load.run(&arguments)?.p50_us / 1e3);
    }
    let summary = Summary::of(&samples);
    let figure = Figure::of(name, summary, "ms", "ControlPlane::builder(), a process each", rounds);
    Ok(vec![figure.at_most(bound_ms, 0.0)])
}

/// `idle-rss` and `idle-cpu`.
pub(super) fn idle(load: &Load) -> Result<Vec<Figure>> {
    let server = Server::control_plane(load)?;
    thread::sleep(SETTLING);
    let before = server.cpu_time()?;
    thread::sleep(IDLE);
    let spent = server.cpu_time()?.saturating_sub(before).as_secs_f64();
    let share = 100.0 * spent / IDLE.as_secs_f64();
    Ok(vec![
        Figure::once(IDLE_RSS, server.megabytes("VmRSS")?, "MB", server.label).at_most(60.0, 0.0),
        Figure::once(IDLE_CPU, share, "%", "of a core, in 30 s").at_most(0.2, 0.0),
    ])
}

/// `load-100k-pods`.
pub(super) fn large(load: &Load) -> Result<Vec<Figure>> {
    let server = Server::control_plane(load)?;
    let made = server.loaded(load, "objects", &[])?;
    let list = made.p99_us / 1e3;
    Ok(vec![
        Figure::once(
            LARGE,
            server.megabytes("VmRSS")?,
            "MB",
            "100,000 pods on 5,000 nodes, listed",
        )
        .at_most(2000.0, 0.0),
        Figure::once("load-100k-pods-peak", server.megabytes("VmHWM")?, "MB", "at most"),
        Figure::once("load-100k-pods-rate", made.rate, "1/s", "creations"),
        Figure::once("load-100k-pods-list", list, "ms", "all pods' metadata in one LIST"),
    ])
}
