//! The table of pods that may send so much and no more.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use mizzen_ebpf_abi::pod_rate::PodRate;
use nix::net::if_::{if_indextoname, if_nameindex};

use super::{
    layout,
    pin::{PinError, Pins},
    sys,
};
use crate::podnet::{bandwidth::Bucket, datapath::PodLink};

/// The part of a rate that is let pass beside it: the queue in the pod decides first.
const MARGIN: u64 = 16;

/// The table.
#[derive(Debug)]
pub(super) struct PodRates(OwnedFd);

impl PodRates {
    /// Opens the table, and forgets what is said of devices that are gone.
    pub(super) fn open(pins: &Pins) -> Result<Self, PinError> {
        let this = Self(pins.open_map(&layout::POD_RATES)?);
        let failed = |error| PinError::Open(pins.map(layout::POD_RATES.name), error);
        this.forget_gone().map_err(failed)?;
        Ok(this)
    }

    fn forget_gone(&self) -> io::Result<()> {
        let mut told = Vec::new();
        while let Some(next) = sys::next_key(self.0.as_fd(), told.last())? {
            told.push(next);
        }
        // After the look at the table: who is told of there and has a device has it already. (nix's
        // `if_indextoname` has no error for a device that is not there, but an empty name.)
        let devices: BTreeSet<u32> =
            if_nameindex()?.iter().map(nix::net::if_::Interface::index).collect();
        // A list may lack one that is there, when others go while it is read.
        let is_named = |index| if_indextoname(index).is_ok_and(|name| !name.is_empty());
        let mut gone = told.iter().filter(|&&index| !devices.contains(&index) && !is_named(index));
        gone.try_for_each(|index| sys::delete(self.0.as_fd(), index).map(drop))
    }

    /// Has the table say how much the pod may send, where that is limited; whether it said so.
    pub(super) fn put(&self, link: &PodLink) -> io::Result<bool> {
        let Some(bucket) = link.sends else { return Ok(true) };
        let wanted = rate(&bucket);
        let known: Option<PodRate> = sys::lookup(self.0.as_fd(), &link.ifindex)?;
        let known = known.is_some_and(|known| PodRate { due_ns: 0, ..known } == wanted);
        if !known {
            sys::update(self.0.as_fd(), &link.ifindex, &wanted)?;
        }
        Ok(known)
    }

    /// Forgets the pod. Where nobody knows its device any more, which somebody deleted since this agent
    /// began, whatever is said of devices that are gone.
    pub(super) fn remove(&self, link: &PodLink) -> io::Result<()> {
        match link.sends {
            Some(_) if link.ifindex == 0 => self.forget_gone(),
            Some(_) => sys::delete(self.0.as_fd(), &link.ifindex).map(drop),
            None => Ok(()),
        }
    }
}

/// A little more than the pod's own queue lets pass, and at once.
fn rate(bucket: &Bucket) -> PodRate {
    let rate = bucket.rate.saturating_add(bucket.rate / MARGIN);
    PodRate::new(rate, 2 * u64::from(bucket.burst))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cni_32_a_pod_that_keeps_to_its_rate_loses_nothing_and_no_other_gets_a_tenth_more() {
        let bucket = Bucket { rate: 16_000_000, burst: 1_000_000, limit: 1_400_000 };
        let held = rate(&bucket);
        assert_eq!(held.rate, 17_000_000);
        assert!(held.rate * 10 < bucket.rate * 11);
        assert_eq!(held.ahead_ns, 2_000_000 * 1_000_000_000 / 17_000_000);
    }
}
