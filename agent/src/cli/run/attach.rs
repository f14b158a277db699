//! The datapath's programs, put in place when the tables are filled.

use std::net::IpAddr;

use crate::{
    datapath::{Datapath, Outcome, find_uplinks},
    netfilter::conntrack,
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
}

impl AttachDatapath {
    /// The programs of a datapath, and the names of the uplinks where they are given.
    pub(super) fn new(datapath: Datapath, uplinks: Vec<String>) -> Self {
        let adopts = datapath.is_attached().is_ok_and(|attached| !attached);
        Self { datapath, uplinks, adopts }
    }

    /// Once, before the first program sees a packet.
    fn adopt(&mut self) {
        if !std::mem::take(&mut self.adopts) {
            return;
        }
        let adopted = conntrack::translated()
            .map_err(TaskError::from)
            .and_then(|connections| self.datapath.adopt(&connections).map_err(TaskError::from));
        match adopted {
            Ok(0) => {}
            Ok(flows) => {
                tracing::info!(flows, "took over flows of datagrams from kube-proxy's rules");
            }
            Err(error) => tracing::warn!(
                %error,
                "flows of datagrams that kube-proxy's rules began may go to other backends now"
            ),
        }
    }
}

impl Attach for AttachDatapath {
    fn attach(&mut self, addresses: &[IpAddr]) -> Result<usize, TaskError> {
        self.adopt();
        let uplinks: Vec<_> = find_uplinks(&self.uplinks, addresses)?.into_iter().collect();
        let sockets = self.datapath.attach_sockets()?;
        let packets = self.datapath.attach_uplinks(&uplinks)?;
        let mut attached = 0;
        for (hook, outcome) in sockets.into_iter().chain(packets) {
            tracing::debug!(hook, ?outcome, "attached");
            attached += usize::from(outcome == Outcome::Attached);
        }
        Ok(attached)
    }
}
