//! Recognising one's own tables: a dump -> [`Known`].
//!
//! The tables name sets by number, and say nothing of services. A set is recognised by the
//! frontends that lead to it: they are a service's own. Nothing is believed beyond that: a range
//! counts for what its words say, a backend for what its record says, and an id that two sets
//! claim stays with one of them while the other gets a new one, in the usual order of a plan, so
//! that no connection notices (reference D4).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use mizzen_ebpf_abi::service::{NO_SET, RANGE_HEADER_WORDS, backend_flags, header, reserved_for};

use super::known::{Known, KnownBackend, KnownRange, KnownSet};
use crate::{
    apply::maps::{Room, SourceRange, Tables},
    desired::{Change, SetKey, node::DesiredNode},
};

/// What the tables hold, with the sets of `everything` recognised. `everything` must be complete.
pub fn restore(tables: &Tables, everything: &Change, room: Room) -> Known {
    let mut known = Known::empty(room);
    known.frontends.clone_from(&tables.frontends);
    known.marks = known.frontends.keys().filter(|key| key.is_guard()).count();
    known.words = tables.sets.clone();
    known.node = Arc::new(DesiredNode {
        addrs: tables.node_addrs.clone(),
        cluster_ranges: tables.cluster_ranges.clone(),
        config: tables.node_config,
    });

    let recognised = recognise(tables, everything, room.now.sets);
    let mut sets: BTreeMap<u32, KnownSet> = BTreeMap::new();
    for id in ids_in_use(tables) {
        if !known.set_ids.take(id) {
            continue;
        }
        let range = restore_range(tables, id, &mut known);
        let ipv6 = recognised.get(&id).is_some_and(|key| key.ipv6);
        sets.insert(id, KnownSet { range, ..KnownSet::new(id, ipv6) });
    }
    for SourceRange { set, range } in &tables.source_ranges {
        known.source_ranges += 1;
        match sets.get_mut(set) {
            Some(set) => drop(set.source_ranges.insert(*range)),
            None => known.stray_ranges.push(SourceRange { set: *set, range: *range }),
        }
    }
    if let Some((last, _)) = tables.sets.last_key_value() {
        known.set_ids.resume_after(*last);
    }
    restore_backends(tables, &recognised, &mut sets, &mut known);
    restore_idle(tables, everything, (&recognised, &mut sets), &mut known);
    // Every flip that ever was makes it another.
    let flips = tables.sets.values().map(|word| word.generation());
    let seed = flips.fold(0, u32::wrapping_add).wrapping_mul(0x9e37_79b1);
    known.set_ids.begin_at(seed);
    known.backend_ids.iter_mut().for_each(|ids| ids.begin_at(seed));
    for (id, set) in sets {
        match recognised.get(&id) {
            Some(key) => {
                known.sets.insert(key.clone(), set);
            }
            None => known.strangers.push(set),
        }
    }
    known
}

/// Every set id that a frontend, a live word or a source range names: another set with that id
/// would take the ranges for its own.
fn ids_in_use(tables: &Tables) -> BTreeSet<u32> {
    let named = tables.frontends.values().map(|frontend| frontend.set);
    let live = tables.sets.iter().filter(|(_, word)| word.offset() != 0).map(|(id, _)| *id);
    let restricted = tables.source_ranges.iter().map(|range| range.set);
    named.chain(live).chain(restricted).filter(|id| *id != NO_SET).collect()
}

/// Which desired set each id belongs to. Each frontend is a vote; the most votes win.
fn recognise(tables: &Tables, everything: &Change, sets_max: u32) -> BTreeMap<u32, SetKey> {
    let mut votes: BTreeMap<&SetKey, BTreeMap<u32, u32>> = BTreeMap::new();
    for (frontend, target) in &everything.frontends {
        let (Some((key, _)), Some(held)) = (target, tables.frontends.get(frontend)) else {
            continue;
        };
        if held.set != NO_SET && held.set < sets_max {
            *votes.entry(key).or_default().entry(held.set).or_default() += 1;
        }
    }
    let mut recognised = BTreeMap::new();
    for (key, ids) in votes {
        let free = ids.into_iter().filter(|(id, _)| !recognised.contains_key(id));
        if let Some((id, _)) = free.max_by_key(|(id, count)| (*count, Reverse(*id))) {
            recognised.insert(id, key.clone());
        }
    }
    recognised
}

