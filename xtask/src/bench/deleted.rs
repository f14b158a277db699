//! `deleted-endpoint-error-p99`: how soon sockets learn that their endpoint was deleted (R9): from
//! the request that takes it out of its last slice to the error of a read that waits.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
    time::SystemTime,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Figure,
    catalogue::{self, ECHO_PORT},
    contender::Seat,
    interrupt, objects,
    triple::{At, Triple},
    update::settled,
    world::World,
};
use crate::{
    cluster::bulk::{self, Pace, Request},
    load::{Failures, READY, nanoseconds},
};

/// The figure's name.
pub const NAME: &str = "deleted-endpoint-error-p99";

/// How often all endpoints of the service are deleted.
const ROUNDS: u32 = 4;
/// The one that has a port of both protocols.
const SERVICE: u32 = 0;

/// Deletes the endpoints of a service that clients wait for, and brings them back.
pub fn measure(world: &World, seat: &Seat) -> Result<Vec<Figure>> {
    let rounds: Result<Vec<Failures>> = (0..ROUNDS).map(|_| round(world, seat)).collect();
    change(world, objects::replace_endpoints(&whole()))?;
    let rounds = rounds?;
    let figure = |protocol: &str, times: fn(&Failures) -> &Vec<u64>| {
        let took: Vec<u64> = rounds.iter().flat_map(times).copied().collect();
        let of = format!("mizzen, {} services, {} {protocol} sockets", world.services, took.len());
        Figure::once(NAME, p99(took), "s", of).at_most(1.0, 0.0)
    };
    Ok(vec![figure("TCP", |round| &round.tcp_ns), figure("UDP", |round| &round.udp_ns)])
}

/// The service with its endpoints.
fn whole() -> catalogue::Service {
    catalogue::service(SERVICE, catalogue::ENDPOINTS)
}

/// Nanoseconds from the deletion to each error.
fn round(world: &World, seat: &Seat) -> Result<Failures> {
    interrupt::check()?;
    change(world, objects::replace_endpoints(&whole()))?;
    settled(&seat.triple)?;
    let waiting = Waiting::start(seat)?;
    change(world, objects::end_endpoints(&whole()))?;
    settled(&seat.triple)?;
    let deleted = nanoseconds(SystemTime::now())?;
    let none = catalogue::Service { endpoints: Vec::new(), ..whole() };
    change(world, objects::replace_endpoints(&none))?;
    let failures = waiting.end()?;
    let since = |times: Vec<u64>| -> Result<Vec<u64>> {
        let each = times.into_iter().map(|at| at.checked_sub(deleted));
        each.collect::<Option<_>>().context("a socket ended before its endpoint was deleted")
    };
    Ok(Failures { tcp_ns: since(failures.tcp_ns)?, udp_ns: since(failures.udp_ns)? })
}

fn change(world: &World, request: Request) -> Result<()> {
    bulk::send(&world.api, &world.layout.dir, &[request], Pace::Fast)
}

/// The seconds that one of a hundred exceeds.
fn p99(mut took: Vec<u64>) -> f64 {
    took.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of some seconds")]
    took.get(took.len() * 99 / 100).map_or(f64::NAN, |&ns| ns as f64 / 1e9)
}

/// Clients that wait in the triple's client namespace.
struct Waiting {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Waiting {
    fn start(seat: &Seat) -> Result<Self> {
        let triple: &Triple = &seat.triple;
        let xtask = std::env::current_exe()?.display().to_string();
        let target = seat.by_first_service(ECHO_PORT).target.to_string();
        let mut command = triple.command(At::Client, &[&xtask, "load", "aborted", &target])?;
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("can't start clients")?;
        let said = BufReader::new(child.stdout.take().context("clients without an output")?);
        let mut waiting = Self { child, said };
        let first = waiting.line()?;
        ensure!(first == READY, "the clients said {first:?}");
        Ok(waiting)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn end(mut self) -> Result<Failures> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("the clients said {line:?}"))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_hundred_is_longer() {
        assert!((p99((0..100).map(|n| n * 1_000_000_000).collect()) - 99.0).abs() < 1e-9);
        assert!((p99((0..1_000).rev().map(|n| n * 1_000_000).collect()) - 0.99).abs() < 1e-9);
        assert!(p99(Vec::new()).is_nan());
    }
}
