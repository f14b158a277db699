//! Deletions that nobody saw: what the tables still name of endpoints, at the start of an agent, that
//! the cluster does not know any more.
//!
//! While no agent runs endpoints go as they always do, and an agent that is killed may have planned
//! to reset flows that it never came to. The first complete picture of the cluster against the
//! tables of before tells most of it:
//!
//! | the record says | of TCP | of UDP |
//! |---|---|---|
//! | deleted, and the plan was broken off | reset | reset |
//! | it was terminating | reset | reset |
//! | it left otherwise, and lived | - | - |
//! | anything else | - | reset |
//!
//! Of what may as well have left by a change of labels, connections stay: TCP finds out that nobody
//! is there, or that somebody else is. A datagram socket never does, and goes on sending to whoever
//! has the address one day (B106); kube-proxy forgets the conntrack entries of either.

use std::collections::{BTreeMap, BTreeSet};

use mizzen_ebpf_abi::{
    addr::protocol,
    service::{NO_SET, backend_flags, reserved_for},
};

use super::{
    known::{Known, KnownSet},
    plan::Reset,
    restore::{Record, records},
};
use crate::{
    apply::maps::Tables,
    desired::{Change, SetKey},
    model::service::Protocol,
};

/// Whose flows are to be reset by the first plan, which is for `everything`. `known` was restored
/// from `tables`; in it, ids whose records are to tell of it stay in use until then. Services that
/// want none of that are those that `spares` says.
pub fn late(
    tables: &Tables,
    known: &mut Known,
    everything: &Change,
    spares: impl Fn(&SetKey) -> bool,
) -> Vec<Reset> {
    let connected = connected(tables);
    let mut by_set: BTreeMap<u32, Vec<Record>> = BTreeMap::new();
    for record in records(tables).filter(|record| record.owner != NO_SET) {
        let set = reserved_for(record.owner).unwrap_or(record.owner);
        by_set.entry(set).or_default().push(record);
    }
    let named = known.sets.iter().map(|(key, set)| (set.id, (Some(key), set)));
    let strangers = known.strangers.iter().map(|set| (set.id, (None, set)));
    let sets: BTreeMap<u32, (Option<&SetKey>, &KnownSet)> = named.chain(strangers).collect();
    let mut resets = Vec::new();
    for (set, records) in by_set {
        let (key, held) = sets.get(&set).map_or((None, None), |(key, held)| (*key, Some(*held)));
        let deleted: Vec<Record> = match key {
            Some(key) if spares(key) => continue,
            Some(key) => deleted(records, key, everything),
            // Its service went. What is connected stays so (`gone::of_withdrawn`).
            None if connected.contains(&set) => continue,
            None => {
                // What is reserved for a set whose id nobody has any more may be another's.
                let is_its = |of: &Record| {
                    let left_alive = of.flags & backend_flags::STRAY != 0;
                    reserved_for(of.owner).is_none() || held.is_some() && !left_alive
                };
                records.into_iter().filter(is_its).collect()
            }
        };
        let protocol = key.map_or(Protocol::Udp, |key| key.protocol);
        let word = known.words.get(&set).copied().unwrap_or_default();
        for Record { ipv6, id, owner, at, .. } in deleted {
            if reserved_for(owner).is_some() && known.backend_ids[usize::from(ipv6)].take(id) {
                known.strays.push((ipv6, id));
            }
            // Who has the address by now was chosen after it was taken out of the range.
            let range = held.and_then(|held| held.range.as_ref());
            let is_named = range.is_some_and(|range| range.slots().contains(&id));
            let generation = word.generation().wrapping_sub(u32::from(!is_named));
            let backend = key.map(|_| id);
            resets.push(Reset { set, protocol, endpoint: at.into(), generation, backend });
        }
    }
    resets
}

/// Of the records that name a known set, those whose endpoint is deleted, as far as can be told.
fn deleted(mut records: Vec<Record>, key: &SetKey, everything: &Change) -> Vec<Record> {
    let wanted = everything.sets.get(key).and_then(Option::as_ref);
    let there: BTreeSet<_> = wanted.into_iter().flat_map(|wanted| wanted.endpoints()).collect();
    records.retain(|record| {
        let says = |flags: u16| record.flags & flags != 0;
        let left = !there.contains(&record.at);
        let says_so = says(backend_flags::TERMINATING)
            || key.protocol == Protocol::Udp && !says(backend_flags::STRAY);
        record.ipv6 == key.ipv6 && (says(backend_flags::GONE) || left && says_so)
    });
    records
}

/// The sets to which a frontend leads whose protocol has connections.
fn connected(tables: &Tables) -> BTreeSet<u32> {
    let frontends = tables.frontends.iter().filter(|(key, _)| key.protocol != protocol::UDP);
    frontends.map(|(_, frontend)| frontend.set).collect()
}