/// The range that a set's word names, as far as it is plausible and no other set's.
fn restore_range(tables: &Tables, id: u32, known: &mut Known) -> Option<KnownRange> {
    let offset = tables.sets.get(&id)?.offset();
    let word = |n: u32| -> u32 {
        let index = offset.checked_add(n).map(|index| index as usize);
        index.and_then(|index| tables.slots.get(index)).copied().unwrap_or(0)
    };
    let end = |start: u32, count: u32| word(start).saturating_add(word(count));
    let slots = end(header::INTERNAL_START, header::INTERNAL_COUNT)
        .max(end(header::EXTERNAL_START, header::EXTERNAL_COUNT))
        .max(end(header::NEARBY_START, header::NEARBY_COUNT));
    let owned = word(header::OWNER) == id;
    let whole = RANGE_HEADER_WORDS.saturating_add(if owned { slots } else { 0 });
    // A header that can't be true still is where readers look: its words are kept from reuse
    // until the set has been led elsewhere.
    let length =
        [whole, RANGE_HEADER_WORDS].into_iter().find(|n| known.slots.reserve(offset, *n))?;
    Some(KnownRange { offset, words: (0..length).map(word).collect() })
}

/// Gives every backend to the set that its record names; of several with one address, the set
/// keeps the one that its range uses. What is left over belongs to nobody.
fn restore_backends(
    tables: &Tables,
    recognised: &BTreeMap<u32, SetKey>,
    sets: &mut BTreeMap<u32, KnownSet>,
    known: &mut Known,
) {
    let used: BTreeSet<(bool, u32)> = sets
        .values()
        .flat_map(|set| set.range.iter().map(move |range| (set.ipv6, range)))
        .flat_map(|(ipv6, range)| range.slots().iter().map(move |id| (ipv6, *id)))
        .collect();
    let mut held: BTreeMap<u32, BTreeMap<_, KnownBackend>> = BTreeMap::new();
    let mut unused = Vec::new();
    for Record { ipv6, id, owner, at, flags } in records(tables) {
        let ids = &mut known.backend_ids[usize::from(ipv6)];
        ids.resume_after(id);
        if owner == NO_SET || reserved_for(owner).is_some() || !ids.take(id) {
            continue;
        }
        let set = recognised.get(&owner).filter(|key| key.ipv6 == ipv6);
        if set.is_none() || !sets.contains_key(&owner) {
            known.strays.push((ipv6, id));
            continue;
        }
        let backend = KnownBackend { id, flags };
        match held.entry(owner).or_default().entry(at) {
            Entry::Vacant(place) if used.contains(&(ipv6, id)) => {
                place.insert(backend);
            }
            _ => unused.push((ipv6, owner, at, backend)),
        }
    }
    for (ipv6, owner, at, backend) in unused {
        match held.entry(owner).or_default().entry(at) {
            Entry::Vacant(place) => {
                place.insert(backend);
            }
            Entry::Occupied(_) => known.strays.push((ipv6, backend.id)),
        }
    }
    for (owner, backends) in held {
        if let Some(set) = sets.get_mut(&owner) {
            set.backends = backends.into_iter().collect();
        }
    }
}

/// Gives the ids that are reserved for endpoints which are still there to their sets. A record that
/// is reserved for another is as any that is freed: what became of that endpoint is asked by
/// [`super::late`], at the start.
fn restore_idle(
    tables: &Tables,
    everything: &Change,
    (recognised, sets): (&BTreeMap<u32, SetKey>, &mut BTreeMap<u32, KnownSet>),
    known: &mut Known,
) {
    let mut reserved: Vec<(u32, Record)> =
        records(tables).filter_map(|of| Some((reserved_for(of.owner)?, of))).collect();
    // One that left, and came back beside an agent that had started meanwhile, has another id since.
    reserved.sort_by_key(|(owner, of)| (*owner, of.flags & backend_flags::STRAY != 0));
    for (owner, Record { ipv6, id, at, flags, .. }) in reserved {
        let key = recognised.get(&owner).filter(|key| key.ipv6 == ipv6);
        let wanted = key.and_then(|key| everything.sets.get(key)?.as_ref());
        let (Some(wanted), Some(set)) = (wanted, sets.get_mut(&owner)) else { continue };
        let is_live = || set.backends.iter().any(|(slot, _)| (slot.addr, slot.port) == at);
        let is_lacking = wanted.has(at) && !set.idle.contains_key(&at) && !is_live();
        if is_lacking && known.backend_ids[usize::from(ipv6)].take(id) {
            let flags = flags & !backend_flags::FREED;
            set.idle.insert(at, KnownBackend { id, flags });
        }
    }
}

/// A backend's record.
pub(super) struct Record {
    pub(super) ipv6: bool,
    pub(super) id: u32,
    pub(super) owner: u32,
    pub(super) at: (IpAddr, u16),
    pub(super) flags: u16,
}

/// The records of all backends, of those that are freed too.
pub(super) fn records(tables: &Tables) -> impl Iterator<Item = Record> {
    let v4 = tables.backends4.iter().map(|(id, b)| {
        let at = (IpAddr::from(b.addr), u16::from_be_bytes(b.port));
        Record { ipv6: false, id: *id, owner: b.set, at, flags: b.flags }
    });
    let v6 = tables.backends6.iter().map(|(id, b)| {
        let at = (IpAddr::from(b.addr), u16::from_be_bytes(b.port));
        Record { ipv6: true, id: *id, owner: b.set, at, flags: b.flags }
    });
    v4.chain(v6)
}
