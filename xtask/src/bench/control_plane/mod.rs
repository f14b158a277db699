//! `bench control-plane`: API server and store, beside Debian's etcd. The load is a program of
//! the control plane's own package (`examples/load`): it does the same work on either.
//!
//! ```text
//!  server (a process, its folder, its id) ──> load (one run, one line) ──> turns ──> Figure
//! ```

mod load;
mod server;
mod still;
mod store;
mod watches;

use anyhow::Result;

use self::load::Load;
use super::{
    Area,
    results::{Options, Results},
};

/// From nothing to `/readyz` in the caller's process.
pub(super) const START: &str = "start-in-process";
/// The same with a data folder of 100 MB.
pub(super) const START_100MB: &str = "start-100mb";
/// Resident memory of a control plane that has nothing to do.
pub(super) const IDLE_RSS: &str = "idle-rss";
/// Its CPU time.
pub(super) const IDLE_CPU: &str = "idle-cpu";
/// Durable writes by many at once.
pub(super) const PUTS: &str = "store-puts-vs-etcd";
/// One reader beside many writers.
pub(super) const GET_P99: &str = "get-p99-vs-etcd";
/// A thousand watches, of which ten hear of a change.
pub(super) const WATCH: &str = "watch-p99-10-of-1000";
/// A thousand watches that all hear of it.
pub(super) const WATCH_CPU: &str = "watch-cpu-1000-of-1000";
/// A large cluster in memory.
pub(super) const LARGE: &str = "load-100k-pods";

/// The names of the figures.
pub const NAMES: &[&str] =
    &[START, START_100MB, IDLE_RSS, IDLE_CPU, PUTS, GET_P99, WATCH, WATCH_CPU, LARGE];

/// Measures what is wanted, with servers of its own on the loopback interface.
pub fn measure(options: &Options) -> Result<Results> {
    let mut results = Results::of(Area::ControlPlane);
    let load = Load::build(options.profile)?;
    let rounds = options.rounds;
    if options.wants(START) {
        results.take(START, || still::start(&load, rounds))?;
    }
    if options.wants(START_100MB) {
        results.take(START_100MB, || still::start_with_data(&load, rounds))?;
    }
    if options.wants_any([IDLE_RSS, IDLE_CPU]) {
        results.take("idle-*", || still::idle(&load))?;
    }
    if options.wants(PUTS) {
        results.take(PUTS, || store::puts(&load, rounds))?;
    }
    if options.wants(GET_P99) {
        results.take(GET_P99, || store::reads(&load, rounds))?;
    }
    if options.wants(WATCH) {
        results.take(WATCH, || watches::few(&load, rounds))?;
    }
    if options.wants(WATCH_CPU) {
        results.take(WATCH_CPU, || watches::all(&load, rounds))?;
    }
    if options.wants(LARGE) {
        results.take(LARGE, || still::large(&load))?;
    }
    load.clean()?;
    Ok(results)
}
