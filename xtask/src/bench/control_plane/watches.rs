//! A thousand watches: what a change costs, and how soon those that it concerns hear of it.

use anyhow::Result;

use super::{WATCH, WATCH_CPU, load::Load, server::Server};
use crate::{
    bench::{
        Figure,
        turns::{self, Rounds},
    },
    load::Measured,
};

fn take(
    load: &Load,
    name: &str,
    rounds: u32,
    judged_by: turns::Quantity,
    more: &[&str],
) -> Result<(Rounds, [&'static str; 2])> {
    let (etcd, api) = (Server::etcd(load)?, Server::control_plane(load)?);
    let servers = [&etcd, &etcd, &api];
    let taken = turns::quiet(name, &servers, rounds, judged_by, |server| {
        let pid = server.pid().to_string();
        let mut arguments = vec!["--pid", pid.as_str()];
        arguments.extend(more);
        server.loaded(load, "watches", &arguments)
    })?;
    Ok((taken, [api.label, etcd.label]))
}

/// `watch-p99-10-of-1000`: from just before the write to the delivery.
pub(super) fn few(load: &Load, rounds: u32) -> Result<Vec<Figure>> {
    let p99 = |measured: &Measured| measured.p99_us / 1e3;
    let (taken, [api, etcd]) = take(load, WATCH, rounds, p99, &["--matching", "10"])?;
    Ok(vec![
        Figure::of(WATCH, taken.plain(2, p99), "ms", api, rounds).at_most(5.0, 0.0),
        Figure::of(WATCH, taken.plain(0, p99), "ms", etcd, rounds),
    ])
}

/// `watch-cpu-1000-of-1000`: CPU time of the server for a delivery.
pub(super) fn all(load: &Load, rounds: u32) -> Result<Vec<Figure>> {
    let cpu = |measured: &Measured| measured.cpu_us;
    let more = ["--matching", "1000", "--changes", "100", "--rate", "10"];
    let (taken, [api, etcd]) = take(load, WATCH_CPU, rounds, cpu, &more)?;
    let noise = taken.noise(cpu);
    Ok(vec![
        Figure::ratio(WATCH_CPU, taken.to_reference(2, cpu), "API / etcd", rounds)
            .at_most(0.5, noise.spread),
        Figure::ratio("watch-cpu-aa", noise, "etcd / etcd", rounds),
        Figure::of("watch-cpu", taken.plain(2, cpu), "us", api, rounds),
        Figure::of("watch-cpu", taken.plain(0, cpu), "us", etcd, rounds),
    ])
}
