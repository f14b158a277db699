//! Listening sockets, on the way from one agent to the next.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use socket2::{Socket, Type};

/// The open listening sockets, a second descriptor of each.
#[derive(Debug, Default)]
pub struct OpenSockets {
    sockets: Mutex<BTreeMap<SocketAddr, Vec<OwnedFd>>>,
}

impl OpenSockets {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Vec<OwnedFd>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes `sockets` at `address`. A socket that can't be noted is served all the same, and is not
    /// passed on.
    pub fn note<'a>(&self, address: SocketAddr, sockets: impl IntoIterator<Item = &'a dyn AsFd>) {
        let doubles = sockets.into_iter().map(|socket| socket.as_fd().try_clone_to_owned());
        match doubles.collect::<io::Result<Vec<_>>>() {
            Ok(doubles) => drop(self.lock().insert(address, doubles)),
            Err(error) => tracing::warn!(%error, %address, "sockets can't be handed over"),
        }
    }

    /// Forgets those at `address`, which closes them when nobody serves them.
    pub fn forget(&self, address: &SocketAddr) {
        self.lock().remove(address);
    }

    /// All of them, once more.
    pub fn duplicates(&self) -> io::Result<Vec<OwnedFd>> {
        self.lock().values().flatten().map(OwnedFd::try_clone).collect()
    }
}

/// The ports of health, metrics and health checks of services that the agent before this one gave,
/// by the address at which each listens. Who connects meanwhile waits in their queues.
#[derive(Debug, Default)]
pub struct GivenPorts {
    ports: BTreeMap<SocketAddr, TcpListener>,
}

impl GivenPorts {
    /// These; what is no listening socket of TCP is closed.
    pub(super) fn new(sockets: Vec<OwnedFd>) -> Self {
        let ports = sockets.into_iter().map(Socket::from).filter_map(|socket| {
            let listens = socket.r#type().ok()? == Type::STREAM && socket.is_listener().ok()?;
            let address = socket.local_addr().ok()?.as_socket().filter(|_| listens)?;
            Some((address, socket.into()))
        });
        Self { ports: ports.collect() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// The one that listens at `address`, once more: it stays among these. On a kernel without IPv6
    /// all addresses are those of IPv4.
    pub fn at(&self, address: SocketAddr) -> io::Result<Option<tokio::net::TcpListener>> {
        let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
        let of_ipv4 = || self.ports.get(&all).filter(|_| address.ip().is_unspecified());
        let Some(port) = self.ports.get(&address).or_else(of_ipv4) else { return Ok(None) };
        let port = port.try_clone()?;
        port.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(port).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn given_ports_are_found_by_their_addresses_and_nothing_else_is_one() {
        let listens = TcpListener::bind("127.0.0.1:0").unwrap();
        let all = TcpListener::bind("0.0.0.0:0").unwrap();
        let [at, of_all] = [&listens, &all].map(|port| port.local_addr().unwrap());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(at).unwrap();
        let no_ports = [udp.local_addr().unwrap(), connected.local_addr().unwrap()];
        let given = GivenPorts::new(vec![listens.into(), all.into(), udp.into(), connected.into()]);
        for address in [at, of_all, ([0, 0, 0, 0, 0, 0, 0, 0], of_all.port()).into()] {
            let found = given.at(address).unwrap().expect("a port");
            assert_eq!(found.local_addr().unwrap().port(), address.port());
        }
        for address in no_ports {
            assert!(given.at(address).unwrap().is_none(), "{address}");
        }
        drop(given);
        assert!(TcpListener::bind(at).is_ok(), "closed with them");
    }
}
