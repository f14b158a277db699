//! What the tables hold, as far as this agent knows: which set has which id, range and backends.
//!
//! It is made from a dump by [`super::restore`] and brought forward by [`super::diff`], each time
//! to the state after the plan. When a plan fails it is thrown away and made anew.

mod backends;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use mizzen_ebpf_abi::{
    maps,
    service::{
        Backend4, Backend6, Frontend, FrontendKey, NO_SET, RANGE_HEADER_WORDS, RESERVED, SetWord,
        backend_flags, header,
    },
};

pub(super) use self::backends::{Backends, KnownBackend};
use super::{
    draft::Draft,
    extent::Extents,
    ids::IdSpace,
    limbo::Limbo,
    plan::{Refused, Reset},
};
use crate::{
    apply::maps::{AddrRange, Growing, Room, SourceRange},
    desired::{Change, DesiredSet, Idle, SetKey, Slot, node::DesiredNode},
    heap,
    traffic::accounts,
};

/// The state of the tables.
#[derive(Clone, Debug)]
pub struct Known {
    pub(super) room: Room,
    pub(super) sets: BTreeMap<SetKey, KnownSet>,
    /// Sets that no desired set answers to; the next complete change retires them.
    pub(super) strangers: Vec<KnownSet>,
    /// Backends, by family and id, that belong to no set.
    pub(super) strays: Vec<(bool, u32)>,
    /// Source ranges of what is no set, likewise.
    pub(super) stray_ranges: Vec<SourceRange>,
    /// The word of every set id that was ever in use: generations go on when an id is used again.
    pub(super) words: BTreeMap<u32, SetWord>,
    pub(super) frontends: BTreeMap<FrontendKey, Frontend>,
    /// How many of them are marks of cluster IPs, which are no entries of the map.
    pub(super) marks: usize,
    pub(super) set_ids: IdSpace,
    pub(super) backend_ids: [IdSpace; 2],
    pub(super) slots: Extents,
    /// How many source ranges the tables hold, of all sets.
    pub(super) source_ranges: usize,
    pub(super) node: Arc<DesiredNode>,
    /// What was asked for when `node` became so: where there was no room for all of it, more.
    pub(super) node_for: Arc<DesiredNode>,
    /// What a plan that failed was to reset.
    pub(super) unfinished: Vec<Reset>,
    /// What plans unlinked and is not released yet.
    pub(super) limbo: Limbo,
}

/// A set in the tables.
#[derive(Clone, Debug)]
pub(super) struct KnownSet {
    pub(super) id: u32,
    pub(super) range: Option<KnownRange>,
    pub(super) backends: Backends,
    /// Ids that are reserved for endpoints which take no new flows, and which flows may name; with
    /// the flags that say why.
    pub(super) idle: BTreeMap<(IpAddr, u16), KnownBackend>,
    pub(super) ipv6: bool,
    /// Its source ranges in the tables.
    pub(super) source_ranges: BTreeSet<AddrRange>,
}

/// A set's live range.
#[derive(Clone, Debug)]
pub(super) struct KnownRange {
    pub(super) offset: u32,
    pub(super) words: Vec<u32>,
}

/// A set that could not be placed, and why.
struct NoRoom {
    map: &'static str,
    capacity: u32,
}

impl Known {
    /// Empty tables.
    pub fn empty(room: Room) -> Self {
        let Room { now, max } = room;
        Self {
            sets: BTreeMap::new(),
            strangers: Vec::new(),
            strays: Vec::new(),
            stray_ranges: Vec::new(),
            words: BTreeMap::new(),
            frontends: BTreeMap::new(),
            marks: 0,
            set_ids: IdSpace::new(now.sets, max.sets),
            backend_ids: [
                IdSpace::new(now.backends4, max.backends4),
                IdSpace::new(now.backends6, max.backends6),
            ],
            slots: Extents::new(now.slot_words, max.slot_words),
            source_ranges: 0,
            node: Arc::default(),
            node_for: Arc::default(),
            unfinished: Vec::new(),
            limbo: Limbo::default(),
            room,
        }
    }

    /// Has the next plan reset what one was to that failed. By now others may have the addresses,
    /// and some of the steps were made: what was deleted is told by its id and its generation.
    pub fn resume(&mut self, resets: Vec<Reset>) {
        // What was idle, and is nobody's by these tables, is freed by that plan with a record that says so.
        for reset in &resets {
            let ipv6 = reset.endpoint.is_ipv6();
            if let Some(id) = reset.backend
                && self.backend_ids[usize::from(ipv6)].take(id)
            {
                self.strays.push((ipv6, id));
            }
        }
        self.unfinished = resets;
    }

