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

/// Why addresses were not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// None is left.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// One that was asked for is in no range, or none that pods have.
    #[error(
        "the requested address {address} is not one of this node's pods: they have those of          {ranges}, without the first two and the last of each and without those excluded"
    )]
    NotOurs {
        /// The address.
        address: IpAddr,
        /// The node's ranges.
        ranges: String,
    },
    /// One that was asked for is another pod's.
    #[error("the requested address {address} is not available: another pod has it")]
    Taken {
        /// The address.
        address: IpAddr,
    },
}

/// The node's ranges and what is taken of them.
#[derive(Clone, Debug, Default)]
pub struct Ipam {
    ranges: Vec<Range>,
}

impl Ipam {
    /// An allocator over `ranges`, of which `taken` are with pods. Addresses outside, and those in
    /// `excluded`, are left to who has them and never given again.
    pub fn new(
        ranges: &[Cidr],
        excluded: &[Cidr],
        taken: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let ranges = ranges.iter().map(|range| Range::new(*range, excluded));
        let mut ipam = Self { ranges: ranges.collect() };
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

    /// One address of each family that the node has a range of: the one in `requested`, or any. All
    /// or nothing.
    pub fn allocate(
        &mut self,
        requested: &[IpAddr],
        now: Duration,
    ) -> Result<Vec<IpAddr>, AllocateError> {
        let mut addresses = Vec::with_capacity(2);
        for v4 in [true, false] {
            let outcome = match requested.iter().find(|address| address.is_ipv4() == v4) {
                Some(address) => self.allocate_exactly(*address).map(Some),
                None => self.allocate_family(v4, now).map_err(AllocateError::from),
            };
            match outcome {
                Ok(address) => addresses.extend(address),
                Err(error) => {
                    for address in addresses {
                        self.give_back(address);
                    }
                    return Err(error);
                }
            }
        }
        Ok(addresses)
    }

    /// This one, though it may be cooling down: who asks for an address knows whose it was.
    fn allocate_exactly(&mut self, address: IpAddr) -> Result<IpAddr, AllocateError> {
        let ranges = self.ranges().map(|range| range.to_string()).collect::<Vec<_>>().join(", ");
        let not_ours = AllocateError::NotOurs { address, ranges };
        let (range, offset) = self.find(address).ok_or(not_ours.clone())?;
        if !range.is_usable(offset) {
            return Err(not_ours);
        }
        if !range.used.insert(offset) {
            return Err(AllocateError::Taken { address });
        }
        if range.cold.remove(&offset) {
            range.cooling.retain(|(cooling, _)| *cooling != offset);
        }
        Ok(address)
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

    /// Freed addresses that are kept back, and when they are usable again.
    pub fn cooling(&self) -> impl Iterator<Item = (IpAddr, Duration)> {
        self.ranges.iter().flat_map(|range| {
            range.cooling.iter().map(|(offset, until)| (range.cidr.address_at(*offset), *until))
        })
    }

    /// Keeps a free address back until then; one outside the ranges is nothing to us. To be called
    /// in the order of the times.
    pub fn cool(&mut self, address: IpAddr, until: Duration) {
        if let Some((range, offset)) = self.find(address)
            && !range.used.contains(&offset)
            && range.cold.insert(offset)
        {
            range.cooling.push_back((offset, until));
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
    /// What is never given: first and last offset, in their order and apart from each other.
    excluded: Vec<(u128, u128)>,
}

impl Range {
    /// The first usable offset: 0 is the network (subnet-router anycast in IPv6), 1 is where
    /// people expect the gateway.
    const FIRST: u128 = 2;

    fn new(cidr: Cidr, excluded: &[Cidr]) -> Self {
        let mut range = Self {
            cidr,
            cursor: Self::FIRST,
            used: BTreeSet::new(),
            cooling: VecDeque::new(),
            cold: BTreeSet::new(),
            excluded: Vec::new(),
        };
        range.exclude(excluded);
        range
    }

    fn exclude(&mut self, excluded: &[Cidr]) {
        let last = self.end().saturating_sub(1);
        let mut inside: Vec<_> = excluded
            .iter()
            .filter_map(|one| {
                let is_whole = one.prefix_len <= self.cidr.prefix_len;
                if is_whole && one.contains(self.cidr.address) {
                    return Some((Self::FIRST, last));
                }
                let first = self.cidr.offset_of(one.address)?;
                let size = 1_u128.checked_shl(one.host_bits().into()).unwrap_or(u128::MAX);
                Some((first.max(Self::FIRST), first.saturating_add(size - 1).min(last)))
            })
            .filter(|(first, last)| first <= last)
            .collect();
        inside.sort_unstable();
        for (first, last) in inside {
            match self.excluded.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                _ => self.excluded.push((first, last)),
            }
        }
    }

    /// The last offset of those never given that hold this one.
    fn excluded_until(&self, offset: u128) -> Option<u128> {
        let holds = |(first, last): &&(u128, u128)| (*first..=*last).contains(&offset);
        self.excluded.iter().find(holds).map(|(_, last)| *last)
    }

    fn is_usable(&self, offset: u128) -> bool {
        (Self::FIRST..self.end()).contains(&offset) && self.excluded_until(offset).is_none()
    }

    /// One past the last usable offset; all ones is the broadcast address, and reserved for
    /// anycast in IPv6 (RFC 2526).
    fn end(&self) -> u128 {
        let size = 1_u128.checked_shl(self.cidr.host_bits().into()).unwrap_or(u128::MAX);
        (size - 1).max(Self::FIRST)
    }

    fn usable(&self) -> u128 {
        let excluded = self.excluded.iter().map(|(first, last)| last - first + 1);
        self.end() - Self::FIRST - excluded.sum::<u128>()
    }

    /// How many of `offsets` are usable ones: others were given before they were excluded.
    fn count(&self, offsets: &BTreeSet<u128>) -> u128 {
        let excluded =
            self.excluded.iter().map(|(first, last)| offsets.range(first..=last).count());
        (offsets.len() - excluded.sum::<usize>()) as u128
    }

    fn is_full(&self) -> bool {
        self.count(&self.used) >= self.usable()
    }

    fn exhausted(&self) -> Exhausted {
        let used = self.count(&self.used);
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
        let taken = self.count(&self.used) + self.count(&self.cold);
        let offset = if taken < self.usable() {
            self.next_free()
        } else {
            // Nothing else is free: better a warm address than a pod without one.
            let at = self.cooling.iter().position(|(offset, _)| self.is_usable(*offset));
            let warm = at.and_then(|at| self.cooling.remove(at));
            let (offset, _) = warm.ok_or_else(|| self.exhausted())?;
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
            if let Some(last) = self.excluded_until(offset) {
                offset = last + 1;
                continue;
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
