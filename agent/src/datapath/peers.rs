//! The tables of other nodes: behind which of them an address is, and what goes there through the
//! tunnel.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya::Pod;
use mizzen_ebpf_abi::{addr::Addr, node::Peer};

use super::{
    layout::{self, PrefixKey},
    pin::{PinError, Pins},
    sys,
};
use crate::{desired::node::addr_range, model::node::Cidr};

/// Both.
#[derive(Debug)]
pub(super) struct Peers {
    peers: OwnedFd,
    tunnelled: OwnedFd,
}

impl Peers {
    pub(super) fn open(pins: &Pins) -> Result<Self, PinError> {
        let peers = pins.open_map(&layout::PEERS)?;
        Ok(Self { peers, tunnelled: pins.open_map(&layout::TUNNELLED)? })
    }

    /// Makes the table of peers hold `peers` and nothing else; how many entries were otherwise.
    pub(super) fn sync(&self, peers: &BTreeMap<Cidr, IpAddr>) -> io::Result<usize> {
        let record = |(range, endpoint): (&Cidr, &IpAddr)| {
            (*range, Peer { endpoint: Addr::from(*endpoint) })
        };
        sync(self.peers.as_fd(), peers.iter().map(record))
    }

    /// Makes the table of what is tunnelled hold `devices` and nothing else; how many entries were
    /// otherwise.
    pub(super) fn sync_tunnelled(&self, devices: &BTreeMap<Cidr, u32>) -> io::Result<usize> {
        sync(self.tunnelled.as_fd(), devices.iter().map(|(range, device)| (*range, *device)))
    }
}

/// Makes a table hold these records and nothing else. What is new or says something else comes
/// before what goes.
fn sync<V: Pod + Default + PartialEq>(
    table: BorrowedFd<'_>,
    records: impl Iterator<Item = (Cidr, V)>,
) -> io::Result<usize> {
    let wanted: BTreeMap<PrefixKey, V> =
        records.map(|(range, record)| (PrefixKey::from(addr_range(&range)), record)).collect();
    let present: BTreeMap<PrefixKey, V> = read(table)?;
    let mut written = 0;
    for (key, record) in wanted.iter().filter(|(key, record)| present.get(key) != Some(record)) {
        sys::update(table, key, record)?;
        written += 1;
    }
    for key in present.keys().filter(|key| !wanted.contains_key(key)) {
        sys::delete(table, key)?;
        written += 1;
    }
    Ok(written)
}

fn read<V: Pod + Default>(table: BorrowedFd<'_>) -> io::Result<BTreeMap<PrefixKey, V>> {
    let mut present = BTreeMap::new();
    let mut key: Option<PrefixKey> = None;
    while let Some(next) = sys::next_key(table, key.as_ref())? {
        if let Some(record) = sys::lookup(table, &next)? {
            present.insert(next, record);
        }
        key = Some(next);
    }
    Ok(present)
}