    /// Has it take no more memory than it must. Worth it once all is placed for the first time.
    pub fn pack(&mut self) {
        heap::pack(&mut self.sets);
        heap::pack(&mut self.words);
        heap::pack(&mut self.frontends);
    }

    /// How many elements a table has to have room for.
    fn needs(&self, table: Growing) -> u32 {
        match table {
            Growing::Frontends => {
                let (mut room, max) = (self.room.now.frontends, self.room.max.frontends);
                // A hash has a power of two of buckets.
                while self.frontends.len() - self.marks > room as usize && room < max {
                    room = room.saturating_mul(2).min(max);
                }
                room
            }
            Growing::Sets => self.set_ids.capacity(),
            Growing::Slots => self.slots.capacity(),
            Growing::Backends4 => self.backend_ids[0].capacity(),
            Growing::Backends6 => self.backend_ids[1].capacity(),
        }
    }

    /// Notes which tables have to grow for what was decided.
    pub(super) fn make_room(&mut self, draft: &mut Draft) {
        for table in Growing::ALL {
            let needed = self.needs(table);
            let held = self.room.now.of_mut(table);
            if needed > *held {
                *held = needed;
                draft.grown.push((table, needed));
            }
        }
    }

    /// The id of a set, where it is in the tables.
    pub fn set_id(&self, key: &SetKey) -> Option<u32> {
        self.sets.get(key).map(|set| set.id)
    }

    /// Whose the sets with these ids are, as far as they are anyone's.
    pub fn owners(&self, ids: &BTreeSet<u32>) -> BTreeMap<u32, SetKey> {
        let named = self.sets.iter().filter(|(_, set)| ids.contains(&set.id));
        named.map(|(key, set)| (set.id, key.clone())).collect()
    }

    /// Every set with its number and its present backends, as counters know them.
    pub fn counting(&self) -> Vec<accounts::KnownSet> {
        let counting = |(key, held): (&SetKey, &KnownSet)| {
            let backend = |(slot, id): (&Slot, u32)| (id, (slot.addr, slot.port).into());
            let backends = held.backends.iter().map(backend).collect();
            accounts::KnownSet { key: key.clone(), set: held.id, backends }
        };
        self.sets.iter().map(counting).collect()
    }

    /// How many sets the tables hold.
    pub fn sets_len(&self) -> usize {
        self.sets.len()
    }

    /// Brings one set to what is wanted; where there is no room it stays as it was.
    pub(super) fn place(&mut self, key: &SetKey, wanted: &DesiredSet, draft: &mut Draft) {
        let held = self.sets.remove(key);
        let existed = held.is_some();
        if !existed && wanted.is_unled() {
            return; // a set of before, which the tables were read without
        }
        let Some(mut set) = held.or_else(|| self.new_set(key.ipv6)) else {
            let (map, capacity) = (maps::SETS, self.room.max.sets);
            draft.refused.push(Refused::set(key, map, capacity));
            return;
        };
        if !existed {
            draft.new_sets.push(set.id);
        }
        draft.bury(key, &set, self.generation(set.id));
        if let Err(NoRoom { map, capacity }) = self.place_slots(&mut set, wanted, draft) {
            draft.refused.push(Refused::set(key, map, capacity));
            if !existed {
                // A set that can't be filled must not look like a service without endpoints.
                self.set_ids.free(set.id);
                return;
            }
        }
        self.restrict(key, &mut set, wanted, draft);
        self.sets.insert(key.clone(), set);
    }

    /// Brings the source ranges of a set to what is wanted. Where there is no room for all of them
    /// the set is closed to those in the others: never open to anyone who may not use it.
    fn restrict(
        &mut self,
        key: &SetKey,
        set: &mut KnownSet,
        wanted: &DesiredSet,
        draft: &mut Draft,
    ) {
        let capacity = self.room.max.source_ranges;
        let of_set = |range: &AddrRange| SourceRange { set: set.id, range: *range };
        let mut fresh: Vec<AddrRange> =
            wanted.source_ranges.difference(&set.source_ranges).copied().collect();
        let room = (capacity as usize).saturating_sub(self.source_ranges).min(fresh.len());
        let left_out = fresh.split_off(room);
        draft.refused.extend(Refused::source_ranges(key, &left_out, capacity));
        self.source_ranges += fresh.len();
        draft.put_source_ranges.extend(fresh.iter().map(of_set));
        let gone = set.source_ranges.difference(&wanted.source_ranges).map(of_set);
        draft.removed_source_ranges.extend(gone);
        set.source_ranges.retain(|range| wanted.source_ranges.contains(range));
        set.source_ranges.extend(fresh);
    }

