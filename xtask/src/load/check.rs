//! Load that counts failures and not time: for the tests of a running cluster.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Requests by new connections and by one that stays; how many.
pub(super) fn requests(target: SocketAddr, length: Duration) -> Result<u64> {
    let mut lasting = connect(target)?;
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < length {
        let mut fresh = connect(target)?;
        request(&mut fresh).with_context(|| format!("a new connection, after {count} requests"))?;
        request(&mut lasting).with_context(|| format!("the old connection, after {count}"))?;
        count += 2;
    }
    Ok(count)
}

/// A datagram from a new socket, and its answer.
pub(super) fn datagram(target: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(super::client::any(target))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(b"x", target).with_context(|| format!("sending to {target}"))?;
    let mut answer = [0; 2048];
    let (length, from) =
        socket.recv_from(&mut answer).with_context(|| format!("no answer from {target}"))?;
    anyhow::ensure!(from == target, "asked {target}, was answered by {from}");
    anyhow::ensure!(length > 1, "an empty answer from {target}");
    Ok(())
}

pub(super) fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))
        .with_context(|| format!("connecting to {target}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

/// One request; the answer's body is one line that ends in `}` and a line feed.
pub(super) fn request(stream: &mut TcpStream) -> Result<Vec<u8>> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")?;
    let (mut answer, mut part) = (Vec::new(), [0; 2048]);
    while !answer.ends_with(b"}\n") {
        let length = stream.read(&mut part)?;
        anyhow::ensure!(length > 0, "the server closed in the middle of an answer");
        answer.extend_from_slice(&part[..length]);
        anyhow::ensure!(answer.len() < 1 << 16, "the answer has no end");
    }
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "the answer is no success");
    Ok(answer)
}
