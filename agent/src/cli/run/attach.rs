//! The datapath's programs, put in place when the tables are filled.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    datapath::{Adopted, Datapath, Interface, Outcome, find_uplinks},
    podnet,
    reconcile::Attach,
    supervisor::TaskError,
};

/// Where they go.
pub(super) struct AttachDatapath {
    datapath: Datapath,
    uplinks: Vec<String>,
    /// Whether flows of another service proxy are to be taken over first: not where programs of ours
    /// have been in force.
    adopts: bool,
    /// The uplinks that no program can be at, as far as they were told.
    told: BTreeSet<Interface>,
}

impl AttachDatapath {
    /// The programs of a datapath, and the names of the uplinks where they are given.
    pub(super) fn new(datapath: Datapath, uplinks: Vec<String>) -> Self {
        let adopts = datapath.is_attached().is_ok_and(|attached| !attached);
        Self { datapath, uplinks, adopts, told: BTreeSet::new() }
    }

    /// Before the first program sees a packet.
    fn adopt(&self) {
        match self.datapath.adopt() {
            Ok(Adopted { flows: 0, ports: 0 }) => {}
            Ok(Adopted { flows, ports }) => tracing::info!(
                flows,
                ports,
                "took over flows of datagrams, and keeps source ports of connections, that \
                 kube-proxy's rules began"
            ),
            Err(error) => tracing::warn!(
                error = podnet::pods::chain(&error),
                "flows of datagrams that kube-proxy's rules began may go to other backends now"
            ),
        }
    }
}

impl Attach for AttachDatapath {
    fn attach(&mut self, addresses: &[IpAddr]) -> Result<usize, TaskError> {
        if self.adopts {
            self.adopt();
        }
        let found = find_uplinks(&self.uplinks, addresses)?;
        for interface in found.without_ethernet.difference(&self.told) {
            tracing::warn!(
                interface = interface.name,
                "leads to other hosts and has no Ethernet header: packets of services that pass it \
                 are not translated; sockets of this node are"
            );
        }
        self.told = found.without_ethernet;
        let uplinks: Vec<_> = found.devices.into_iter().collect();
        let sockets = self.datapath.attach_sockets()?;
        let packets = self.datapath.attach_uplinks(&uplinks)?;
        let mut attached = 0;
        for (hook, outcome) in sockets.into_iter().chain(packets) {
            tracing::debug!(hook, ?outcome, "attached");
            attached += usize::from(outcome == Outcome::Attached);
        }
        self.adopts = false;
        Ok(attached)
    }
}
