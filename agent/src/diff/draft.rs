//! A plan in the making: what is to be done, by phase.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use mizzen_ebpf_abi::{
    addr::Addr,
    maps,
    node::{NodeAddr, NodeConfig, cluster_range_flags, node_addr_flags},
    service::{Backend4, Backend6, Frontend, FrontendKey, SetWord, backend_flags},
};

use super::{
    known::{BackendRecord, KnownSet, backend_record, freed_record, reserved_record},
    limbo::Unlinked,
    plan::{Op, Plan, Refused, Reset},
};
use crate::{
    apply::maps::{AddrRange, Capacities, Growing, SourceRange},
    desired::{SetKey, Slot, gone::Deleted, node::DesiredNode},
    model::service::Protocol,
};

#[derive(Default)]
pub(super) struct Draft {
    pub(super) grown: Vec<(Growing, u32)>,
    pub(super) put_node_addrs: Vec<(Addr, NodeAddr)>,
    pub(super) put_cluster_ranges: Vec<(AddrRange, u32)>,
    pub(super) node_config: Option<NodeConfig>,
    /// What makes room for more important entries, before these are put.
    pub(super) evicted_node_addrs: Vec<Addr>,
    pub(super) evicted_cluster_ranges: Vec<AddrRange>,
    pub(super) put_source_ranges: Vec<SourceRange>,
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
    /// Freed, but their ids stay with the endpoints: id, set, and what the record says.
    reserved_backends: Vec<(u32, u32, Slot)>,
    /// Whether one of these was live.
    idles: bool,
    /// Freed before; their ids may be used again now.
    pub(super) forgotten_backends: Vec<(bool, u32)>,
    /// Which of the freed ones were deleted endpoints.
    gone_backends: BTreeMap<(bool, u32), (IpAddr, u16)>,
    /// By offset and length.
    pub(super) freed_ranges: Vec<(u32, u32)>,
    pub(super) freed_sets: Vec<u32>,
    pub(super) removed_source_ranges: Vec<SourceRange>,
    pub(super) removed_node_addrs: Vec<Addr>,
    pub(super) removed_cluster_ranges: Vec<AddrRange>,
    pub(super) refused: Vec<Refused>,
    pub(super) new_sets: Vec<u32>,
    /// The endpoints that were deleted, by set; those that were seen to are taken out.
    pub(super) deleted: Deleted,
    resets: Vec<Reset>,
}

impl Draft {
    pub(super) fn write_backend(&mut self, id: u32, set: u32, slot: &Slot) {
        match backend_record(set, slot) {
            BackendRecord::V4(record) => self.backends4.push((id, record)),
            BackendRecord::V6(record) => self.backends6.push((id, record)),
        }
    }

    /// Takes note of the deleted endpoints of a set that has this generation so far. The record of
    /// one that is in use says so before anything changes: should this agent not live to see the
    /// barrier over, the next one finds it ([`super::late`]).
    pub(super) fn bury(&mut self, key: &SetKey, set: &KnownSet, generation: u32) {
        let Some(dead) = self.deleted.remove(key) else { return };
        let live = set.backends.by_address();
        for (at, backend) in set.ids_at(dead) {
            let (protocol, endpoint) = (key.protocol, at.into());
            self.mark(Reset { set: set.id, protocol, endpoint, generation, backend });
            if let Some(held) = live.get(at) {
                let flags = held.flags | backend_flags::GONE;
                self.write_backend(held.id, set.id, &Slot { addr: at.0, port: at.1, flags });
            }
        }
    }

    /// Takes note of an endpoint that does not serve any more, in a set that had this generation so
    /// far and whose datagram sockets shall have those that do. Packets find them by themselves.
    pub(super) fn forsake(&mut self, set: u32, at: (IpAddr, u16), generation: u32) {
        let (protocol, endpoint) = (Protocol::Udp, at.into());
        self.resets.push(Reset { set, protocol, endpoint, generation, backend: None });
    }

    /// Reserves an id of a set for an endpoint that takes no new flows. Where its record is live, it
    /// says before anything changes what an agent that starts has to know: that it terminates.
    pub(super) fn reserve(&mut self, id: u32, set: u32, slot: Slot, was_live: bool) {
        if was_live && slot.flags & backend_flags::TERMINATING != 0 {
            self.write_backend(id, set, &slot);
        }
        self.idles |= was_live;
        self.reserved_backends.push((id, set, slot));
    }

