//! What the tables hold as far as is known, element by element: what [`crate::apply::audit`]
//! compares with them.

use std::collections::{BTreeMap, BTreeSet};

use mizzen_ebpf_abi::{
    maps,
    service::{Frontend, FrontendKey, SetWord},
};

use super::{
    Known,
    known::{BackendRecord, KnownSet, backend_record},
};
use crate::{
    apply::maps::{AddrRange, Growing, Usage},
    desired::{Slot, node::DesiredNode},
};

impl Known {
    /// The frontends.
    pub fn frontends(&self) -> &BTreeMap<FrontendKey, Frontend> {
        &self.frontends
    }

    /// The words of all sets that ever had one.
    pub fn words(&self) -> impl Iterator<Item = (u32, SetWord)> {
        self.words.iter().map(|(set, word)| (*set, *word))
    }

    /// The live ranges: where each begins, and its words.
    pub fn ranges(&self) -> impl Iterator<Item = (u32, &[u32])> {
        let ranges = self.all_sets().filter_map(|set| set.range.as_ref());
        ranges.map(|range| (range.offset, range.words.as_slice()))
    }

    /// The live backends by id.
    pub fn backends(&self) -> impl Iterator<Item = (u32, BackendRecord)> {
        self.all_sets().flat_map(|set| {
            set.backends.iter().map(|(&(addr, port), backend)| {
                let slot = Slot { addr, port, flags: backend.flags };
                (backend.id, backend_record(set.id, &slot))
            })
        })
    }

    /// The source ranges of each set that has any, by the set's id.
    pub fn source_ranges(&self) -> BTreeMap<u32, &BTreeSet<AddrRange>> {
        let restricted = self.all_sets().filter(|set| !set.source_ranges.is_empty());
        restricted.map(|set| (set.id, &set.source_ranges)).collect()
    }

    /// The node's tables.
    pub fn node(&self) -> &DesiredNode {
        &self.node
    }

    /// How full each table is that this agent alone writes.
    pub fn usage(&self) -> Vec<Usage> {
        let mut usage: Vec<_> = Growing::ALL
            .into_iter()
            .map(|table| Usage {
                map: table.name(),
                used: self.used(table),
                now: self.room.now.of(table),
                max: self.room.max.of(table),
            })
            .collect();
        let max = &self.room.max;
        let bounded = [
            (maps::NODE_ADDRS, self.node.addrs.len(), max.node_addrs),
            (maps::CLUSTER_RANGES, self.node.cluster_ranges.len(), max.cluster_ranges),
            (maps::SOURCE_RANGES, self.source_ranges, max.source_ranges),
        ];
        usage.extend(bounded.map(|(map, used, max)| Usage {
            map,
            used: count(used),
            now: max,
            max,
        }));
        usage
    }

    fn used(&self, table: Growing) -> u32 {
        match table {
            Growing::Frontends => count(self.frontends.len() - self.marks),
            Growing::Sets => self.set_ids.in_use(),
            Growing::Slots => self.slots.capacity() - self.slots.free_words(),
            Growing::Backends4 => self.backend_ids[0].in_use(),
            Growing::Backends6 => self.backend_ids[1].in_use(),
        }
    }

    fn all_sets(&self) -> impl Iterator<Item = &KnownSet> {
        self.sets.values().chain(&self.strangers)
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
