//! Which sockets are open: brought from what is to what shall be, as often as asked.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use super::tcp::Connections;
use super::{Resolver, tcp, udp};

/// Room for questions that come while others are answered.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Who is answered at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Everyone who reaches it: only this node and its pods have a way to it.
    Everyone,
    /// The cluster's nodes and pods.
    Peers,
}

impl Audience {
    pub(super) fn admits(self, resolver: &Resolver, source: IpAddr) -> bool {
        match self {
            Self::Everyone => true,
            Self::Peers => resolver.peers.load().admit(source),
        }
    }
}

/// A socket that can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has the port.
    #[error(
        "{transport} {address} is in use: another DNS server holds it; stop it, or switch this role \
         off with --dns=false"
    )]
    InUse {
        /// UDP or TCP.
        transport: &'static str,
        /// The address and port.
        address: SocketAddr,
    },
    /// Ports below 1024 need privileges.
    #[error("{transport} {address} needs the capability CAP_NET_BIND_SERVICE; run as root")]
    NotPermitted {
        /// UDP or TCP.
        transport: &'static str,
        /// The address and port.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("listen on {transport} {address}: {source}")]
    Io {
        /// UDP or TCP.
        transport: &'static str,
        /// The address and port.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl ListenError {
    fn new(transport: &'static str, address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { transport, address },
            io::ErrorKind::PermissionDenied => Self::NotPermitted { transport, address },
            _ => Self::Io { transport, address, source },
        }
    }
}

/// The open sockets: UDP and TCP at each address.
#[derive(Debug)]
pub struct Listeners {
    resolver: Arc<Resolver>,
    connections: Arc<Connections>,
    open: BTreeMap<SocketAddr, (Audience, CancellationToken)>,
    tasks: JoinSet<()>,
}

impl Listeners {
    /// None yet; all that will be open answers from `resolver`.
    pub fn new(resolver: Arc<Resolver>, connections: Arc<Connections>) -> Self {
        Self { resolver, connections, open: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Opens what is missing and closes what is no longer wanted. What can't be opened is said,
    /// and is tried again with the next call.
    pub fn reconcile(&mut self, wanted: &BTreeMap<SocketAddr, Audience>) -> Vec<ListenError> {
        self.open.retain(|address, (audience, stop)| {
            let keep = wanted.get(address) == Some(audience);
            if !keep {
                stop.cancel();
            }
            keep
        });
        while self.tasks.try_join_next().is_some() {}
        let mut errors = Vec::new();
        for (address, audience) in wanted {
            if self.open.contains_key(address) {
                continue;
            }
            match open(*address) {
                Ok((udp, tcp)) => self.serve(*address, *audience, udp, tcp),
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    fn serve(&mut self, address: SocketAddr, audience: Audience, udp: UdpSocket, tcp: TcpListener) {
        let stop = CancellationToken::new();
        let resolver = || Arc::clone(&self.resolver);
        self.tasks.spawn(udp::serve(udp, resolver(), audience, stop.clone()));
        let connections = Arc::clone(&self.connections);
        self.tasks.spawn(tcp::serve(tcp, resolver(), (audience, None), connections, stop.clone()));
        self.open.insert(address, (audience, stop));
        tracing::debug!(%address, ?audience, "listening");
    }

    /// Closes all; returns when what is under way has been answered.
    pub async fn close(mut self) {
        for (_, stop) in self.open.values() {
            stop.cancel();
        }
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Both sockets at `address`, or neither.
fn open(address: SocketAddr) -> Result<(UdpSocket, TcpListener), ListenError> {
    let udp = bind(address, Type::DGRAM, Protocol::UDP)
        .and_then(|socket| {
            // As much as the system admits; with less it still works.
            let _smaller = socket.set_recv_buffer_size(RECEIVE_BUFFER);
            UdpSocket::from_std(socket.into())
        })
        .map_err(|error| ListenError::new("UDP", address, error))?;
    Ok((udp, open_tcp(address)?))
}

/// A TCP socket at `address`.
pub(super) fn open_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    bind(address, Type::STREAM, Protocol::TCP)
        .and_then(|socket| {
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        })
        .map_err(|error| ListenError::new("TCP", address, error))
}

fn bind(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            // The address is a local route and belongs to no interface, which for IPv6 means that
            // only a free bind takes it.
            socket.set_freebind_v6(true)?;
        }
    }
    if kind == Type::STREAM {
        // Connections of the process before us may still be closing.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}
