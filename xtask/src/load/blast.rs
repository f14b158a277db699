//! Datagrams at a fixed rate, for figures of CPU time per packet.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::client::{Run, any};

/// Datagrams are sent in bursts, this many a second: a timer for each would cost more than it.
const BURSTS_PER_S: u32 = 1_000;
/// Bytes of a datagram.
const PAYLOAD: usize = 64;

/// Sends for that long at that rate. A sender that falls far behind is an error: the rate is about
/// the same for all, or nothing can be compared.
pub(super) fn blast(target: SocketAddr, length: Duration, rate: u32) -> Result<Run> {
    let socket = UdpSocket::bind(any(target))?;
    socket.connect(target).with_context(|| format!("connecting to {target}"))?;
    let burst = rate.div_ceil(BURSTS_PER_S);
    let pause = Duration::from_secs(1) / BURSTS_PER_S;
    let payload = [0; PAYLOAD];
    let bursts = u32::try_from(length.as_micros() / pause.as_micros())?;
    let start = Instant::now();
    for number in 0..bursts {
        for _ in 0..burst {
            socket.send(&payload).with_context(|| format!("sending to {target}"))?;
        }
        let due = start + pause * (number + 1);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let took = start.elapsed();
    ensure!(took < length.mul_f64(1.5), "{rate} datagrams a second are too many for this machine");
    Ok(Run { operations: u64::from(bursts) * u64::from(burst), took, latencies: Vec::new() })
}