    /// Takes up what a plan that failed was to reset: what was deleted then, in the generation of
    /// then, whoever has its address by now.
    pub(super) fn resume(&mut self, unfinished: Vec<Reset>) {
        for reset in unfinished {
            self.mark(reset);
        }
    }

    fn mark(&mut self, reset: Reset) {
        if let Some(id) = reset.backend {
            let (ip, port) = (reset.endpoint.ip(), reset.endpoint.port());
            self.gone_backends.insert((ip.is_ipv6(), id), (ip, port));
        }
        self.resets.push(reset);
    }

    /// Whether an id was that of an endpoint that is deleted.
    pub(super) fn is_gone(&self, ipv6: bool, id: u32) -> bool {
        self.gone_backends.contains_key(&(ipv6, id))
    }

    /// The records of backends that are freed.
    fn freed_records(&self) -> BTreeMap<(bool, u32), BackendRecord> {
        let record = |&(ipv6, id): &(bool, u32)| {
            ((ipv6, id), freed_record(ipv6, self.gone_backends.get(&(ipv6, id)).copied()))
        };
        let freed = self.freed_backends.iter().chain(&self.forgotten_backends).map(record);
        let reserved = self
            .reserved_backends
            .iter()
            .map(|(id, set, slot)| ((slot.addr.is_ipv6(), *id), reserved_record(*set, slot)));
        freed.chain(reserved).collect()
    }

    /// What the node's tables lack, and what they have too much; how they are afterwards. Where a
    /// table is full the rest goes on: services need not wait for an address too many.
    pub(super) fn node(
        &mut self,
        held: &DesiredNode,
        wanted: &Arc<DesiredNode>,
        limits: &Capacities,
    ) -> Arc<DesiredNode> {
        let takes_node_ports = |value: &NodeAddr| value.flags & node_addr_flags::NODE_PORTS != 0;
        // Of a pod range that is left out nothing is lost but who is a pod; of a range of services,
        // what is dialled there and nobody has is no longer dropped, and leaves the node (B10).
        let of_services = |uses: &u32| uses & cluster_range_flags::SERVICES != 0;
        let Additions { put, left_out: no_addrs, evicted } =
            additions(&held.addrs, &wanted.addrs, limits.node_addrs, takes_node_ports);
        self.put_node_addrs = put;
        self.evicted_node_addrs = evicted;
        self.removed_node_addrs = removals(&held.addrs, &wanted.addrs);
        let (ranges, most) = (&held.cluster_ranges, limits.cluster_ranges);
        let Additions { put, left_out: no_ranges, evicted } =
            additions(ranges, &wanted.cluster_ranges, most, of_services);
        self.put_cluster_ranges = put;
        self.evicted_cluster_ranges = evicted;
        self.removed_cluster_ranges = removals(&held.cluster_ranges, &wanted.cluster_ranges);
        self.node_config = (held.config != wanted.config).then_some(wanted.config);
        if no_addrs.is_empty() && no_ranges.is_empty() {
            return Arc::clone(wanted);
        }
        let names: Vec<_> = no_addrs.iter().map(|addr| format!("node address {addr}")).collect();
        self.refused.extend(Refused::left_out(&names, maps::NODE_ADDRS, limits.node_addrs));
        let name = |range: &AddrRange| format!("range {range}");
        let names: Vec<_> = no_ranges.iter().map(name).collect();
        self.refused.extend(Refused::left_out(&names, maps::CLUSTER_RANGES, limits.cluster_ranges));
        let mut after = DesiredNode::clone(wanted);
        after.addrs.retain(|addr, _| !no_addrs.contains(addr));
        after.cluster_ranges.retain(|range, _| !no_ranges.contains(range));
        Arc::new(after)
    }

    /// Whether something is unlinked that running programs may still hold.
    fn unlinks(&self) -> bool {
        !(self.dead_sets.is_empty()
            && self.freed_backends.is_empty()
            && !self.idles
            && self.freed_ranges.is_empty()
            && self.freed_sets.is_empty()
            && self.removed_source_ranges.is_empty())
    }

