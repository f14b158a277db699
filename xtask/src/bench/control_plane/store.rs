//! Writes by 64 at once, with and without an API server before the store.

use anyhow::Result;

use super::{
    GET_P99, PUTS,
    load::{Load, text},
    server::Server,
};
use crate::{
    bench::{Figure, turns},
    load::Measured,
};

/// `store-puts-vs-etcd`: commits of 1 KB, each durable when it is answered.
pub(super) fn puts(load: &Load, rounds: u32) -> Result<Vec<Figure>> {
    let etcd = Server::etcd(load)?;
    let rate = |measured: &Measured| measured.rate;
    let taken = turns::quiet(PUTS, &[true, true, false], rounds, rate, |is_etcd| {
        if *is_etcd {
            return etcd.loaded(load, "puts", &[]);
        }
        let folder = load.folder("store")?;
        load.run(&["puts", "--store", text(&folder)?])
    })?;
    let noise = taken.noise(rate);
    Ok(vec![
        Figure::ratio(PUTS, taken.to_reference(2, rate), "embedded / etcd", rounds)
            .at_least(1.5, noise.spread),
        Figure::ratio("store-puts-aa", noise, "etcd / etcd", rounds),
        Figure::of("store-puts", taken.plain(2, rate), "1/s", "embedded", rounds),
        Figure::of("store-puts", taken.plain(0, rate), "1/s", "etcd", rounds),
    ])
}

/// `get-p99-vs-etcd`: a reader beside 64 that create, of the API and of etcd.
pub(super) fn reads(load: &Load, rounds: u32) -> Result<Vec<Figure>> {
    let (etcd, api) = (Server::etcd(load)?, Server::control_plane(load)?);
    let p99 = |measured: &Measured| measured.p99_us;
    let servers = [&etcd, &etcd, &api];
    let taken =
        turns::quiet(GET_P99, &servers, rounds, p99, |server| server.loaded(load, "creates", &[]))?;
    let noise = taken.noise(p99);
    let rate = |measured: &Measured| measured.rate;
    Ok(vec![
        Figure::ratio(GET_P99, taken.to_reference(2, p99), "API GET / etcd range", rounds)
            .at_most(0.5, noise.spread),
        Figure::ratio("get-p99-aa", noise, "etcd / etcd", rounds),
        Figure::of("get-p99", taken.plain(2, p99), "us", api.label, rounds),
        Figure::of("get-p99", taken.plain(0, p99), "us", etcd.label, rounds),
        Figure::of("creates", taken.plain(2, rate), "1/s", "through the API", rounds),
        Figure::of("creates", taken.plain(0, rate), "1/s", "puts of etcd", rounds),
    ])
}
