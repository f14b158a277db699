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
    apply::maps::{Growing, SourceRange, Usage},
    desired::node::DesiredNode,
};

impl Known {
    /// The frontends.
    pub fn frontends(&self) -> &BTreeMap<FrontendKey, Frontend> {
        &self.frontends
    }

    /// The words of all sets that ever had one, but for those that are still to be cleared.
    pub fn words(&self) -> impl Iterator<Item = (u32, SetWord)> {
        let dead: BTreeSet<u32> = self.limbo.dead_sets().collect();
        let words = self.words.iter().map(|(set, word)| (*set, *word));
        words.filter(move |(set, _)| !dead.contains(set))
    }

    /// The live ranges: where each begins, and its words.
    pub fn ranges(&self) -> impl Iterator<Item = (u32, &[u32])> {
        let ranges = self.all_sets().filter_map(|set| set.range.as_ref());
        ranges.map(|range| (range.offset, range.words.as_slice()))
    }

    /// The live backends by id.
    pub fn backends(&self) -> impl Iterator<Item = (u32, BackendRecord)> {
        self.all_sets().flat_map(|set| {
            set.backends.iter().map(|(slot, id)| (id, backend_record(set.id, slot)))
        })
    }

    /// The source ranges, those that are still to be removed included.
    pub fn source_ranges(&self) -> BTreeSet<SourceRange> {
        let of_set = |set: &KnownSet| {
            let id = set.id;
            set.source_ranges.clone().into_iter().map(move |range| SourceRange { set: id, range })
        };
        let held = self.all_sets().flat_map(of_set);
        held.chain(self.limbo.source_ranges().copied()).collect()
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
