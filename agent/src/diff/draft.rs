//! A plan in the making: what is to be done, by phase.

use mizzen_ebpf_abi::{
    addr::Addr,
    node::{NodeAddr, NodeConfig},
    service::{Backend4, Backend6, Frontend, FrontendKey, SetWord},
};

use super::{
    known::{BackendRecord, FREED4, FREED6, backend_record},
    plan::{Op, Plan, Refused},
};
use crate::{
    apply::maps::PodRange,
    desired::{Slot, node::DesiredNode},
};

#[derive(Default)]
pub(super) struct Draft {
    pub(super) put_node_addrs: Vec<(Addr, NodeAddr)>,
    pub(super) put_pod_ranges: Vec<(PodRange, u32)>,
    pub(super) node_config: Option<NodeConfig>,
    pub(super) backends4: Vec<(u32, Backend4)>,
    pub(super) backends6: Vec<(u32, Backend6)>,
    pub(super) ranges: Vec<(u32, Vec<u32>)>,
    pub(super) flips: Vec<(u32, SetWord)>,
    pub(super) put_frontends: Vec<(FrontendKey, Frontend)>,
    pub(super) removed_frontends: Vec<FrontendKey>,
    // Behind the barrier:
    pub(super) dead_sets: Vec<(u32, SetWord)>,
    /// By family and id.
    pub(super) freed_backends: Vec<(bool, u32)>,
    /// By offset and length.
    pub(super) freed_ranges: Vec<(u32, u32)>,
    pub(super) freed_sets: Vec<u32>,
    pub(super) removed_node_addrs: Vec<Addr>,
    pub(super) removed_pod_ranges: Vec<PodRange>,
    pub(super) refused: Vec<Refused>,
}

impl Draft {
    pub(super) fn write_backend(&mut self, id: u32, set: u32, slot: &Slot) {
        match backend_record(set, slot) {
            BackendRecord::V4(record) => self.backends4.push((id, record)),
            BackendRecord::V6(record) => self.backends6.push((id, record)),
        }
    }

    /// What the node's tables lack, and what they have too much.
    pub(super) fn node(&mut self, held: &DesiredNode, wanted: &DesiredNode) {
        self.put_node_addrs = wanted
            .addrs
            .iter()
            .filter(|(addr, value)| held.addrs.get(addr) != Some(value))
            .map(|(addr, value)| (*addr, *value))
            .collect();
        self.removed_node_addrs =
            held.addrs.keys().filter(|addr| !wanted.addrs.contains_key(addr)).copied().collect();
        self.put_pod_ranges = wanted
            .pod_ranges
            .iter()
            .filter(|(range, flags)| held.pod_ranges.get(range) != Some(flags))
            .map(|(range, flags)| (*range, *flags))
            .collect();
        self.removed_pod_ranges = held
            .pod_ranges
            .keys()
            .filter(|range| !wanted.pod_ranges.contains_key(range))
            .copied()
            .collect();
        self.node_config = (held.config != wanted.config).then_some(wanted.config);
    }

    /// Whether something is unlinked that running programs may still hold.
    fn unlinks(&self) -> bool {
        !(self.dead_sets.is_empty()
            && self.freed_backends.is_empty()
            && self.freed_ranges.is_empty()
            && self.freed_sets.is_empty())
    }

    pub(super) fn into_plan(self) -> Plan {
        let unlinks = self.unlinks();
        let mut ops = Vec::new();
        let mut push = |wanted: bool, op: Op| {
            if wanted {
                ops.push(op);
            }
        };
        push(!self.put_node_addrs.is_empty(), Op::PutNodeAddrs(self.put_node_addrs));
        push(!self.put_pod_ranges.is_empty(), Op::PutPodRanges(self.put_pod_ranges));
        if let Some(config) = self.node_config {
            push(true, Op::SetNodeConfig(config));
        }
        push(!self.backends4.is_empty(), Op::WriteBackends4(self.backends4));
        push(!self.backends6.is_empty(), Op::WriteBackends6(self.backends6));
        for (offset, words) in self.ranges {
            push(true, Op::WriteRange { offset, words });
        }
        push(!self.flips.is_empty(), Op::Flip(self.flips));
        push(!self.put_frontends.is_empty(), Op::PutFrontends(self.put_frontends));
        push(!self.removed_frontends.is_empty(), Op::RemoveFrontends(self.removed_frontends));
        push(unlinks, Op::Barrier);
        push(!self.dead_sets.is_empty(), Op::Flip(self.dead_sets));
        let freed = |ipv6: bool| self.freed_backends.iter().filter(move |(v6, _)| *v6 == ipv6);
        let freed4: Vec<_> = freed(false).map(|(_, id)| (*id, FREED4)).collect();
        let freed6: Vec<_> = freed(true).map(|(_, id)| (*id, FREED6)).collect();
        push(!freed4.is_empty(), Op::WriteBackends4(freed4));
        push(!freed6.is_empty(), Op::WriteBackends6(freed6));
        push(!self.removed_node_addrs.is_empty(), Op::RemoveNodeAddrs(self.removed_node_addrs));
        push(!self.removed_pod_ranges.is_empty(), Op::RemovePodRanges(self.removed_pod_ranges));
        Plan { ops, refused: self.refused }
    }
}
