//! The live backends of a set, as the tables hold them: the slots that it was placed with, which
//! are the desired set's own, and the id that each got.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::desired::Slot;

/// Up to so many slots are looked through; for more an index is made first.
const FEW: usize = 16;

/// Slots, each with the id of its backend. There is a slot for every endpoint of the cluster: the
/// ids are all that is kept of it beside what is desired.
#[derive(Clone, Debug, Default)]
pub(in crate::diff) struct Backends {
    slots: Arc<[Slot]>,
    ids: Box<[u32]>,
}

/// A backend: its id and its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::diff) struct KnownBackend {
    pub(in crate::diff) id: u32,
    pub(in crate::diff) flags: u16,
}

/// Backends by address and port.
pub(in crate::diff) enum ByAddress<'a> {
    Few(&'a Backends),
    Many(BTreeMap<(IpAddr, u16), KnownBackend>),
}

impl Backends {
    /// Slots of different addresses, and the ids of their backends in the same order.
    pub(in crate::diff) fn new(slots: Arc<[Slot]>, ids: Vec<u32>) -> Self {
        debug_assert_eq!(slots.len(), ids.len(), "each slot has an id");
        Self { slots, ids: ids.into() }
    }

    /// Each slot with its id.
    pub(in crate::diff) fn iter(&self) -> impl Iterator<Item = (&Slot, u32)> {
        self.slots.iter().zip(self.ids.iter().copied())
    }

    /// The ids.
    pub(in crate::diff) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// For those who look for several.
    pub(in crate::diff) fn by_address(&self) -> ByAddress<'_> {
        if self.ids.len() <= FEW {
            return ByAddress::Few(self);
        }
        let entry = |(slot, id): (&Slot, u32)| {
            ((slot.addr, slot.port), KnownBackend { id, flags: slot.flags })
        };
        ByAddress::Many(self.iter().map(entry).collect())
    }
}

impl FromIterator<((IpAddr, u16), KnownBackend)> for Backends {
    fn from_iter<T: IntoIterator<Item = ((IpAddr, u16), KnownBackend)>>(backends: T) -> Self {
        let slot = |((addr, port), KnownBackend { id, flags })| (Slot { addr, port, flags }, id);
        let (slots, ids): (Vec<Slot>, Vec<u32>) = backends.into_iter().map(slot).unzip();
        Self::new(slots.into(), ids)
    }
}

impl ByAddress<'_> {
    /// The backend at an address.
    pub(in crate::diff) fn get(&self, at: (IpAddr, u16)) -> Option<KnownBackend> {
        match self {
            Self::Few(backends) => {
                let mut all = backends.iter();
                let (slot, id) = all.find(|(slot, _)| (slot.addr, slot.port) == at)?;
                Some(KnownBackend { id, flags: slot.flags })
            }
            Self::Many(backends) => backends.get(&at).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_found_by_address_however_many_there_are() {
        for count in [0, 1, 16, 17, 200_u8] {
            let slot = |n| Slot { addr: [10, 0, 0, n].into(), port: 80, flags: n.into() };
            let slots: Vec<Slot> = (0..count).rev().map(slot).collect();
            let ids = (0..u32::from(count)).map(|n| 1000 + n).collect();
            let backends = Backends::new(slots.into(), ids);
            let by_address = backends.by_address();
            for n in 0..=count {
                let id = u32::from(count) + 999 - u32::from(n);
                let expected = (n < count).then_some(KnownBackend { id, flags: n.into() });
                assert_eq!(by_address.get(([10, 0, 0, n].into(), 80)), expected);
                assert_eq!(by_address.get(([10, 0, 0, n].into(), 81)), None);
            }
        }
    }
}
