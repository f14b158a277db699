//! The load generator of the benchmarks: small, blocking, one thread, the same for every
//! contender. It runs inside pods as their command.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

/// Options of `load`.
#[derive(Args, Debug)]
pub struct Load {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand, Debug)]
enum Mode {
    /// Answer every byte with a byte
    Serve {
        /// Where to listen
        listen: SocketAddr,
    },
    /// One connection; a byte there and back, as often as fits: prints round trips per second
    Rr {
        /// The server
        target: SocketAddr,
        /// For how long
        #[arg(long, default_value_t = 1000)]
        millis: u64,
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
    /// Connect, a byte there and back, reset; as often as fits: prints connections per second
    Connect {
        /// The server
        target: SocketAddr,
        /// For how long
        #[arg(long, default_value_t = 1000)]
        millis: u64,
    },
}

/// Serves or generates load.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub fn run(options: &Load) -> Result<()> {
    match options.mode {
        Mode::Serve { listen } => serve(listen),
        Mode::Rr { target, millis } => {
            println!("{:.1}", round_trips(target, Duration::from_millis(millis))?);
            Ok(())
        }
        Mode::Http { target, millis } => {
            println!("{}", requests(target, Duration::from_millis(millis))?);
            Ok(())
        }
        Mode::Udp { target, count } => {
            (0..count).try_for_each(|_| datagram(target))?;
            println!("{count}");
            Ok(())
        }
        Mode::Connect { target, millis } => {
            println!("{:.1}", connections(target, Duration::from_millis(millis))?);
            Ok(())
        }
    }
}

fn serve(listen: SocketAddr) -> Result<()> {
    let listener =
        TcpListener::bind(listen).with_context(|| format!("can't listen on {listen}"))?;
    for stream in listener.incoming() {
        // A client may have gone already.
        let Ok(stream) = stream else { continue };
        std::thread::spawn(move || echo(stream));
    }
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let mut byte = [0; 1];
    // Ends with the client: by its end of stream or its reset.
    let _nagle_off = stream.set_nodelay(true);
    while matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(&byte).is_ok() {}
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn rate(count: u64, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}

fn round_trips(target: SocketAddr, length: Duration) -> Result<f64> {
    let mut stream =
        TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
    stream.set_nodelay(true)?;
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < length {
        exchange(&mut stream)?;
        count += 1;
    }
    Ok(rate(count, start))
}

fn connections(target: SocketAddr, length: Duration) -> Result<f64> {
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < length {
        let mut stream =
            TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
        exchange(&mut stream)?;
        // A reset frees the port at once: a normal close would run out of ports in TIME-WAIT.
        nix::sys::socket::setsockopt(
            &stream.as_fd(),
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )?;
        count += 1;
    }
    Ok(rate(count, start))
}

fn requests(target: SocketAddr, length: Duration) -> Result<u64> {
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

fn datagram(target: SocketAddr) -> Result<()> {
    let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(b"x", target).with_context(|| format!("sending to {target}"))?;
    let mut answer = [0; 2048];
    let (length, from) =
        socket.recv_from(&mut answer).with_context(|| format!("no answer from {target}"))?;
    anyhow::ensure!(from == target, "asked {target}, was answered by {from}");
    anyhow::ensure!(length > 1, "an empty answer from {target}");
    Ok(())
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))
        .with_context(|| format!("connecting to {target}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

/// One request; the answer's body is one line that ends in `}` and a line feed.
fn request(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")?;
    let (mut answer, mut part) = (Vec::new(), [0; 2048]);
    while !answer.ends_with(b"}\n") {
        let length = stream.read(&mut part)?;
        anyhow::ensure!(length > 0, "the server closed in the middle of an answer");
        answer.extend_from_slice(&part[..length]);
        anyhow::ensure!(answer.len() < 1 << 16, "the answer has no end");
    }
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "the answer is no success");
    Ok(())
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0; 1])?;
    Ok(())
}
