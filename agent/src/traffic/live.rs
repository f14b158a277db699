//! What connections that live sent so far: the kernel is asked, in every network namespace of the
//! node's processes, when somebody wants to know.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use mizzen_ebpf_abi::{socket::SocketPeer, traffic::owner};
use nix::sched::{CloneFlags, setns};

use super::{
    SocketTraffic, Traffic,
    accounts::{Led, Live},
};
use crate::{
    datapath::{SockDiag, Translations},
    resets::namespaces,
};

/// How long it is looked: the kernel walks its table of connections for each namespace.
const TIME_MAX: Duration = Duration::from_secs(3);

/// Where live connections are looked for.
#[derive(Clone, Debug)]
pub struct LiveSockets(Arc<Place>);

#[derive(Debug)]
struct Place {
    translations: Translations,
    cgroup: PathBuf,
    node: File,
}

/// Why live connections are not known.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The kernel gives no list.
    #[error("list the live connections of the node's network namespaces")]
    Kernel(#[source] io::Error),
    /// It takes too long.
    #[error("the live connections of all network namespaces could not be listed in {TIME_MAX:?}")]
    Slow,
}

impl LiveSockets {
    /// Those of the processes below a cgroup. The node's network namespace is the caller's.
    pub fn new(translations: Translations, cgroup: PathBuf) -> io::Result<Self> {
        let node = File::open("/proc/thread-self/ns/net")?;
        Ok(Self(Arc::new(Place { translations, cgroup, node })))
    }

    /// Counts them. Blocks for as long as the kernel takes.
    pub fn count(&self) -> Result<Live, LiveError> {
        // A thread of its own, whose namespace nobody else will take for the node's.
        let place = Arc::clone(&self.0);
        let thread = thread::Builder::new()
            .name("live sockets".into())
            .spawn(move || place.count())
            .map_err(LiveError::Kernel)?;
        let early = || LiveError::Kernel(io::Error::other("the thread ended early"));
        thread.join().unwrap_or_else(|_| Err(early()))
    }
}

impl Place {
    fn count(&self) -> Result<Live, LiveError> {
        let deadline = Instant::now() + TIME_MAX;
        let mut live = Live::new();
        for namespace in namespaces::below(&self.cgroup, &self.node).namespaces {
            if Instant::now() > deadline {
                return Err(LiveError::Slow);
            }
            setns(&namespace.file, CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .and_then(|()| SockDiag::open())
                .and_then(|mut kernel| {
                    kernel.live(&self.translations, |of| add(&mut live, &of.peer, of.traffic))
                })
                .map_err(LiveError::Kernel)?;
        }
        Ok(live)
    }
}

fn add(live: &mut Live, peer: &SocketPeer, sockets: SocketTraffic) {
    let led = Led {
        set: peer.set,
        id: peer.backend_id,
        owner: owner(peer.set, &peer.backend, peer.backend_port),
        at: SocketAddr::new(peer.backend.into(), u16::from_be_bytes(peer.backend_port)),
    };
    let sum = live.entry(led).or_default();
    let mut all = Traffic { sockets: *sum, ..Traffic::default() };
    all += Traffic { sockets, ..Traffic::default() };
    *sum = all.sockets;
}