    /// The steps to be made at once, and what is released behind a barrier.
    pub(super) fn into_parts(self) -> (Plan, Unlinked) {
        let (held, records) = (self.unlinks(), self.freed_records());
        let mut ops = Vec::new();
        let mut push = |wanted: bool, op: Op| {
            if wanted {
                ops.push(op);
            }
        };
        push(!self.grown.is_empty(), Op::Grow(self.grown));
        push(!self.evicted_node_addrs.is_empty(), Op::RemoveNodeAddrs(self.evicted_node_addrs));
        push(!self.put_node_addrs.is_empty(), Op::PutNodeAddrs(self.put_node_addrs));
        push(
            !self.evicted_cluster_ranges.is_empty(),
            Op::RemoveClusterRanges(self.evicted_cluster_ranges),
        );
        push(!self.put_cluster_ranges.is_empty(), Op::PutClusterRanges(self.put_cluster_ranges));
        if let Some(config) = self.node_config {
            push(true, Op::SetNodeConfig(config));
        }
        push(!self.backends4.is_empty(), Op::WriteBackends4(self.backends4));
        push(!self.backends6.is_empty(), Op::WriteBackends6(self.backends6));
        for (offset, words) in self.ranges {
            push(true, Op::WriteRange { offset, words });
        }
        push(!self.flips.is_empty(), Op::Flip(self.flips));
        push(!self.put_source_ranges.is_empty(), Op::PutSourceRanges(self.put_source_ranges));
        push(!self.put_frontends.is_empty(), Op::PutFrontends(self.put_frontends));
        push(!self.removed_frontends.is_empty(), Op::RemoveFrontends(self.removed_frontends));
        push(!self.removed_node_addrs.is_empty(), Op::RemoveNodeAddrs(self.removed_node_addrs));
        push(
            !self.removed_cluster_ranges.is_empty(),
            Op::RemoveClusterRanges(self.removed_cluster_ranges),
        );
        let unlinked = Unlinked {
            dead_sets: self.dead_sets.into_iter().collect(),
            records,
            source_ranges: self.removed_source_ranges.into_iter().collect(),
            sets: self.freed_sets,
            backends: [self.freed_backends, self.forgotten_backends].concat(),
            ranges: self.freed_ranges,
            resets: self.resets,
            held,
        };
        let Self { refused, new_sets, .. } = self;
        (Plan { ops, refused, new_sets, resets: Vec::new() }, unlinked)
    }
}

/// What is to be put into a table.
struct Additions<K, V> {
    put: Vec<(K, V)>,
    /// What there is no room for.
    left_out: BTreeSet<K>,
    /// Those of them that the table has, and that have to go first.
    evicted: Vec<K>,
}

/// What a table lacks of what is wanted, as far as there is room for it while what is too much
/// still is there. What is `important` comes first, and in the place of what is not.
fn additions<K: Copy + Ord, V: Copy + PartialEq>(
    held: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    capacity: u32,
    important: impl Fn(&V) -> bool,
) -> Additions<K, V> {
    let differs = |(key, value): &(&K, &V)| held.get(key) != Some(value);
    let differing = wanted.iter().filter(differs).map(|(key, value)| (*key, *value));
    let (mut put, mut fresh): (Vec<_>, Vec<_>) =
        differing.partition(|(key, _)| held.contains_key(key));
    fresh.sort_by_key(|(_, value)| !important(value));
    let room = (capacity as usize).saturating_sub(held.len()).min(fresh.len());
    let waiting = fresh[room..].iter().take_while(|(_, value)| important(value)).count();
    let expendable =
        wanted.iter().filter(|(key, value)| held.contains_key(key) && !important(value));
    let evicted: Vec<K> = expendable.map(|(key, _)| *key).rev().take(waiting).collect();
    let left_out = fresh.split_off(room + evicted.len()).into_iter().map(|(key, _)| key);
    let left_out: BTreeSet<K> = left_out.chain(evicted.iter().copied()).collect();
    put.retain(|(key, _)| !left_out.contains(key));
    put.append(&mut fresh);
    Additions { put, left_out, evicted }
}

/// What a table has and should not.
fn removals<K: Copy + Ord, V>(held: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> Vec<K> {
    held.keys().filter(|key| !wanted.contains_key(key)).copied().collect()
}
