//! What passes from one agent's resolver to the next one's: listening sockets, connections at rest,
//! and when each of the two is to answer.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, OnceLock},
};

use socket2::{Socket, Type};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    others::Elsewhere,
    server::{Resolver, listen},
    vitals::Vitals,
};
use crate::handover::{Departure, OpenSockets};

/// Connections that wait to be passed on, or to be served on.
const CONNECTIONS_MAX: usize = 64;

/// How the role begins and ends where another agent is there before or after it.
#[derive(Debug, Default)]
pub struct Succession {
    /// What the agent before this one gave; the role opens what is not among it.
    pub inherited: Inherited,
    /// When to begin; at once where there is nobody before it.
    pub begin: Option<CancellationToken>,
    /// Where other nodes' resolvers are that clients are led to until this role answers at the cluster
    /// DNS addresses: while they do, it learns the cluster first.
    pub elsewhere: Option<Elsewhere>,
    /// Told when what the file beside the configuration says is in force, or there is none.
    pub configured: Option<oneshot::Sender<()>>,
    /// Told when it serves.
    pub serving: Option<oneshot::Sender<()>>,
    /// Connections that the agent before this one lets go of.
    pub connections: Option<mpsc::Receiver<OwnedFd>>,
    /// What this one has, for who comes after it.
    pub sockets: Arc<OpenSockets>,
    /// Whether somebody does.
    pub departure: Departure,
    /// How the role is, for who asks.
    pub vitals: Arc<Vitals>,
    /// The resolver, for who explains names.
    pub resolver: Arc<OnceLock<Arc<Resolver>>>,
}

/// Listening sockets of another process.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: BTreeMap<(SocketAddr, bool), Vec<Socket>>,
}

impl Inherited {
    /// These: each says itself where it listens, and by which protocol.
    pub fn new(sockets: Vec<OwnedFd>) -> Self {
        let mut this = Self::default();
        for socket in sockets.into_iter().map(Socket::from) {
            if let Some(place) = place(&socket) {
                this.sockets.entry(place).or_default().push(socket);
            }
        }
        this
    }

    /// Has the kernel find nobody at those addresses from now on: clients are led elsewhere, though
    /// whoever left the sockets may hold them too. They stay bound, with what has come by then, and
    /// hear everyone again when they are taken and used.
    pub fn turn_away(&self, at: impl Fn(&SocketAddr) -> bool) {
        for ((address, _), sockets) in self.sockets.iter().filter(|((address, _), _)| at(address)) {
            for socket in sockets {
                match listen::hear_nobody(socket, *address) {
                    Ok(()) => tracing::debug!(%address, "clients of a socket left are turned away"),
                    Err(error) => {
                        tracing::warn!(%error, %address, "a socket that is not read stays");
                    }
                }
            }
        }
    }

    /// Takes the sockets at `address`: of connections, or of datagrams.
    pub fn take(&mut self, address: SocketAddr, connections: bool) -> Vec<Socket> {
        self.sockets.remove(&(address, connections)).unwrap_or_default()
    }
}

fn place(socket: &Socket) -> Option<(SocketAddr, bool)> {
    let address = socket.local_addr().ok()?.as_socket()?;
    Some((address, socket.r#type().ok()? == Type::STREAM))
}

/// A way for connections, bounded.
pub fn connections() -> (mpsc::Sender<OwnedFd>, mpsc::Receiver<OwnedFd>) {
    mpsc::channel(CONNECTIONS_MAX)
}
