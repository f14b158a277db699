//! Which sockets are open: brought from what is to what shall be, as often as asked.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Shutdown, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    runtime::Handle,
};

pub use super::tcp::Connections;
use super::{
    Resolver,
    batch::Couples,
    open::Open,
    tcp::{self, Client},
    udp,
    workers::Workers,
};
use crate::{dns::succession::Inherited, handover::OpenSockets};

/// Room for questions that come while others are answered.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// The port to which a socket is connected from which no more questions shall come (RFC 863).
pub(super) const DISCARD: u16 = 9;

/// Who is answered at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Everyone who reaches it: this node, its pods, and who else has a route there, as with any
    /// Service.
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
    /// One for each thread that answers datagrams, or more; the kernel divides clients among them.
    udp: Vec<Socket>,
    tcp: TcpListener,
}

/// The open sockets: UDP and TCP at each address.
#[derive(Debug)]
pub struct Listeners {
    resolver: Arc<Resolver>,
    connections: Arc<Connections>,
    open: Open<Audience>,
    /// Behind the tasks, which end first.
    workers: Workers,
    /// What another process left us.
    pub(in crate::dns) inherited: Inherited,
}

impl Listeners {
    /// None yet; all that will be open answers from `resolver`, datagrams by so many threads. Those
    /// in `inherited` are taken before others are opened, and all are shown in `shown`.
    pub fn new(
        resolver: Arc<Resolver>,
        connections: Arc<Connections>,
        threads: usize,
        inherited: Inherited,
        shown: Arc<OpenSockets>,
    ) -> Self {
        let (open, workers) = (Open::new(shown), Workers::start(threads));
        Self { resolver, connections, open, workers, inherited }
    }

    /// How many addresses are served.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Opens what is missing and closes what is no longer wanted. What can't be opened is said,
    /// and is tried again with the next call.
    pub fn reconcile(&mut self, wanted: &BTreeMap<SocketAddr, Audience>) -> Vec<ListenError> {
        let missing = self.open.close_others(wanted).into_iter();
        let opened = missing.map(|(address, audience)| {
            open(address, self.workers.handles().len(), &mut self.inherited)
                .and_then(|opened| self.serve(address, audience, opened))
        });
        opened.filter_map(Result::err).collect()
    }

    fn serve(
        &mut self,
        address: SocketAddr,
        audience: Audience,
        Opened { udp, tcp }: Opened,
    ) -> Result<(), ListenError> {
        let workers = self.workers.handles();
        let sockets = udp.iter().map(|socket| socket as &dyn AsFd);
        let stop = self.open.note(address, audience, sockets.chain([&tcp as &dyn AsFd]));
        // However many there are all are read: the kernel divides clients among them.
        let registered = udp.into_iter().zip(workers.iter().cycle()).map(|(socket, worker)| {
            let _within = worker.enter();
            Ok((UdpSocket::from_std(socket.into())?, worker))
        });
        let registered = registered.collect::<io::Result<Vec<_>>>().map_err(|error| {
            self.open.forget(&address);
            ListenError::new("UDP", address, error)
        })?;
        for (socket, worker) in registered {
            let served = udp::Served {
                socket,
                ipv6: address.is_ipv6(),
                resolver: Arc::clone(&self.resolver),
                audience,
                connections: Arc::clone(&self.connections),
                elsewhere: Handle::current(),
                // Peers are behind a device of which nobody knows how well it takes trains apart.
                couples: Couples::new(audience == Audience::Everyone),
            };
            self.open.tasks.spawn_on(udp::serve(served, stop.clone()), worker);
        }
        let (resolver, connections) = (Arc::clone(&self.resolver), Arc::clone(&self.connections));
        let way = (audience, None);
        self.open.tasks.spawn(tcp::serve(tcp, resolver, way, connections, stop));
        tracing::debug!(%address, ?audience, "listening");
        Ok(())
    }

    /// Serves on a connection that another process accepted, where this one listens too.
    pub fn serve_on(&mut self, connection: OwnedFd) {
        let stream = TcpStream::from_std(connection.into());
        let found = stream.and_then(|stream| {
            let ends = (stream.local_addr()?, stream.peer_addr()?);
            Ok((stream, ends))
        });
        let (stream, (local, peer)) = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "a connection ended while it was passed on");
                return;
            }
        };
        let Some((audience, stop)) = self.open.get(&local) else { return };
        if audience.admits(&self.resolver, peer.ip())
            && let Some(counted) = self.connections.count(peer.ip())
        {
            let client = Client { resolver: Arc::clone(&self.resolver), address: peer, counted };
            let stop = stop.clone();
            self.open.tasks.spawn(tcp::serve_one(stream, client, None, stop));
        }
    }

    /// Closes what was inherited and is not served.
    pub fn drop_inherited(&mut self) {
        self.inherited = Inherited::default();
    }

    /// Closes all; returns when what is under way has been answered.
    pub async fn close(self) {
        self.open.close().await;
    }
}

/// All sockets at `address`, or none.
fn open(
    address: SocketAddr,
    threads: usize,
    inherited: &mut Inherited,
) -> Result<Opened, ListenError> {
    let udp = datagrams(address, threads, inherited.take(address, false));
    let udp = udp.map_err(|error| ListenError::new("UDP", address, error))?;
    Ok(Opened { udp, tcp: tcp_listener(address, inherited)? })
}

/// A listener at `address`: the one that another process left, or a new one.
pub(in crate::dns) fn tcp_listener(
    address: SocketAddr,
    inherited: &mut Inherited,
) -> Result<TcpListener, ListenError> {
    let left = inherited.take(address, true).pop().map(Ok);
    left.unwrap_or_else(|| bind(address, Type::STREAM, Protocol::TCP))
        .and_then(|socket| {
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        })
        .map_err(|error| ListenError::new("TCP", address, error))
}

