//! The load generator of the benchmarks and tests: small, blocking, the same for every contender.
//! It runs inside pods and namespaces as their command.

mod aborted;
mod blast;
mod check;
mod client;
mod server;
mod storm;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

pub use aborted::{Failures, READY, nanoseconds};
pub use client::Measured;

/// Options of `load`.
#[derive(Args, Debug)]
pub struct Load {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand, Debug)]
enum Mode {
    /// Answer every byte with a byte, over TCP and UDP
    Serve {
        /// Where to listen: an answer leaves from the address that was asked
        #[arg(required = true)]
        listen: Vec<SocketAddr>,
        /// The only CPU to run on
        #[arg(long)]
        cpu: Option<usize>,
        /// Take datagrams here and never read them (repeatable)
        #[arg(long)]
        sink: Vec<SocketAddr>,
    },
    /// One connection; a byte there and back, as often as fits
    Rr(Client),
    /// Connect, a byte there and back, reset; as often as fits
    Connect(Client),
    /// Connect to what nobody serves, and be refused; as often as fits
    Refused(Client),
    /// One connected UDP socket; a byte there and back, as often as fits
    UdpConnected(Client),
    /// One UDP socket that is not connected; a byte there and back, as often as fits
    UdpUnconnected(Client),
    /// Datagrams of one flow at a fixed rate, without answers
    Blast {
        #[command(flatten)]
        client: Client,
        /// Datagrams per second
        #[arg(long, default_value_t = 100_000)]
        rate: u32,
    },
    /// A request to the hello server on a connection each, and one more on a connection that
    /// stays, as often as fits; any failure ends it with an error: prints the number of requests
    Http {
        /// The server
        target: SocketAddr,
        /// For how long
        #[arg(long, default_value_t = 1000)]
        millis: u64,
    },
    /// Datagrams to the hello server, each from a new socket; any that gets no answer from the
    /// address it was sent to is an error
    Udp {
        /// The server
        target: SocketAddr,
        /// How many
        #[arg(long, default_value_t = 20)]
        count: u32,
    },
    /// Clients that wait for a server which says nothing more, until their sockets are ended: prints
    /// when each was
    Aborted(aborted::Aborted),
    /// New connections, connections that last and datagrams to the hello server, until the input
    /// ends; prints what was done
    Storm(storm::Storm),
}

/// Where to, for how long, and what to measure beside the time.
#[derive(Args, Debug)]
struct Client {
    /// The server
    target: SocketAddr,
    /// For how long
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// The only CPU to run on
    #[arg(long)]
    cpu: Option<usize>,
    /// A cgroup's cpu.stat whose usage is divided by the operations
    #[arg(long)]
    cpu_stat: Option<PathBuf>,
}

impl Client {
    fn length(&self) -> Duration {
        Duration::from_millis(self.millis)
    }
}

/// Serves or generates load.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub fn run(options: &Load) -> Result<()> {
    let measured = match &options.mode {
        Mode::Serve { listen, cpu, sink } => {
            pin(*cpu)?;
            return server::serve(listen, sink);
        }
        Mode::Http { target, millis } => {
            println!("{}", check::requests(*target, Duration::from_millis(*millis))?);
            return Ok(());
        }
        Mode::Udp { target, count } => {
            (0..*count).try_for_each(|_| check::datagram(*target))?;
            println!("{count}");
            return Ok(());
        }
        Mode::Aborted(options) => return aborted::run(options),
        Mode::Storm(options) => return storm::run(options),
        Mode::Rr(options) => measure(options, client::round_trips)?,
        Mode::Connect(options) => measure(options, client::connections)?,
        Mode::Refused(options) => measure(options, client::refusals)?,
        Mode::UdpConnected(options) => measure(options, client::connected_datagrams)?,
        Mode::UdpUnconnected(options) => measure(options, client::unconnected_datagrams)?,
        Mode::Blast { client, rate } => {
            measure(client, |target, length| blast::blast(target, length, *rate))?
        }
    };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// Runs one kind of load between two looks at the CPU time.
fn measure(
    options: &Client,
    load: impl FnOnce(SocketAddr, Duration) -> Result<client::Run>,
) -> Result<Measured> {
    pin(options.cpu)?;
    let usage = || options.cpu_stat.as_deref().map(cpu_usage).transpose();
    let before = usage()?;
    let run = load(options.target, options.length())?;
    Ok(run.measured(before.zip(usage()?).map(|(before, after)| after.saturating_sub(before))))
}

/// Microseconds of CPU time that the processes of a cgroup have used, the kernel's work in their
/// context included.
fn cpu_usage(cpu_stat: &std::path::Path) -> Result<u64> {
    let text = std::fs::read_to_string(cpu_stat)
        .with_context(|| format!("can't read {}", cpu_stat.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok())
        .with_context(|| format!("{} has no usage_usec", cpu_stat.display()))
}

/// Keeps this thread, and those that it starts, on one CPU.
fn pin(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("there is no CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("can't run on CPU {cpu}"))
}
