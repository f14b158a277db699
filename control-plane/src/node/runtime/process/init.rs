//! The sandbox's init: process 1 of a pod. It holds the pod's namespaces, starts and reaps the
//! containers, keeps their exit codes, and answers the node part on a socket.
//!
//! It outlives the node part, which finds everything again by asking. One thread, one `poll`
//! loop, no asynchronous runtime: there is one of these per pod.

mod children;
mod connection;
mod log;

use std::{
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd, RawFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        socket::{getsockopt, sockopt::PeerCredentials},
        stat::{Mode, umask},
    },
};

use self::{children::Children, connection::Connection};
use super::{
    enter, mounts,
    record::Record,
    wire::{Reply, Request, SOCKET},
};

/// Connections at a time: the node part's watch, its requests, and probes.
const CONNECTIONS_MAX: usize = 64;
/// What init says on its standard output when it can be asked.
pub(super) const READY: &str = "ready";

/// Becomes the pod's init; returns only with an error. `machine` is the machine's mount namespace, a
/// descriptor that is taken over.
pub(super) fn main(dir: &Path, machine: RawFd) -> anyhow::Result<()> {
    let machine = enter::take(machine)?;
    std::env::set_current_dir(dir).with_context(|| format!("entering {}", dir.display()))?;
    let record = Record::load(Path::new("."))?;
    umask(Mode::from_bits_truncate(0o022));
    // Opened before /sys is replaced by the pod's own: the folder stays reachable by this file.
    let cgroup = std::fs::File::open(&record.cgroup)
        .with_context(|| format!("opening the pod's cgroup {}", record.cgroup.display()))?;
    mounts::set_up(&record)?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().context("blocking SIGCHLD")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("creating a signalfd")?;
    let listener = listen()?;
    let mut init = Init {
        children: Children::new(cgroup, machine),
        connections: Vec::new(),
        listener,
        signals,
    };
    say_ready()?;
    loop {
        init.turn()?;
    }
}

fn listen() -> anyhow::Result<UnixListener> {
    // A name relative to the working directory is never too long for a socket's address.
    let _stale = std::fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET).context("binding the socket")?;
    std::fs::set_permissions(SOCKET, PermissionsExt::from_mode(0o600))
        .context("closing the socket to others")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Tells the process that waits for us, then lets go of its pipe.
fn say_ready() -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{READY}").and_then(|()| stdout.flush()).context("reporting readiness")?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null).context("letting go of standard output")?;
    Ok(())
}

struct Init {
    children: Children,
    connections: Vec<Connection>,
    listener: UnixListener,
    signals: SignalFd,
}

/// What a turn of the loop found to do. Indices are into the lists as they were before it.
struct Due {
    reap: bool,
    accept: bool,
    connections: Vec<usize>,
    outputs: Vec<usize>,
}

impl Init {
    /// Waits for something to do, and does it.
    fn turn(&mut self) -> anyhow::Result<()> {
        let due = self.wait()?;
        let before = self.children.revision();
        // Output first: what a process wrote before it ended is in its log when its end is seen.
        self.children.copy_output(&due.outputs);
        if due.reap {
            while let Ok(Some(_)) = self.signals.read_signal() {}
            self.children.reap();
        }
        for &index in &due.connections {
            for request in self.connections[index].read() {
                self.handle(index, request);
            }
        }
        for (token, reply) in self.children.replies() {
            if let Some(one) = self.connections.iter_mut().find(|one| one.token == token) {
                one.send(&reply);
            }
        }
        if due.accept {
            self.accept();
        }
        if self.children.revision() != before {
            let processes = self.children.processes();
            for watcher in self.connections.iter_mut().filter(|one| one.watching) {
                watcher.send(&Reply::Processes { processes: processes.clone() });
            }
        }
        let (closed, open) = self.connections.drain(..).partition::<Vec<_>, _>(|one| one.closed);
        self.connections = open;
        for one in &closed {
            self.children.abandon(one.token);
        }
        Ok(())
    }

    fn wait(&self) -> anyhow::Result<Due> {
        let outputs = self.children.outputs();
        let descriptors = [self.signals.as_fd(), self.listener.as_fd()]
            .into_iter()
            .chain(self.connections.iter().map(AsFd::as_fd))
            .chain(outputs.iter().copied());
        let mut polled: Vec<PollFd<'_>> =
            descriptors.map(|fd: BorrowedFd<'_>| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("waiting for events"),
        }
        let ready = |index: &usize| polled[*index].any().unwrap_or(false);
        let count = self.connections.len();
        Ok(Due {
            reap: ready(&0),
            accept: ready(&1),
            connections: (0..count).filter(|index| ready(&(index + 2))).collect(),
            outputs: (0..outputs.len()).filter(|index| ready(&(index + 2 + count))).collect(),
        })
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let root = getsockopt(&stream, PeerCredentials).is_ok_and(|peer| peer.uid() == 0);
            if root && self.connections.len() < CONNECTIONS_MAX {
                self.connections.extend(Connection::new(stream));
            }
        }
    }

    fn handle(&mut self, index: usize, request: Request) {
        let connection = &mut self.connections[index];
        let outcome = match request {
            Request::Start(start) => {
                self.children.start(*start, connection.token);
                // The answer follows when the program runs, or can't.
                return;
            }
            Request::Signal { container, signal } => self.children.signal(&container, signal),
            Request::Forget { container } => {
                self.children.forget(&container);
                Ok(())
            }
            Request::Exec(program) => match self.children.exec(&program, connection.token) {
                // The answer follows when the command ends.
                Ok(()) => return,
                refused => refused,
            },
            Request::Watch => {
                connection.watching = true;
                connection.send(&Reply::Processes { processes: self.children.processes() });
                return;
            }
        };
        connection.send(&match outcome {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Refused { message: format!("{error:#}") },
        });
    }
}

/// Where the pod's cgroup is reached after /sys was replaced.
fn by_descriptor(file: &std::fs::File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
