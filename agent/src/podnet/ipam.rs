//! Which address a pod gets: a pure allocator over the node's `podCIDRs`.
//!
//! Round robin, so that an address rests as long as possible before somebody else has it; and a
//! freed address is kept back for [`COOL_DOWN`] while others are free, because DNS caches,
//! connection tracking and policy elsewhere still know its last owner. Time comes from the caller,
//! as a duration since any fixed moment.

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use crate::model::node::Cidr;

/// How long a freed address is kept back while others are free.
pub const COOL_DOWN: Duration = Duration::from_secs(30);

/// No address is left in a range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no free address in {range}: {used} of {usable} usable addresses are taken by pods")]
pub struct Exhausted {
    /// The range.
    pub range: Cidr,
    /// Addresses that pods have.
    pub used: u128,
    /// Addresses that pods can have.
    pub usable: u128,
}

/// The node's ranges and what is taken of them.
#[derive(Clone, Debug, Default)]
pub struct Ipam {
    ranges: Vec<Range>,
}

impl Ipam {
    /// An allocator over `ranges`, of which `taken` are with pods. Addresses outside are left to
    /// their pods and never given again.
    pub fn new(ranges: &[Cidr], taken: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut ipam = Self { ranges: ranges.iter().copied().map(Range::new).collect() };
        for address in taken {
            ipam.take(address);
        }
        ipam
    }

    /// Notes that a pod has `address`. One outside the ranges is nothing to us.
    pub fn take(&mut self, address: IpAddr) {
        if let Some((range, offset)) = self.find(address) {
            range.take(offset);
        }
    }

    /// The ranges, in the order of the Node's `podCIDRs`.
    pub fn ranges(&self) -> impl Iterator<Item = Cidr> {
        self.ranges.iter().map(|range| range.cidr)
    }

    /// One address of each family that the node has a range of. All or nothing.
    pub fn allocate(&mut self, now: Duration) -> Result<Vec<IpAddr>, Exhausted> {
        let mut addresses = Vec::with_capacity(2);
        for v4 in [true, false] {
            match self.allocate_family(v4, now) {
                Ok(address) => addresses.extend(address),
                Err(exhausted) => {
                    for address in addresses {
                        self.give_back(address);
                    }
                    return Err(exhausted);
                }
            }
        }
        Ok(addresses)
    }

    /// Takes `address` back; unknown and free ones are no error.
    pub fn free(&mut self, address: IpAddr, now: Duration) {
        if let Some((range, offset)) = self.find(address)
            && range.used.remove(&offset)
        {
            range.cooling.push_back((offset, now + COOL_DOWN));
            range.cold.insert(offset);
        }
    }

    /// The first family that has no address left, cooling ones included.
    pub fn exhausted(&self) -> Option<Exhausted> {
        [true, false].into_iter().find_map(|v4| {
            let mut family = self.ranges.iter().filter(|range| range.cidr.address.is_ipv4() == v4);
            let last = family.clone().next_back()?.exhausted();
            family.all(Range::is_full).then_some(last)
        })
    }

    /// From the first range of the family that has one; `None` where there is no such range.
    fn allocate_family(&mut self, v4: bool, now: Duration) -> Result<Option<IpAddr>, Exhausted> {
        let mut failure = None;
        for range in self.ranges.iter_mut().filter(|range| range.cidr.address.is_ipv4() == v4) {
            match range.allocate(now) {
                Ok(address) => return Ok(Some(address)),
                Err(exhausted) => failure = Some(exhausted),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Undoes an allocation that nobody has seen: nothing to cool down.
    fn give_back(&mut self, address: IpAddr) {
        if let Some((range, offset)) = self.find(address) {
            range.used.remove(&offset);
        }
    }

    fn find(&mut self, address: IpAddr) -> Option<(&mut Range, u128)> {
        self.ranges.iter_mut().find_map(|range| {
            let offset = range.cidr.offset_of(address)?;
            Some((range, offset))
        })
    }
}

/// Offsets from the network address; sets hold what is taken, so that a /64 costs nothing.
#[derive(Clone, Debug)]
struct Range {
    cidr: Cidr,
    /// Where the next search begins.
    cursor: u128,
    used: BTreeSet<u128>,
    /// Freed offsets and when they are usable again, oldest first; `cold` holds the same offsets.
    cooling: VecDeque<(u128, Duration)>,
    cold: BTreeSet<u128>,
}

impl Range {
    /// The first usable offset: 0 is the network (subnet-router anycast in IPv6), 1 is where
    /// people expect the gateway.
    const FIRST: u128 = 2;

    fn new(cidr: Cidr) -> Self {
        Self {
            cidr,
            cursor: Self::FIRST,
            used: BTreeSet::new(),
            cooling: VecDeque::new(),
            cold: BTreeSet::new(),
        }
    }

    /// One past the last usable offset; all ones is the broadcast address, and reserved for
    /// anycast in IPv6 (RFC 2526).
    fn end(&self) -> u128 {
        let size = 1_u128.checked_shl(self.cidr.host_bits().into()).unwrap_or(u128::MAX);
        (size - 1).max(Self::FIRST)
    }

    fn usable(&self) -> u128 {
        self.end() - Self::FIRST
    }

    fn is_full(&self) -> bool {
        self.used.len() as u128 >= self.usable()
    }

    fn exhausted(&self) -> Exhausted {
        let used = self.used.len() as u128;
        Exhausted { range: self.cidr, used, usable: self.usable() }
    }

    fn take(&mut self, offset: u128) {
        self.used.insert(offset);
        self.cursor = self.cursor.max(offset + 1);
    }

    fn allocate(&mut self, now: Duration) -> Result<IpAddr, Exhausted> {
        while let Some((offset, _)) = self.cooling.pop_front_if(|(_, until)| *until <= now) {
            self.cold.remove(&offset);
        }
        let taken = (self.used.len() + self.cold.len()) as u128;
        let offset = if taken < self.usable() {
            self.next_free()
        } else {
            // Nothing else is free: better a warm address than a pod without one.
            let (offset, _) = self.cooling.pop_front().ok_or_else(|| self.exhausted())?;
            self.cold.remove(&offset);
            offset
        };
        self.used.insert(offset);
        self.cursor = offset + 1;
        Ok(self.cidr.address_at(offset))
    }

    /// The first free offset from the cursor on, around the end. There is one.
    fn next_free(&self) -> u128 {
        let mut offset = self.cursor;
        loop {
            if offset >= self.end() {
                offset = Self::FIRST;
            }
            if !self.used.contains(&offset) && !self.cold.contains(&offset) {
                return offset;
            }
            offset += 1;
        }
    }
}

#[cfg(test)]
mod tests;
