//! Clients of a server that says nothing more: when each of them learns that it is gone.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, UdpSocket},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{check::connect, client::any};

/// How long they wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The line that says that all of them wait.
pub const READY: &str = "ready";

/// Options of `load aborted`.
#[derive(Args, Debug)]
pub(super) struct Aborted {
    /// The server, which answers every byte with a byte
    target: SocketAddr,
    /// Clients of each protocol
    #[arg(long, default_value_t = 50)]
    clients: u32,
}

/// When their sockets failed, in nanoseconds of the system's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// Of connections.
    pub tcp_ns: Vec<u64>,
    /// Of connected datagram sockets.
    pub udp_ns: Vec<u64>,
}

/// Prints [`READY`] as soon as every client has had an answer, and what became of them when none waits
/// any more.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(super) fn run(options: &Aborted) -> Result<()> {
    let clients = 0..options.clients;
    let tcp = clients.clone().map(|_| stream(options.target)).collect::<Result<Vec<_>>>()?;
    let udp = clients.map(|_| datagrams(options.target)).collect::<Result<Vec<_>>>()?;
    println!("{READY}");
    let failures = Failures { tcp_ns: joined(tcp)?, udp_ns: joined(udp)? };
    println!("{}", serde_json::to_string(&failures)?);
    Ok(())
}

/// A client that waits in a thread of its own.
type Waiting = JoinHandle<Result<u64>>;

fn stream(target: SocketAddr) -> Result<Waiting> {
    let mut stream = connect(target)?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0; 1])?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(thread::spawn(move || failed_at(stream.read(&mut [0; 1]))))
}

fn datagrams(target: SocketAddr) -> Result<Waiting> {
    let socket = UdpSocket::bind(any(target))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(target)?;
    socket.send(b"x")?;
    ensure!(socket.recv(&mut [0; 1])? == 1, "an empty answer from {target}");
    Ok(thread::spawn(move || failed_at(socket.recv(&mut [0; 1]))))
}

/// When the wait ended, which has to be by the end of the socket.
fn failed_at(waited: std::io::Result<usize>) -> Result<u64> {
    let now = SystemTime::now();
    match waited {
        Err(error) if error.raw_os_error() == Some(nix::libc::ECONNABORTED) => nanoseconds(now),
        Err(error) => Err(error).context("waiting for the end of the socket"),
        Ok(length) => bail!("{length} octets came instead of the end of the socket"),
    }
}

/// A time as [`Failures`] has it.
pub fn nanoseconds(at: SystemTime) -> Result<u64> {
    Ok(u64::try_from(at.duration_since(UNIX_EPOCH)?.as_nanos())?)
}

fn joined(waiting: Vec<Waiting>) -> Result<Vec<u64>> {
    let join = |client: Waiting| match client.join() {
        Ok(failed_at) => failed_at,
        Err(_panic) => bail!("a client panicked"),
    };
    waiting.into_iter().map(join).collect()
}