    fn new_set(&mut self, ipv6: bool) -> Option<KnownSet> {
        let id = self.set_ids.allocate()?;
        Some(KnownSet::new(id, ipv6))
    }

    /// How often a set was flipped so far.
    fn generation(&self, set: u32) -> u32 {
        self.words.get(&set).copied().unwrap_or_default().generation()
    }

    fn place_slots(
        &mut self,
        set: &mut KnownSet,
        wanted: &DesiredSet,
        draft: &mut Draft,
    ) -> Result<(), NoRoom> {
        let ids = &mut self.backend_ids[usize::from(set.ipv6)];
        let mut fresh = Vec::new();
        let mut placed = Vec::with_capacity(wanted.slots.len());
        let live = set.backends.by_address();
        for slot in &*wanted.slots {
            let at = (slot.addr, slot.port);
            let held = live.get(at).or_else(|| set.idle.get(&at).copied());
            let held = held.map(|held| held.id);
            let held = held.filter(|id| !draft.is_gone(set.ipv6, *id));
            let Some(id) = held.or_else(|| ids.allocate()) else {
                ids.free_all(fresh);
                let table = if set.ipv6 { Growing::Backends6 } else { Growing::Backends4 };
                return Err(NoRoom { map: table.name(), capacity: self.room.max.of(table) });
            };
            if held.is_none() {
                fresh.push(id);
            }
            placed.push(id);
        }
        let words = range_words(set.id, wanted, &placed);
        let range = if wanted.slots.is_empty() && wanted.windows.flags == 0 {
            None
        } else if set.range.as_ref().is_some_and(|range| range.words == words) {
            set.range.clone()
        } else {
            let length = u32::try_from(words.len()).unwrap_or(u32::MAX);
            let Some(offset) = self.slots.allocate(length) else {
                ids.free_all(fresh);
                return Err(NoRoom { map: maps::SLOTS, capacity: self.room.max.slot_words });
            };
            draft.ranges.push((offset, words.clone()));
            Some(KnownRange { offset, words })
        };
        let backends = Backends::new(Arc::clone(&wanted.slots), placed);
        note_backends(set, &backends, draft);
        let offset = range.as_ref().map_or(0, |range| range.offset);
        let generation = self.generation(set.id);
        if let Some(word) = self.next_word(set.id, offset) {
            // Who met one of its frontends a moment ago finds it as it was.
            let words = if wanted.is_unled() { &mut draft.dead_sets } else { &mut draft.flips };
            words.push((set.id, word));
        }
        if let Some(before) = set.range.take()
            && before.offset != offset
        {
            draft.freed_ranges.push((before.offset, before.length()));
        }
        set.range = range;
        set.idle = idle((set, generation), &backends, wanted, draft);
        set.backends = backends;
        Ok(())
    }

    /// The word that leads a set to `offset`, where it is not there already.
    fn next_word(&mut self, set: u32, offset: u32) -> Option<SetWord> {
        let word = self.words.get(&set).copied().unwrap_or_default();
        if word.offset() == offset {
            return None;
        }
        let next = SetWord::new(offset, word.generation().wrapping_add(1));
        self.words.insert(set, next);
        Some(next)
    }

    /// Takes a desired set out of the tables.
    pub(super) fn remove(&mut self, key: &SetKey, draft: &mut Draft) {
        if let Some(set) = self.sets.remove(key) {
            draft.bury(key, &set, self.generation(set.id));
            self.retire(&set, draft);
        }
    }

    /// Takes a set out of the tables.
    fn retire(&mut self, set: &KnownSet, draft: &mut Draft) {
        if let Some(word) = self.next_word(set.id, 0) {
            draft.dead_sets.push((set.id, word));
        }
        draft.freed_sets.push(set.id);
        let of_set = |range: &AddrRange| SourceRange { set: set.id, range: *range };
        draft.removed_source_ranges.extend(set.source_ranges.iter().map(of_set));
        draft.freed_ranges.extend(set.range.iter().map(|r| (r.offset, r.length())));
        draft.freed_backends.extend(set.backends.ids().iter().map(|id| (set.ipv6, *id)));
        draft.forgotten_backends.extend(set.idle.values().map(|idle| (set.ipv6, idle.id)));
    }

