//! The table of peers: behind which other node an address is.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use mizzen_ebpf_abi::{addr::Addr, node::Peer};

use super::{
    layout::{self, PrefixKey},
    pin::{PinError, Pins},
    sys,
};
use crate::{desired::node::addr_range, model::node::Cidr};

/// The table.
#[derive(Debug)]
pub(super) struct Peers(OwnedFd);

impl Peers {
    pub(super) fn open(pins: &Pins) -> Result<Self, PinError> {
        pins.open_map(&layout::PEERS).map(Self)
    }

    /// Makes the table hold `peers` and nothing else; how many entries were otherwise. What is new
    /// or leads elsewhere comes before what goes.
    pub(super) fn sync(&self, peers: &BTreeMap<Cidr, IpAddr>) -> io::Result<usize> {
        let entry = |(range, endpoint): (&Cidr, &IpAddr)| {
            (PrefixKey::from(addr_range(range)), Peer { endpoint: Addr::from(*endpoint) })
        };
        let wanted: BTreeMap<PrefixKey, Peer> = peers.iter().map(entry).collect();
        let present = self.read()?;
        let mut written = 0;
        for (key, peer) in wanted.iter().filter(|(key, peer)| present.get(key) != Some(peer)) {
            sys::update(self.0.as_fd(), key, peer)?;
            written += 1;
        }
        for key in present.keys().filter(|key| !wanted.contains_key(key)) {
            sys::delete(self.0.as_fd(), key)?;
            written += 1;
        }
        Ok(written)
    }

    fn read(&self) -> io::Result<BTreeMap<PrefixKey, Peer>> {
        let mut present = BTreeMap::new();
        let mut key: Option<PrefixKey> = None;
        while let Some(next) = sys::next_key(self.0.as_fd(), key.as_ref())? {
            if let Some(peer) = sys::lookup(self.0.as_fd(), &next)? {
                present.insert(next, peer);
            }
            key = Some(next);
        }
        Ok(present)
    }
}
