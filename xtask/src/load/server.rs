//! The server of the benchmarks: a byte for a byte.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};

/// Threads that accept at each address. A thread per connection would be a good part of what a
/// connection costs.
const WORKERS: usize = 4;

/// Serves until it is killed. What arrives at the sinks is never read: a packet's way ends there
/// at a cost that is the same for all.
pub(super) fn serve(listen: &[SocketAddr], sinks: &[SocketAddr]) -> Result<()> {
    let bind_udp = |&address| {
        UdpSocket::bind(address).with_context(|| format!("can't listen on {address} over UDP"))
    };
    let _held_open: Vec<UdpSocket> = sinks.iter().map(bind_udp).collect::<Result<_>>()?;
    let mut threads = Vec::new();
    for address in listen {
        let listener =
            TcpListener::bind(address).with_context(|| format!("can't listen on {address}"))?;
        let listener = Arc::new(listener);
        for _worker in 0..WORKERS {
            let listener = Arc::clone(&listener);
            threads.push(thread::spawn(move || {
                for stream in listener.incoming() {
                    // A client may have gone already.
                    let _gone = stream.map(echo);
                }
            }));
        }
        let socket = bind_udp(address)?;
        threads.push(thread::spawn(move || echo_datagrams(&socket)));
    }
    for thread in threads {
        // They end with the process.
        let _ended = thread.join();
    }
    Ok(())
}

/// Ends with the client: by its end of stream or its reset.
fn echo(mut stream: TcpStream) {
    let mut byte = [0; 1];
    let _nagle_off = stream.set_nodelay(true);
    while matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(&byte).is_ok() {}
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut datagram = [0; 2048];
    loop {
        // An error is the ICMP error of an answer to a client that has gone.
        if let Ok((length, client)) = socket.recv_from(&mut datagram) {
            let _gone = socket.send_to(&datagram[..length], client);
        }
    }
}