    /// Retires what a complete change does not name.
    pub(super) fn retire_unnamed(&mut self, change: &Change, draft: &mut Draft) {
        for set in std::mem::take(&mut self.strangers) {
            self.retire(&set, draft);
        }
        draft.freed_backends.append(&mut self.strays);
        draft.removed_source_ranges.append(&mut self.stray_ranges);
        let named = |key: &SetKey| change.sets.get(key).is_some_and(Option::is_some);
        let unnamed: Vec<SetKey> = self.sets.keys().filter(|key| !named(key)).cloned().collect();
        for key in unnamed {
            self.remove(&key, draft);
        }
        for key in self.frontends.keys() {
            if !change.frontends.contains_key(key) {
                draft.removed_frontends.push(*key);
            }
        }
    }

    /// Leads a frontend to where it belongs.
    pub(super) fn lead(
        &mut self,
        key: FrontendKey,
        target: Option<&(SetKey, u32)>,
        draft: &mut Draft,
    ) {
        let held = self.frontends.get(&key).copied();
        let target = target.and_then(|(set, flags)| {
            let known = self.sets.get(set)?;
            Some((set, known.id, *flags))
        });
        let Some((set, id, flags)) = target else {
            if held.is_some() {
                draft.removed_frontends.push(key);
            }
            return;
        };
        // A mark says that an address is allocated, to whomever.
        let id = if key.is_guard() { NO_SET } else { id };
        let value = Frontend::new(&key, id, flags);
        if held == Some(value) {
            return;
        }
        let capacity = self.room.max.frontends;
        if held.is_none() && self.frontends.len() - self.marks >= capacity as usize {
            draft.refused.push(Refused::set(set, maps::FRONTENDS, capacity));
            return;
        }
        self.marks += usize::from(held.is_none() && key.is_guard());
        self.frontends.insert(key, value);
        draft.put_frontends.push((key, value));
    }

    /// Forgets the frontends that a plan removes, and takes what it uses again out of the limbo.
    pub(super) fn unlink(&mut self, draft: &Draft) {
        for key in &draft.removed_frontends {
            let held = self.frontends.remove(key);
            self.marks -= usize::from(held.is_some() && key.is_guard());
        }
        for (id, _) in &draft.backends4 {
            self.limbo.keep_record(false, *id);
        }
        for (id, _) in &draft.backends6 {
            self.limbo.keep_record(true, *id);
        }
        for (set, _) in &draft.flips {
            self.limbo.keep_word(*set);
        }
        for range in &draft.put_source_ranges {
            // It was counted when it was put in, and is again.
            self.source_ranges -= usize::from(self.limbo.keep_source_range(range));
        }
    }
}

impl KnownSet {
    /// A set with nothing in it.
    pub(super) fn new(id: u32, ipv6: bool) -> Self {
        let (backends, idle, source_ranges) =
            (Backends::default(), BTreeMap::new(), BTreeSet::new());
        Self { id, range: None, backends, idle, ipv6, source_ranges }
    }

    /// The ids of endpoints, live or idle.
    pub(super) fn ids_at(
        &self,
        endpoints: impl IntoIterator<Item = (IpAddr, u16)>,
    ) -> impl Iterator<Item = ((IpAddr, u16), Option<u32>)> {
        let live = self.backends.by_address();
        endpoints.into_iter().map(move |at| {
            let known = live.get(at).or_else(|| self.idle.get(&at).copied());
            (at, known.map(|known| known.id))
        })
    }
}

impl KnownRange {
    /// The ids behind the header.
    pub(super) fn slots(&self) -> &[u32] {
        self.words.get(RANGE_HEADER_WORDS as usize..).unwrap_or_default()
    }

    pub(super) fn length(&self) -> u32 {
        u32::try_from(self.words.len()).unwrap_or(u32::MAX)
    }
}

