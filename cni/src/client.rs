//! One question to the agent, within a time limit.

use std::{
    io::{self, Read, Write},
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

use crate::wire::{AGENT_SOCKET, Request, Response, SOCKET, receive, send};

/// How long to wait before trying again while the agent's queue of connections is full.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(5);
/// How long to wait before trying again while one agent takes over from another.
const TAKE_OVER_PAUSE: Duration = Duration::from_millis(20);
/// How long an agent may be away before it counts as being so.
const GRACE: Duration = Duration::from_millis(300);
/// How long a take-over may last: what comes after has to be done in the rest of a call's time.
const TAKE_OVER_MAX: Duration = Duration::from_secs(7);

/// How long an agent may take to say whether pods are its matter, and how much it may say.
const ROLE_TIME: Duration = Duration::from_millis(200);
const ROLE_BYTES: u64 = 64 << 10;

/// How many agents may leave a call without an answer: one that refuses it does so, too.
const LEFT_MAX: u32 = 3;

/// What to do where nobody listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Nothing: there is another way.
    Fails,
    /// Wait for a moment; and where some agent is there, which has left the work to another or has
    /// not begun it yet, for as long as a take-over lasts. One that says that it never will is not
    /// waited for.
    Waits,
}

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

/// Asks the agent whose state folder is `state_dir`, and gives up at `deadline`. Where that agent left
/// without an answer and `absence` allows to wait, the next one is asked: whatever is asked may be asked
/// twice.
pub fn call(
    state_dir: &Path,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    absence: Absence,
    deadline: Instant,
) -> Result<Response, ClientError> {
    let path = state_dir.join(SOCKET);
    let (start, mut left) = (Instant::now(), 0);
    loop {
        let mut stream = await_agent(state_dir, &path, absence, (start, deadline))
            .map_err(|source| ClientError::Down { path: path.clone(), source })?;
        match exchange(&mut stream, request, netns, deadline) {
            Err(error) if absence == Absence::Waits && left < LEFT_MAX && is_left(&error) => {
                left += 1;
                std::thread::sleep(TAKE_OVER_PAUSE);
            }
            outcome => {
                return outcome.map_err(|source| ClientError::Unanswered { path, source });
            }
        }
    }
}

/// Whether an agent that left while the call waited in its queue may be why there is no answer.
fn is_left(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
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

/// Connects, at once or when the agent that is to come has come.
fn await_agent(
    state_dir: &Path,
    path: &Path,
    absence: Absence,
    (start, deadline): (Instant, Instant),
) -> io::Result<UnixStream> {
    let agent = state_dir.join(AGENT_SOCKET);
    let (mut seen, mut asked) = (Instant::now(), false);
    loop {
        let error = match connect_by(path, deadline) {
            Err(error) if is_absence(&error) && absence == Absence::Waits => error,
            other => return other,
        };
        if is_there(&agent) {
            // Most take-overs are over before that.
            let first = start.elapsed() >= GRACE && !std::mem::replace(&mut asked, true);
            if first && connects_no_pods(&agent) {
                let text = "the agent connects no pods (`cni: false`); set `cni: true`, or remove \
                            10-mizzen.conflist from the node";
                return Err(io::Error::new(error.kind(), text));
            }
            seen = Instant::now();
        }
        let comes = seen.elapsed() < GRACE && start.elapsed() < TAKE_OVER_MAX;
        if !comes || remaining(deadline).is_err() {
            return Err(error);
        }
        std::thread::sleep(TAKE_OVER_PAUSE);
    }
}

/// Whether somebody listens, however busy.
fn is_there(path: &Path) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None);
    let (Ok(fd), Ok(address)) = (fd, UnixAddr::new(path)) else { return false };
    matches!(connect(fd.as_raw_fd(), &address), Ok(()) | Err(Errno::EAGAIN))
}

/// Whether the agent that listens there says so, by the configuration that it runs with. One that gives
/// no answer leaves, or has just come.
fn connects_no_pods(path: &Path) -> bool {
    let ask = || -> io::Result<bool> {
        let mut stream = connect_by(path, Instant::now() + ROLE_TIME)?;
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(ROLE_TIME))?;
        stream.set_read_timeout(Some(ROLE_TIME))?;
        stream.write_all(b"GET /v1/config HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(ROLE_BYTES).read_to_string(&mut answer)?;
        Ok(answer.lines().any(|line| line.starts_with("cni: false")))
    };
    ask().unwrap_or(false)
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
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
