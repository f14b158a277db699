//! Which node has which part of which range.

use std::collections::BTreeMap;

use super::Pool;
use crate::cidr::Cidr;

/// There is no free part left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exhausted {
    /// The range that is used up.
    pub(super) pool: Pool,
}

/// The parts in use, by node.
#[derive(Debug)]
pub(super) struct Allocator {
    pools: Vec<Shares>,
    /// Ranges by node: those that it has, or those that were decided on.
    nodes: BTreeMap<String, Vec<Cidr>>,
}

#[derive(Debug)]
struct Shares {
    pool: Pool,
    /// How many nodes use a part. More than one only if somebody else gave out ranges badly.
    users: BTreeMap<u64, u32>,
    /// Where the search for a free part goes on.
    cursor: u64,
}

impl Allocator {
    pub(super) fn new(pools: Vec<Pool>) -> Self {
        let shares = |pool| Shares { pool, users: BTreeMap::new(), cursor: 0 };
        Self { pools: pools.into_iter().map(shares).collect(), nodes: BTreeMap::new() }
    }

    /// Notes the ranges that a node has. A node without ranges keeps what was decided for it.
    pub(super) fn observe(&mut self, node: &str, ranges: &[Cidr]) {
        if ranges.is_empty() || self.nodes.get(node).is_some_and(|known| known == ranges) {
            return;
        }
        self.forget(node);
        self.occupy(node, ranges.to_vec());
    }

    /// Frees the ranges of a node that is gone. Whether there were any.
    pub(super) fn forget(&mut self, node: &str) -> bool {
        let Some(ranges) = self.nodes.remove(node) else { return false };
        for range in ranges {
            self.pools.iter_mut().for_each(|shares| shares.release(range));
        }
        true
    }

    /// A free part of every pool, which then belongs to the node; or nothing of any.
    pub(super) fn assign(&mut self, node: &str) -> Result<Vec<Cidr>, Exhausted> {
        if let Some(ranges) = self.nodes.get(node) {
            return Ok(ranges.clone());
        }
        let mut ranges = Vec::with_capacity(self.pools.len());
        for shares in &mut self.pools {
            let free = shares.find_free().ok_or(Exhausted { pool: shares.pool })?;
            ranges.push(free);
        }
        self.occupy(node, ranges.clone());
        Ok(ranges)
    }

    fn occupy(&mut self, node: &str, ranges: Vec<Cidr>) {
        for range in &ranges {
            self.pools.iter_mut().for_each(|shares| shares.occupy(*range));
        }
        self.nodes.insert(node.to_owned(), ranges);
    }
}

impl Shares {
    fn find_free(&self) -> Option<Cidr> {
        let Pool { range, node_prefix } = self.pool;
        let count = range.parts(node_prefix)?;
        let rounds = (self.cursor..count).chain(0..self.cursor);
        let free = rounds.into_iter().find(|index| !self.users.contains_key(index))?;
        range.part(free, node_prefix)
    }

    fn occupy(&mut self, range: Cidr) {
        let Some((first, last)) = self.under(range) else { return };
        for index in first..=last {
            *self.users.entry(index).or_insert(0) += 1;
        }
        let count = self.pool.range.parts(self.pool.node_prefix).unwrap_or(1);
        self.cursor = (last + 1) % count;
    }

    fn release(&mut self, range: Cidr) {
        let Some((first, last)) = self.under(range) else { return };
        for index in first..=last {
            if let Some(users) = self.users.get_mut(&index) {
                *users -= 1;
                if *users == 0 {
                    self.users.remove(&index);
                }
            }
        }
    }

    fn under(&self, range: Cidr) -> Option<(u64, u64)> {
        self.pool.range.parts_under(range, self.pool.node_prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(range: &str, node_prefix: u8) -> Pool {
        Pool { range: range.parse().unwrap(), node_prefix }
    }

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_freed_range_rests_until_the_search_comes_round() {
        let mut allocator = Allocator::new(vec![pool("10.0.0.0/22", 24)]);
        assert_eq!(allocator.assign("a"), Ok(vec![cidr("10.0.0.0/24")]));
        assert_eq!(allocator.assign("b"), Ok(vec![cidr("10.0.1.0/24")]));
        allocator.forget("a");
        assert_eq!(allocator.assign("c"), Ok(vec![cidr("10.0.2.0/24")]));
        assert_eq!(allocator.assign("d"), Ok(vec![cidr("10.0.3.0/24")]));
        assert_eq!(allocator.assign("e"), Ok(vec![cidr("10.0.0.0/24")]));
        assert!(allocator.assign("f").is_err());
        assert_eq!(allocator.assign("b"), Ok(vec![cidr("10.0.1.0/24")]));
    }

    #[test]
    fn foreign_ranges_of_any_size_are_respected() {
        let mut allocator = Allocator::new(vec![pool("10.0.0.0/22", 24)]);
        allocator.observe("big", &[cidr("10.0.0.0/23")]);
        allocator.observe("small", &[cidr("10.0.2.128/26")]);
        allocator.observe("far", &[cidr("192.168.0.0/24")]);
        assert_eq!(allocator.assign("a"), Ok(vec![cidr("10.0.3.0/24")]));
        assert!(allocator.assign("b").is_err());
        allocator.forget("small");
        assert_eq!(allocator.assign("b"), Ok(vec![cidr("10.0.2.0/24")]));
    }

    #[test]
    fn exhaustion_of_one_family_takes_nothing_of_the_other() {
        let pools = vec![pool("fd00::/62", 64), pool("10.0.0.0/24", 24)];
        let mut allocator = Allocator::new(pools.clone());
        assert!(allocator.assign("a").is_ok());
        assert_eq!(allocator.assign("b"), Err(Exhausted { pool: pools[1] }));
        assert!(allocator.pools[0].users.len() == 1);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Join(u8),
        Leave(u8),
        Restart,
    }

    proptest! {
        #[test]
        fn no_two_nodes_ever_overlap(steps in proptest::collection::vec(prop_oneof![
            4 => (0u8..12).prop_map(Step::Join),
            2 => (0u8..12).prop_map(Step::Leave),
            1 => Just(Step::Restart),
        ], 0..120)) {
            let pools = vec![pool("10.0.0.0/21", 24), pool("fd00::/60", 64)];
            let mut allocator = Allocator::new(pools.clone());
            let mut held: BTreeMap<u8, Vec<Cidr>> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Join(node) => match allocator.assign(&node.to_string()) {
                        Ok(ranges) => {
                            let before = held.insert(node, ranges.clone());
                            prop_assert!(before.is_none_or(|before| before == ranges));
                        }
                        Err(exhausted) => {
                            prop_assert_eq!(exhausted.pool, pools[0]);
                            prop_assert_eq!(held.len(), 8);
                        }
                    },
                    Step::Leave(node) => {
                        held.remove(&node);
                        allocator.forget(&node.to_string());
                    }
                    Step::Restart => {
                        allocator = Allocator::new(pools.clone());
                        for (node, ranges) in &held {
                            allocator.observe(&node.to_string(), ranges);
                        }
                    }
                }
                let all: Vec<Cidr> = held.values().flatten().copied().collect();
                for (index, one) in all.iter().enumerate() {
                    prop_assert!(all[..index].iter().all(|other| !one.overlaps(*other)));
                }
            }
        }
    }
}
