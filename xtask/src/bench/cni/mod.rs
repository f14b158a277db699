//! `bench cni`: the plugin and what it connects, beside Debian's reference plugins, a bare veth and
//! the kernel's own VXLAN.
//!
//! ```text
//!  plugin (a configuration, a namespace to be called in) ──> calls: ADD and DEL, one by one, at once
//!        └──> ways: a pod and another ──> pairs (a bare veth), tunnel (nodes apart) ──> load
//! ```

pub mod bytes;
pub mod calls;
pub mod plugin;
pub mod start;
pub mod tunnel;
pub mod ways;

use anyhow::Result;

use self::plugin::{Peer, Plugin};
use super::{
    Area,
    results::{Options, Results},
    world::{self, World},
};
use crate::step::step;

/// The names of the figures.
pub const NAMES: &[&str] = &[
    calls::ADD_P50,
    calls::ADD_P99,
    calls::ADD_PARALLEL,
    calls::DEL_P50,
    start::SIZE,
    start::START,
    ways::RR,
    ways::THROUGHPUT,
    tunnel::NAME,
    bytes::NAME,
];

/// Measures what is wanted on a cluster of its own, and removes it.
pub fn measure(options: &Options) -> Result<Results> {
    let mut results = Results::of(Area::Cni);
    let rounds = options.rounds;
    world::within(&world::layout(options.profile), |layout| {
        if options.wants(start::SIZE) {
            results.take(start::SIZE, || start::size(layout))?;
        }
        if options.wants(start::START) {
            results.take(start::START, || start::measure(layout, rounds))?;
        }
        let mut world = step("starting the API server", || World::start(layout))?;
        let plugins = step("plugins, each at a node of its own", || {
            // The reference twice.
            let peers = [Peer::Ptp, Peer::Ptp, Peer::Bridge];
            let mut plugins = Vec::new();
            for peer in peers {
                plugins.push(Plugin::of_peer(&mut world, peer)?);
            }
            plugins.insert(2, Plugin::of_mizzen(&mut world)?);
            Ok(plugins)
        })?;
        if options.wants_any([calls::ADD_P50, calls::ADD_P99]) {
            results.take("add-*", || calls::adds(&plugins, rounds))?;
        }
        if options.wants(calls::ADD_PARALLEL) {
            results.take(calls::ADD_PARALLEL, || calls::parallel(&plugins, rounds))?;
        }
        if options.wants(calls::DEL_P50) {
            results.take(calls::DEL_P50, || calls::dels(&plugins, rounds))?;
        }
        if options.wants(bytes::NAME) {
            results.take(bytes::NAME, || bytes::measure(&world, &plugins[2]))?;
        }
        if options.wants_any([ways::RR, ways::THROUGHPUT]) {
            results.take("pod-to-pod-*", || {
                ways::measure(&world, &plugins, rounds, |name| options.wants(name))
            })?;
        }
        if options.wants(tunnel::NAME) {
            results.take(tunnel::NAME, || tunnel::measure(&mut world, rounds))?;
        }
        Ok(())
    })?;
    Ok(results)
}