/// At least so many sockets for datagrams to `address`, which share its port: all that another
/// process left, in whose queues questions may be, and more beside them. Without any the first asks
/// for the port alone: another server that holds it, and would share it, is an error too.
fn datagrams(address: SocketAddr, count: usize, left: Vec<Socket>) -> io::Result<Vec<Socket>> {
    let mut all = left;
    if all.is_empty() {
        all.push(bind(address, Type::DGRAM, Protocol::UDP)?);
    }
    while all.len() < count {
        for socket in &all {
            socket.set_reuse_port(true)?;
        }
        let next = unbound(address, Type::DGRAM, Protocol::UDP)?;
        next.set_reuse_port(true)?;
        next.bind(&address.into())?;
        all.push(next);
    }
    for socket in &all {
        hear_everyone(socket)?;
        // As much as the system admits; with less it still works.
        let _smaller = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    }
    Ok(all)
}

/// Takes back what an agent that ended may have done to a socket that was kept, so that nobody asked
/// there any more: it connected it. The address and the port stay.
fn hear_everyone(socket: &Socket) -> io::Result<()> {
    if socket.peer_addr().is_ok() {
        rustix::net::connect_unspec(socket)?;
    }
    Ok(())
}

/// Has the kernel find a socket at `address` for nobody: one of datagrams is connected, a listener
/// does not listen. Address and port stay.
pub(in crate::dns) fn hear_nobody(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if socket.r#type()? == Type::STREAM {
        return if socket.is_listener()? { socket.shutdown(Shutdown::Both) } else { Ok(()) };
    }
    if socket.peer_addr().is_err() {
        socket.connect(&SocketAddr::new(address.ip(), DISCARD).into())?;
    }
    Ok(())
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
            let error = open(taken, 2, &mut Inherited::default()).err().expect("an error");
            assert!(matches!(error, ListenError::InUse { transport: "UDP", .. }), "{error}");
            drop(other);
            let ours = datagrams(taken, 3, Vec::new()).unwrap();
            assert_eq!(ours.len(), 3);
            assert!(
                ours.iter()
                    .all(|socket| { socket.local_addr().unwrap().as_socket() == Some(taken) })
            );
            assert!(bind(taken, Type::DGRAM, Protocol::UDP).is_err());
        }
    }

    #[test]
    fn sockets_that_hear_nobody_hear_everyone_again_when_they_are_used() {
        // Of the loopback addresses one that no other test dials.
        for address in ["127.77.3.48:0", "[::1]:0"] {
            let any = bind(address.parse().unwrap(), Type::DGRAM, Protocol::UDP).unwrap();
            let at = any.local_addr().unwrap().as_socket().unwrap();
            drop(any);
            let udp = bind(at, Type::DGRAM, Protocol::UDP).unwrap();
            let tcp = bind(at, Type::STREAM, Protocol::TCP).unwrap();
            tcp.listen(BACKLOG).unwrap();
            let dial = || std::net::TcpStream::connect(at);
            let ask = || {
                let client = std::net::UdpSocket::bind((at.ip(), 0)).unwrap();
                client.connect(at).unwrap();
                client.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
                client.send(&[7]).unwrap();
                client
            };
            let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            assert!(dial().is_ok());
            // The other process holds them too.
            let doubles = [udp.try_clone().unwrap(), tcp.try_clone().unwrap()];
            let mut left = Inherited::new(doubles.map(OwnedFd::from).into());
            left.turn_away(|_| false);
            assert!(dial().is_ok());
            // Twice is as once.
            left.turn_away(|_| true);
            left.turn_away(|_| true);
            assert!(refused(&dial().unwrap_err()), "nobody listens");
            assert!(refused(&ask().recv(&mut [0; 1]).unwrap_err()), "nobody is there");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            let _within = runtime.enter();
            let opened = open(at, 1, &mut left).unwrap();
            assert!(dial().is_ok());
            let _client = ask();
            opened.udp[0].set_nonblocking(false).unwrap();
            opened.udp[0].set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            assert!(opened.udp[0].recv(&mut [std::mem::MaybeUninit::uninit(); 1]).is_ok());
        }
    }

    #[test]
    fn what_another_process_left_is_used_whole() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let any = bind(address.parse().unwrap(), Type::DGRAM, Protocol::UDP).unwrap();
            let taken = any.local_addr().unwrap().as_socket().unwrap();
            drop(any);
            // By its number, as ours are: a port that the kernel chose goes with the connection.
            let first = bind(taken, Type::DGRAM, Protocol::UDP).unwrap();
            // One of an agent that has no threads for it, more for this one, fewer for the next.
            for (count, expected) in [(3, 3), (1, 3), (4, 4)] {
                let before = datagrams(taken, 3, vec![first.try_clone().unwrap()]).unwrap();
                let numbers = |all: &[Socket]| -> Vec<_> {
                    all.iter().map(|socket| socket.cookie().unwrap()).collect()
                };
                let numbers_before = numbers(&before);
                // As an agent does that thinks nobody goes on with them.
                before[0].connect(&SocketAddr::new(taken.ip(), 9).into()).unwrap();
                let ours = datagrams(taken, count, before).unwrap();
                assert_eq!(ours.len(), expected);
                assert!(numbers(&ours).starts_with(&numbers_before));
                assert!(ours.iter().all(|socket| socket.peer_addr().is_err()), "one is deaf");
                let address = |socket: &Socket| socket.local_addr().unwrap().as_socket();
                assert!(ours.iter().all(|socket| address(socket) == Some(taken)));
            }
        }
    }
}
