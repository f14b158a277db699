//! Questions over TLS (RFC 7858): the same as by TCP, behind a handshake. The certificate is that
//! of the moment; connections that are open keep theirs.

use std::{collections::BTreeSet, net::SocketAddr, os::fd::AsFd, sync::Arc};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Resolver,
    listen::{Audience, tcp_listener},
    open::Open,
    tcp::{self, Connections},
};
use crate::{
    dns::{succession::Inherited, tls::Listener},
    handover::OpenSockets,
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
    /// What can be left to another process is where clients come, not those who are there.
    open: Open<()>,
    /// What was made of `said`.
    acceptor: Option<Acceptor>,
    said: Option<Listener>,
}

impl SecureListeners {
    /// None yet; all that will be open answers from `resolver`, and is shown in `shown`.
    pub fn new(
        resolver: Arc<Resolver>,
        connections: Arc<Connections>,
        shown: Arc<OpenSockets>,
    ) -> Self {
        Self { resolver, connections, open: Open::new(shown), acceptor: None, said: None }
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
        let acceptor = self.acceptor.clone();
        let wanted = addresses.iter().filter(|_| acceptor.is_some()).map(|address| (*address, ()));
        let missing = self.open.close_others(&wanted.collect());
        let Some(acceptor) = acceptor else { return problems };
        for (address, ()) in missing {
            match tcp_listener(address, inherited) {
                Ok(socket) => {
                    let stop = self.open.note(address, (), [&socket as &dyn AsFd]);
                    let (resolver, connections) =
                        (Arc::clone(&self.resolver), Arc::clone(&self.connections));
                    let way = (Audience::Everyone, Some(acceptor.clone()));
                    self.open.tasks.spawn(tcp::serve(socket, resolver, way, connections, stop));
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
    pub async fn close(self) {
        self.open.close().await;
    }
}
