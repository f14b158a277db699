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
    runtime::Handle,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use super::tcp::Connections;
use super::{Resolver, tcp, udp, workers::Workers};

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

/// What is open at an address.
struct Opened {
    /// One for each thread that answers datagrams; the kernel divides clients among them.
    udp: Vec<Socket>,
    tcp: TcpListener,
}

/// The open sockets: UDP and TCP at each address.
#[derive(Debug)]
pub struct Listeners {
    resolver: Arc<Resolver>,
    connections: Arc<Connections>,
    open: BTreeMap<SocketAddr, (Audience, CancellationToken)>,
    tasks: JoinSet<()>,
    /// Behind the tasks, which end first.
    workers: Workers,
}

impl Listeners {
    /// None yet; all that will be open answers from `resolver`, datagrams by so many threads.
    pub fn new(resolver: Arc<Resolver>, connections: Arc<Connections>, threads: usize) -> Self {
        let (open, tasks) = (BTreeMap::new(), JoinSet::new());
        Self { resolver, connections, open, tasks, workers: Workers::start(threads) }
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
            let opened = open(*address, self.workers.handles().len())
                .and_then(|opened| self.serve(*address, *audience, opened));
            errors.extend(opened.err());
        }
        errors
    }

    fn serve(
        &mut self,
        address: SocketAddr,
        audience: Audience,
        opened: Opened,
    ) -> Result<(), ListenError> {
        let stop = CancellationToken::new();
        for (socket, worker) in opened.udp.into_iter().zip(self.workers.handles()) {
            let registered = {
                let _within = worker.enter();
                UdpSocket::from_std(socket.into())
            };
            let served = udp::Served {
                socket: registered.map_err(|error| ListenError::new("UDP", address, error))?,
                ipv6: address.is_ipv6(),
                resolver: Arc::clone(&self.resolver),
                audience,
                elsewhere: Handle::current(),
            };
            self.tasks.spawn_on(udp::serve(served, stop.clone()), &worker);
        }
        let (resolver, connections) = (Arc::clone(&self.resolver), Arc::clone(&self.connections));
        self.tasks.spawn(tcp::serve(
            opened.tcp,
            resolver,
            (audience, None),
            connections,
            stop.clone(),
        ));
        self.open.insert(address, (audience, stop));
        tracing::debug!(%address, ?audience, "listening");
        Ok(())
    }

    /// Closes all; returns when what is under way has been answered.
    pub async fn close(mut self) {
        for (_, stop) in self.open.values() {
            stop.cancel();
        }
        while self.tasks.join_next().await.is_some() {}
    }
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

/// All sockets at `address`, or none.
fn open(address: SocketAddr, threads: usize) -> Result<Opened, ListenError> {
    let udp = datagrams(address, threads);
    let udp = udp.map_err(|error| ListenError::new("UDP", address, error))?;
    Ok(Opened { udp, tcp: open_tcp(address)? })
}

/// So many sockets for datagrams to `address`, which share its port. The first asks for it alone:
/// another server that holds it, and would share it, is an error too.
fn datagrams(address: SocketAddr, count: usize) -> io::Result<Vec<Socket>> {
    let first = bind(address, Type::DGRAM, Protocol::UDP)?;
    let mut all = vec![first];
    for _ in 1..count {
        for socket in &all {
            socket.set_reuse_port(true)?;
        }
        let next = unbound(address, Type::DGRAM, Protocol::UDP)?;
        next.set_reuse_port(true)?;
        next.bind(&address.into())?;
        all.push(next);
    }
    for socket in &all {
        // As much as the system admits; with less it still works.
        let _smaller = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    }
    Ok(all)
}

fn bind(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = unbound(address, kind, protocol)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn unbound(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
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
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_a_port_that_nobody_else_has() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A port that is free, and then is another's that would share it.
            let other = unbound(address.parse().unwrap(), Type::DGRAM, Protocol::UDP).unwrap();
            other.set_reuse_port(true).unwrap();
            other.bind(&address.parse::<SocketAddr>().unwrap().into()).unwrap();
            let taken = other.local_addr().unwrap().as_socket().unwrap();
            let error = open(taken, 2).err().expect("an error");
            assert!(matches!(error, ListenError::InUse { transport: "UDP", .. }), "{error}");
            drop(other);
            let ours = datagrams(taken, 3).unwrap();
            assert_eq!(ours.len(), 3);
            assert!(
                ours.iter()
                    .all(|socket| { socket.local_addr().unwrap().as_socket() == Some(taken) })
            );
            assert!(bind(taken, Type::DGRAM, Protocol::UDP).is_err());
        }
    }
}
