//! One question to the agent, within a time limit.

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
};

use crate::wire::{Request, Response, SOCKET, receive, send};

/// How long to wait before trying again while the agent's queue of connections is full.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent listens on {}", path.display())]
    Down {
        /// The socket.
        path: PathBuf,
        /// Why connecting failed.
        #[source]
        source: io::Error,
    },
    /// It listens, but did not answer in time or in a way that we understand.
    #[error("the agent on {} gave no answer", path.display())]
    Unanswered {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Asks the agent whose state folder is `state_dir`, and gives up at `deadline`.
pub fn call(
    state_dir: &Path,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<Response, ClientError> {
    let path = state_dir.join(SOCKET);
    let mut stream = connect_by(&path, deadline)
        .map_err(|source| ClientError::Down { path: path.clone(), source })?;
    exchange(&mut stream, request, netns, deadline)
        .map_err(|source| ClientError::Unanswered { path, source })
}

fn exchange(
    stream: &mut UnixStream,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> io::Result<Response> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    send(stream, request, netns)?;
    stream.set_read_timeout(Some(remaining(deadline)?))?;
    Ok(receive(stream)?.0)
}

/// The standard library's connect would wait without limit where the agent's queue is full.
fn connect_by(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let address = UnixAddr::new(path)?;
    loop {
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => return Ok(UnixStream::from(fd)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                remaining(deadline)?;
                std::thread::sleep(FULL_QUEUE_PAUSE);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "out of time"));
    }
    Ok(left)
}
