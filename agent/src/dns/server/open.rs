//! What listens, by address: brought from what is to what shall be. Whoever opens sockets says how;
//! that they are closed when they are no longer wanted, and shown to who comes after this process,
//! is the same for all.

use std::{collections::BTreeMap, net::SocketAddr, os::fd::AsFd, sync::Arc};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::handover::OpenSockets;

/// What is open, and what it is for at each address.
#[derive(Debug)]
pub(in crate::dns) struct Open<W> {
    at: BTreeMap<SocketAddr, (W, CancellationToken)>,
    /// Those that serve.
    pub(in crate::dns) tasks: JoinSet<()>,
    /// What can be left to another process.
    shown: Arc<OpenSockets>,
}

impl<W: Copy + PartialEq> Open<W> {
    /// Nothing yet; what will be open is shown in `shown`.
    pub(in crate::dns) fn new(shown: Arc<OpenSockets>) -> Self {
        Self { at: BTreeMap::new(), tasks: JoinSet::new(), shown }
    }

    /// How many addresses have something open.
    pub(in crate::dns) fn len(&self) -> usize {
        self.at.len()
    }

    /// What an address is open for, and what closes it.
    pub(in crate::dns) fn get(&self, address: &SocketAddr) -> Option<&(W, CancellationToken)> {
        self.at.get(address)
    }

    /// Closes what is not wanted, or wanted for something else; what is then missing.
    pub(in crate::dns) fn close_others(
        &mut self,
        wanted: &BTreeMap<SocketAddr, W>,
    ) -> Vec<(SocketAddr, W)> {
        let Self { at, tasks, shown } = self;
        at.retain(|address, (what, stop)| {
            let keep = wanted.get(address) == Some(what);
            if !keep {
                stop.cancel();
                shown.forget(address);
            }
            keep
        });
        while tasks.try_join_next().is_some() {}
        let missing = wanted.iter().filter(|(address, _)| !at.contains_key(address));
        missing.map(|(address, what)| (*address, *what)).collect()
    }

    /// Notes that an address is open by these sockets; what closes it.
    pub(in crate::dns) fn note<'a>(
        &mut self,
        address: SocketAddr,
        what: W,
        sockets: impl IntoIterator<Item = &'a dyn AsFd>,
    ) -> CancellationToken {
        let stop = CancellationToken::new();
        self.shown.note(address, sockets);
        self.at.insert(address, (what, stop.clone()));
        stop
    }

    /// Takes back that an address is open.
    pub(in crate::dns) fn forget(&mut self, address: &SocketAddr) {
        self.at.remove(address);
        self.shown.forget(address);
    }

    /// Closes all; returns when what is under way is done.
    pub(in crate::dns) async fn close(mut self) {
        for (address, (_, stop)) in &self.at {
            stop.cancel();
            self.shown.forget(address);
        }
        while self.tasks.join_next().await.is_some() {}
    }
}
