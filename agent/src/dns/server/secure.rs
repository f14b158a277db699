//! Questions over TLS (RFC 7858): the same as by TCP, behind a handshake. The certificate is that
//! of the moment; connections that are open keep theirs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::fd::AsFd,
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    Resolver,
    listen::{Audience, tcp_listener},
    tcp::{self, Connections},
};
use crate::dns::{
    succession::{Inherited, OpenSockets},
    tls::Listener,
};

/// Makes connections secure, by the configuration of the moment.
#[derive(Clone, Debug)]
pub(super) struct Acceptor(Arc<ArcSwap<ServerConfig>>);

impl Acceptor {
    pub(super) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.load_full()).accept(stream).await
    }
}

/// The open sockets.
#[derive(Debug)]
pub struct SecureListeners {
    resolver: Arc<Resolver>,
    connections: Arc<Connections>,
    open: BTreeMap<SocketAddr, CancellationToken>,
    /// What was made of `said`.
    acceptor: Option<Acceptor>,
    said: Option<Listener>,
    tasks: JoinSet<()>,
    /// What we can leave to another process: where clients come, not those who are there.
    shown: Arc<OpenSockets>,
}

impl SecureListeners {
    /// None yet; all that will be open answers from `resolver`, and is shown in `shown`.
    pub fn new(
        resolver: Arc<Resolver>,
        connections: Arc<Connections>,
        shown: Arc<OpenSockets>,
    ) -> Self {
        Self {
            resolver,
            connections,
            open: BTreeMap::new(),
            acceptor: None,
            said: None,
            tasks: JoinSet::new(),
            shown,
        }
    }

    /// Has what `listener` says in force at these addresses, nothing where there is none. Sockets
    /// in `inherited` are taken before others are opened. What can't be had is said, and is tried
    /// again with the next call.
    pub fn reconcile(
        &mut self,
        addresses: &BTreeSet<SocketAddr>,
        listener: Option<&Listener>,
        inherited: &mut Inherited,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        if self.said.as_ref() != listener {
            match listener.map(Listener::server).transpose() {
                Ok(config) => {
                    self.put_in_force(config);
                    self.said = listener.cloned();
                }
                // What was in force stays so.
                Err(why) => problems.push(format!("DNS over TLS: {why}")),
            }
        }
        let wanted = |address: &SocketAddr| self.acceptor.is_some() && addresses.contains(address);
        self.open.retain(|address, stop| {
            let keep = wanted(address);
            if !keep {
                stop.cancel();
                self.shown.forget(address);
            }
            keep
        });
        while self.tasks.try_join_next().is_some() {}
        let Some(acceptor) = self.acceptor.clone() else { return problems };
        for address in addresses {
            if self.open.contains_key(address) {
                continue;
            }
            match tcp_listener(*address, inherited) {
                Ok(socket) => {
                    let stop = CancellationToken::new();
                    self.shown.note(*address, [&socket as &dyn AsFd]);
                    let (resolver, connections) =
                        (Arc::clone(&self.resolver), Arc::clone(&self.connections));
                    let way = (Audience::Everyone, Some(acceptor.clone()));
                    let task = tcp::serve(socket, resolver, way, connections, stop.clone());
                    self.tasks.spawn(task);
                    self.open.insert(*address, stop);
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
        problems
    }

    fn put_in_force(&mut self, config: Option<Arc<ServerConfig>>) {
        match (&self.acceptor, config) {
            (Some(acceptor), Some(config)) => acceptor.0.store(config),
            (None, Some(config)) => self.acceptor = Some(Acceptor(Arc::new(ArcSwap::new(config)))),
            (_, None) => self.acceptor = None,
        }
    }

    /// Closes all; returns when what is under way has been answered.
    pub async fn close(mut self) {
        for (address, stop) in &self.open {
            stop.cancel();
            self.shown.forget(address);
        }
        while self.tasks.join_next().await.is_some() {}
    }
}
