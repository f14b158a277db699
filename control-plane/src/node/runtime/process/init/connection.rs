//! A connection of the node part to a sandbox's init.

use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::atomic::{AtomicU64, Ordering},
};

use super::super::wire::{LINE_MAX, Reply, Request};

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A peer, never waited for: one that does not read its answers is dropped.
pub(super) struct Connection {
    /// Tells connections apart for the life of init.
    pub token: u64,
    /// It asked for every change.
    pub watching: bool,
    /// It is over.
    pub closed: bool,
    stream: UnixStream,
    pending: Vec<u8>,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connection {
    /// Takes the accepted stream; `None` where it is already of no use.
    pub(super) fn new(stream: UnixStream) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        let token = NEXT.fetch_add(1, Ordering::Relaxed);
        Some(Self { token, watching: false, closed: false, stream, pending: Vec::new() })
    }

    /// The complete requests that have arrived. Nonsense ends the connection.
    pub(super) fn read(&mut self) -> Vec<Request> {
        let mut chunk = [0; 8192];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.closed = true;
                    break;
                }
                Ok(length) => self.pending.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.closed = true;
                    break;
                }
            }
            if self.pending.len() > LINE_MAX {
                self.closed = true;
                break;
            }
        }
        let mut requests = Vec::new();
        while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(request) => requests.push(request),
                Err(error) => {
                    self.send(&Reply::Refused { message: format!("not a request: {error}") });
                    self.closed = true;
                    break;
                }
            }
        }
        requests
    }

    /// Sends `reply`, or gives the connection up.
    pub(super) fn send(&mut self, reply: &Reply) {
        let sent = serde_json::to_vec(reply).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.stream.write_all(&line)
        });
        if sent.is_err() {
            self.closed = true;
        }
    }
}
