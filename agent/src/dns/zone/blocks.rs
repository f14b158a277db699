//! What addresses have, kept by the block of 256 that they are in: a few octets for each address
//! of a large cluster, and a change copies no more than a block.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use imbl::OrdMap;

/// Of each address any number of things, equal ones too. Clones share all blocks that did not
/// change.
#[derive(Clone, Debug)]
pub struct Blocks<T> {
    /// In order, by the address whose last octet is zero.
    blocks: OrdMap<IpAddr, Arc<Block<T>>>,
}

/// What the addresses of a block have: in order, each behind the last octet of its address. Apart,
/// the two take half as much room as beside each other.
#[derive(Clone, Debug)]
struct Block<T> {
    octets: Vec<u8>,
    things: Vec<T>,
}

impl<T> Default for Block<T> {
    fn default() -> Self {
        Self { octets: Vec::new(), things: Vec::new() }
    }
}

impl<T: Ord> Block<T> {
    /// Where the things of an address are.
    fn of(&self, last: u8) -> Range<usize> {
        let from = self.octets.partition_point(|octet| *octet < last);
        from..from + self.octets[from..].partition_point(|octet| *octet == last)
    }

    /// Where a thing of an address is, or would be.
    fn place(&self, last: u8, thing: &T) -> Result<usize, usize> {
        let of = self.of(last);
        let from = of.start;
        let found = self.things[of].binary_search(thing);
        found.map(|at| from + at).map_err(|at| from + at)
    }
}

impl<T> Default for Blocks<T> {
    fn default() -> Self {
        Self { blocks: OrdMap::new() }
    }
}

impl<T: Clone + Ord> Blocks<T> {
    /// What `address` has, in order.
    pub fn of(&self, address: IpAddr) -> impl Iterator<Item = &T> {
        let (block, last) = split(address);
        self.blocks.get(&block).map_or(&[][..], |all| &all.things[all.of(last)]).iter()
    }

    /// Whether any address in that range has something.
    pub fn any_in(&self, range: &RangeInclusive<IpAddr>) -> bool {
        let (first, last) = (split(*range.start()).0, split(*range.end()).0);
        let mut blocks = self.blocks.range(first..=last);
        blocks.any(|(block, all)| {
            all.octets.iter().any(|last| range.contains(&joined(*block, *last)))
        })
    }

    /// Whether no address has anything.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Gives `address` one thing more.
    pub fn add(&mut self, address: IpAddr, thing: T) {
        let (block, last) = split(address);
        let all = Arc::make_mut(self.blocks.entry(block).or_default());
        let (Ok(place) | Err(place)) = all.place(last, &thing);
        // To the octet: blocks are many, and change seldom.
        all.octets.reserve_exact(1);
        all.things.reserve_exact(1);
        all.octets.insert(place, last);
        all.things.insert(place, thing);
    }

    /// Takes it away again.
    pub fn remove(&mut self, address: IpAddr, thing: &T) {
        let (block, last) = split(address);
        let Some(all) = self.blocks.get_mut(&block) else { return };
        if let Ok(place) = all.place(last, thing) {
            let all = Arc::make_mut(all);
            all.octets.remove(place);
            all.things.remove(place);
            if all.octets.is_empty() {
                self.blocks.remove(&block);
            }
        }
    }
}

/// An address's block and last octet.
fn split(address: IpAddr) -> (IpAddr, u8) {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, last] = address.octets();
            (Ipv4Addr::new(a, b, c, 0).into(), last)
        }
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            let last = std::mem::take(&mut octets[15]);
            (Ipv6Addr::from(octets).into(), last)
        }
    }
}

fn joined(block: IpAddr, last: u8) -> IpAddr {
    match block {
        IpAddr::V4(block) => Ipv4Addr::from_bits(block.to_bits() | u32::from(last)).into(),
        IpAddr::V6(block) => Ipv6Addr::from_bits(block.to_bits() | u128::from(last)).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn addresses() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..2_u8, 250..=255_u8).prop_map(|(block, last)| IpAddr::from([10, 0, block, last])),
            (0..2_u16, 254..258_u16)
                .prop_map(|(block, last)| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, block, last])),
        ]
    }

    proptest! {
        /// A plain map of lists says the same, whatever comes and goes, and clones stay as they
        /// were.
        #[test]
        fn blocks_are_a_map_of_lists(
            changes in prop::collection::vec((addresses(), 0..3_u8, any::<bool>()), 0..60),
            range in (addresses(), addresses()),
        ) {
            let (mut blocks, mut model) = (Blocks::default(), BTreeMap::<IpAddr, Vec<u8>>::new());
            for (address, thing, comes) in changes {
                let (before, was) = (blocks.clone(), model.get(&address).cloned());
                if comes {
                    blocks.add(address, thing);
                    let all = model.entry(address).or_default();
                    all.push(thing);
                    all.sort_unstable();
                } else {
                    blocks.remove(address, &thing);
                    let all = model.entry(address).or_default();
                    all.iter().position(|other| *other == thing).map(|place| all.remove(place));
                    model.retain(|_, all| !all.is_empty());
                }
                let found: Vec<u8> = before.of(address).copied().collect();
                prop_assert_eq!(found, was.unwrap_or_default());
            }
            for (address, all) in &model {
                prop_assert_eq!(&blocks.of(*address).copied().collect::<Vec<_>>(), all);
            }
            prop_assert_eq!(blocks.is_empty(), model.is_empty());
            let range = range.0.min(range.1)..=range.0.max(range.1);
            prop_assert_eq!(blocks.any_in(&range), model.range(range).next().is_some());
        }
    }
}
