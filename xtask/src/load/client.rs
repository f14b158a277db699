//! The clients of the benchmarks: one operation after the other, each timed.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

/// Latencies that are kept; the operations beyond only count.
const LATENCIES_MAX: usize = 1 << 20;
/// How long an answer may take before the measurement fails.
const LIMIT: Duration = Duration::from_secs(2);

/// What came of a run, as `load` prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Operations per second.
    pub rate: f64,
    /// How many operations.
    pub operations: u64,
    /// Median latency in microseconds; 0 where no latency was taken.
    pub p50_us: f64,
    /// The latency in microseconds that one operation of a hundred exceeds.
    pub p99_us: f64,
    /// CPU time in microseconds per operation, client and server; 0 where it was not asked for.
    pub cpu_us: f64,
}

impl Measured {
    /// The mean of some, and all their operations.
    pub fn mean(of: &[Self]) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "there are a few")]
        let mean = |what: fn(&Self) -> f64| of.iter().map(what).sum::<f64>() / of.len() as f64;
        Self {
            rate: mean(|of| of.rate),
            operations: of.iter().map(|of| of.operations).sum(),
            p50_us: mean(|of| of.p50_us),
            p99_us: mean(|of| of.p99_us),
            cpu_us: mean(|of| of.cpu_us),
        }
    }
}

/// A run's raw outcome.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) operations: u64,
    pub(super) took: Duration,
    /// Nanoseconds of each operation.
    pub(super) latencies: Vec<u32>,
}

impl Run {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub(super) fn measured(mut self, cpu_us: Option<u64>) -> Measured {
        self.latencies.sort_unstable();
        let operations = self.operations as f64;
        Measured {
            rate: operations / self.took.as_secs_f64(),
            operations: self.operations,
            p50_us: self.percentile(50),
            p99_us: self.percentile(99),
            cpu_us: cpu_us.map_or(0.0, |us| us as f64 / operations.max(1.0)),
        }
    }

    /// Of the sorted latencies, in microseconds.
    fn percentile(&self, percent: usize) -> f64 {
        let at = self.latencies.len() * percent / 100;
        self.latencies.get(at).map_or(0.0, |&ns| f64::from(ns) / 1e3)
    }
}

/// Repeats an operation for a time.
fn repeat(length: Duration, mut operation: impl FnMut() -> Result<()>) -> Result<Run> {
    let mut latencies = Vec::with_capacity(LATENCIES_MAX);
    let (start, mut operations) = (Instant::now(), 0);
    let mut last = start;
    while last.duration_since(start) < length {
        operation().with_context(|| format!("after {operations} operations"))?;
        let now = Instant::now();
        if latencies.len() < LATENCIES_MAX {
            let ns = now.duration_since(last).as_nanos();
            latencies.push(u32::try_from(ns).unwrap_or(u32::MAX));
        }
        operations += 1;
        last = now;
    }
    Ok(Run { operations, took: last.duration_since(start), latencies })
}

pub(super) fn round_trips(target: SocketAddr, length: Duration) -> Result<Run> {
    let mut stream = connect(target)?;
    stream.set_nodelay(true)?;
    repeat(length, || exchange(&mut stream))
}

pub(super) fn connections(target: SocketAddr, length: Duration) -> Result<Run> {
    repeat(length, || {
        let mut stream = connect(target)?;
        exchange(&mut stream)?;
        // A reset frees the port at once: a normal close would run out of ports in TIME-WAIT.
        let reset = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        Ok(setsockopt(&stream.as_fd(), sockopt::Linger, &reset)?)
    })
}

pub(super) fn refusals(target: SocketAddr, length: Duration) -> Result<Run> {
    repeat(length, || match TcpStream::connect(target) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error).with_context(|| format!("connecting to {target}")),
        Ok(_) => bail!("{target} took a connection"),
    })
}

pub(super) fn connected_datagrams(target: SocketAddr, length: Duration) -> Result<Run> {
    let socket = UdpSocket::bind(any(target))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(target).with_context(|| format!("connecting to {target}"))?;
    repeat(length, || {
        socket.send(b"x")?;
        ensure!(socket.recv(&mut [0; 1])? == 1, "an empty answer from {target}");
        Ok(())
    })
}

pub(super) fn unconnected_datagrams(target: SocketAddr, length: Duration) -> Result<Run> {
    let socket = UdpSocket::bind(any(target))?;
    socket.set_read_timeout(Some(LIMIT))?;
    repeat(length, || {
        socket.send_to(b"x", target)?;
        let (_, from) = socket.recv_from(&mut [0; 1])?;
        ensure!(from == target, "asked {target}, was answered by {from}");
        Ok(())
    })
}

/// The unspecified address of the target's family.
pub(super) fn any(target: SocketAddr) -> SocketAddr {
    if target.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() }
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(target).with_context(|| format!("connecting to {target}"))
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0; 1])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_becomes_a_rate_percentiles_and_a_cost() {
        let latencies = (1..=1_000).rev().map(|us| us * 1_000).collect();
        let run = Run { operations: 1_000, took: Duration::from_secs(2), latencies };
        let expected =
            Measured { rate: 500.0, operations: 1_000, p50_us: 501.0, p99_us: 991.0, cpu_us: 7.0 };
        assert_eq!(run.measured(Some(7_000)), expected);
    }

    #[test]
    fn nothing_measured_is_nothing() {
        let run = Run { operations: 0, took: Duration::from_secs(1), latencies: Vec::new() };
        assert_eq!(run.measured(None), Measured::default());
    }
}