/// The ids that stay with endpoints which take no new connections; those of others are free for
/// good. `set` had this generation before.
fn idle(
    (set, generation): (&KnownSet, u32),
    backends: &Backends,
    wanted: &DesiredSet,
    draft: &mut Draft,
) -> BTreeMap<(IpAddr, u16), KnownBackend> {
    let live = set.backends.iter().map(|(slot, id)| {
        let held = KnownBackend { id, flags: slot.flags };
        ((slot.addr, slot.port), held, true)
    });
    let idle = set.idle.iter().map(|(at, held)| (*at, *held, false));
    let by_address = backends.by_address();
    let mut kept = BTreeMap::new();
    for (at, held, was_live) in live.chain(idle) {
        let id = held.id;
        if by_address.get(at).is_some_and(|backend| backend.id == id) {
            continue;
        }
        let why = wanted.idle.get(&at).filter(|_| !draft.is_gone(set.ipv6, id));
        let Some(why) = why else {
            let to =
                if was_live { &mut draft.freed_backends } else { &mut draft.forgotten_backends };
            to.push((set.ipv6, id));
            continue;
        };
        let (flags, (addr, port)) = (why.flags(), at);
        kept.insert(at, KnownBackend { id, flags });
        if *why == Idle::Unserving && held.flags & backend_flags::UNSERVING == 0 {
            draft.forsake(set.id, at, generation);
        }
        if was_live || held.flags != flags {
            draft.reserve(id, set.id, Slot { addr, port, flags }, was_live);
        }
    }
    kept
}

/// Writes the backends that are new or have other flags.
fn note_backends(set: &KnownSet, backends: &Backends, draft: &mut Draft) {
    let before = set.backends.by_address();
    for (slot, id) in backends.iter() {
        let now = KnownBackend { id, flags: slot.flags };
        if before.get((slot.addr, slot.port)) != Some(now) {
            draft.write_backend(id, set.id, slot);
        }
    }
}

/// The words of a set's range: the header, and the ids of its backends.
fn range_words(set: u32, wanted: &DesiredSet, ids: &[u32]) -> Vec<u32> {
    let windows = &wanted.windows;
    // They are kept for as long as the set is there.
    let mut words = Vec::with_capacity(RANGE_HEADER_WORDS as usize + ids.len());
    words.resize(RANGE_HEADER_WORDS as usize, 0);
    let mut put = |position: u32, value: u32| words[position as usize] = value;
    put(header::OWNER, set);
    put(header::INTERNAL_START, windows.internal.start);
    put(header::INTERNAL_COUNT, windows.internal.count);
    put(header::EXTERNAL_START, windows.external.start);
    put(header::EXTERNAL_COUNT, windows.external.count);
    put(header::NEARBY_START, windows.nearby.start);
    put(header::NEARBY_COUNT, windows.nearby.count);
    put(header::FLAGS, windows.flags);
    put(header::AFFINITY_S, wanted.affinity_s);
    words.extend_from_slice(ids);
    words
}

/// The record of a backend.
#[derive(Clone, Copy, Debug)]
pub enum BackendRecord {
    /// For `BACKENDS4`.
    V4(Backend4),
    /// For `BACKENDS6`.
    V6(Backend6),
}

/// The record of the backend in `slot`, which belongs to `set`.
pub(super) fn backend_record(set: u32, slot: &Slot) -> BackendRecord {
    let (port, flags) = (slot.port.to_be_bytes(), slot.flags);
    match slot.addr {
        IpAddr::V4(v4) => BackendRecord::V4(Backend4 { addr: v4.octets(), port, flags, set }),
        IpAddr::V6(v6) => BackendRecord::V6(Backend6 { addr: v6.octets(), port, flags, set }),
    }
}

/// The record of a freed backend whose id is reserved for its endpoint, that in `slot`.
pub(super) fn reserved_record(set: u32, slot: &Slot) -> BackendRecord {
    let flags = slot.flags | backend_flags::FREED;
    backend_record(set | RESERVED, &Slot { flags, ..*slot })
}

/// Record of a freed IPv4 backend: it belongs to nobody.
const FREED4: Backend4 =
    Backend4 { addr: [0; 4], port: [0; 2], flags: backend_flags::FREED, set: NO_SET };
/// Record of a freed IPv6 backend.
const FREED6: Backend6 =
    Backend6 { addr: [0; 16], port: [0; 2], flags: backend_flags::FREED, set: NO_SET };

/// The record of a freed backend. That of a deleted endpoint tells which, for flows to it.
pub(super) fn freed_record(ipv6: bool, gone: Option<(IpAddr, u16)>) -> BackendRecord {
    match gone {
        Some((addr, port)) => {
            let flags = backend_flags::FREED | backend_flags::GONE;
            backend_record(NO_SET, &Slot { addr, port, flags })
        }
        None if ipv6 => BackendRecord::V6(FREED6),
        None => BackendRecord::V4(FREED4),
    }
}
