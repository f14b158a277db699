//! The sweep of the tables that the programs fill: what is over is removed, a part of the table at
//! a time, each going on where the last one ended. What is left is counted on the way.
//!
//! The programs take what is over for nothing when they meet it; this removes what they never meet
//! again.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use aya::Pod;
use mizzen_ebpf_abi::{counters::Counter, flow_state::Need};

use super::{
    counters::Counters,
    layout::MapLayout,
    pin::{PinError, Pins},
    sys,
    walk::Walk,
};
use crate::apply::maps::Usage;

/// The entries of a table, and when one is over.
pub trait Entries {
    /// What the table finds them by.
    type Key: Pod + Default;
    /// What it says of them.
    type Value: Pod + Default;
    /// What else has to be known of them.
    type Facts: Facts;
    /// The table's name.
    const TABLE: &'static str;
    /// What the programs count when they insert into it, and how many entries one is.
    const INSERTED: Option<(Counter, u32)> = None;

    /// Whether an entry is over, as far as it tells. `now_s` is in seconds since boot.
    fn is_over(key: &Self::Key, value: &Self::Value, now_s: u32, need: Need) -> bool;

    /// What an entry that stays has to say from now on, if it says otherwise.
    fn marked(_key: &Self::Key, _value: &Self::Value, _facts: &Self::Facts) -> Option<Self::Value> {
        None
    }

    /// The entry without which this one is nothing: they stay or go together.
    fn partner(_key: &Self::Key, _value: &Self::Value) -> Option<Self::Key> {
        None
    }
}

/// Other tables that a sweep looks into, opened for each part.
pub trait Facts: Sized {
    /// Opens them.
    fn open(pins: &Pins) -> Result<Self, PinError>;
}

impl Facts for () {
    fn open(_pins: &Pins) -> Result<Self, PinError> {
        Ok(())
    }
}

/// Why a part could not be swept.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The table can't be read or written.
    #[error("{operation} map {table}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// The table.
        table: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another table can't be opened.
    #[error("open the tables that a sweep looks into")]
    Facts(#[from] PinError),
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries looked at.
    pub seen: usize,
    /// Entries removed.
    pub removed: usize,
    /// Entries that say something else from now on.
    pub marked: usize,
    /// Whether the run reached the end of the table: the next begins anew.
    pub finished: bool,
}

/// Removes from a table what is over, a part at a time.
#[derive(Debug)]
pub struct Sweeper<E: Entries> {
    pins: Arc<Pins>,
    map: OwnedFd,
    capacity: u32,
    walk: Walk<E::Key, E::Value>,
    live: usize,
    /// How many were live when the table was last swept to its end.
    live_before: Option<usize>,
    counters: Counters,
    /// How many were inserted when this sweep began.
    inserted_at: u64,
    /// And when the last one did that came to its end.
    inserted_before: u64,
}

/// A table is tight where more than three quarters of it are used.
fn is_tight(used: u64, capacity: u32) -> bool {
    used * 4 > u64::from(capacity) * 3
}

impl<E: Entries> Sweeper<E> {
    pub(super) fn open(pins: Arc<Pins>, layout: &MapLayout) -> Result<Self, PinError> {
        let map = pins.open_map(layout)?;
        let found = MapLayout::of(map.as_fd(), layout)
            .map_err(|error| PinError::Open(pins.map(layout.name), error))?;
        Ok(Self {
            map,
            capacity: found.entries,
            walk: Walk::new(),
            live: 0,
            live_before: None,
            counters: Counters::open(&pins)?,
            pins,
            inserted_at: 0,
            inserted_before: 0,
        })
    }

    /// How many entries the table has room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// How many entries were ever inserted, as far as that is counted.
    fn inserted(&self) -> u64 {
        let Some((counter, entries)) = E::INSERTED else { return 0 };
        self.counters.get(counter).unwrap_or(self.inserted_at) * u64::from(entries)
    }

    /// Whether so much was inserted since the table was last looked through that it may be tight by
    /// now, for all that is known: worth a look at the whole of it.
    pub fn may_be_tight(&self) -> bool {
        let since = self.inserted().saturating_sub(self.inserted_before);
        let most = self.live_before.unwrap_or(0) as u64 + since;
        is_tight(most, self.capacity) && since > u64::from(self.capacity / 16)
    }

    /// Looks at `budget` entries at least, or at what is left of the table, and removes those that
    /// are over. Blocks for the time of its system calls.
    pub fn run(&mut self, budget: usize) -> Result<Swept, SweepError> {
        if self.walk.is_at_start() {
            self.inserted_at = self.inserted();
        }
        let now_s = sys::boot_seconds().map_err(failed::<E>("ask the time for"))?;
        let mut swept = Swept::default();
        let facts = E::Facts::open(&self.pins)?;
        let when = When { now_s, need: self.need() };
        while swept.seen < budget && !swept.finished {
            let batch = self.walk.step(self.map.as_fd()).map_err(failed::<E>("read"))?;
            swept.finished = batch.is_last;
            swept.seen += batch.keys.len();
            for (key, value) in batch.iter() {
                match remove_if_over::<E>(self.map.as_fd(), key, value, when)? {
                    0 => {
                        self.live += 1;
                        swept.marked +=
                            usize::from(mark::<E>(self.map.as_fd(), key, value, &facts)?);
                    }
                    removed => swept.removed += removed,
                }
            }
        }
        if swept.finished {
            self.live_before = Some(std::mem::take(&mut self.live));
            self.inserted_before = self.inserted_at;
        }
        Ok(swept)
    }

    /// Whether the table was so full that there may soon be no room.
    fn need(&self) -> Need {
        let was_tight = is_tight(self.live_before.unwrap_or(0) as u64, self.capacity);
        if was_tight || self.may_be_tight() { Need::Pressing } else { Need::None }
    }

    /// How full the table was when it was last swept to its end; none before that.
    pub fn usage(&self) -> Option<Usage> {
        let used = u32::try_from(self.live_before?).unwrap_or(u32::MAX);
        Some(Usage { map: E::TABLE, used, now: self.capacity, max: self.capacity })
    }
}

/// What a part of a sweep goes by.
#[derive(Clone, Copy)]
struct When {
    now_s: u32,
    need: Need,
}

/// Removes an entry, with its partner, where both are over. How many that were.
fn remove_if_over<E: Entries>(
    map: BorrowedFd<'_>,
    key: &E::Key,
    read: &E::Value,
    When { now_s, need }: When,
) -> Result<usize, SweepError> {
    if !E::is_over(key, read, now_s, need) {
        return Ok(0);
    }
    let look_up = |key: &E::Key| -> Result<Option<E::Value>, SweepError> {
        sys::lookup(map, key).map_err(failed::<E>("look up an entry of"))
    };
    // It was read with thousands of others: it may have come to life since, or be another's.
    let still = look_up(key)?.filter(|value| E::is_over(key, value, now_s, need));
    let Some(value) = still else { return Ok(0) };
    let partner = E::partner(key, &value);
    if let Some(partner) = &partner
        && look_up(partner)?.is_some_and(|value| !E::is_over(partner, &value, now_s, need))
    {
        return Ok(0);
    }
    let mut removed = 0;
    for key in [Some(*key), partner].into_iter().flatten() {
        let was_there = sys::delete(map, &key).map_err(failed::<E>("remove an entry of"))?;
        removed += usize::from(was_there);
    }
    Ok(removed)
}

/// Lets an entry say what it has to say. Whether it did not before.
fn mark<E: Entries>(
    map: BorrowedFd<'_>,
    key: &E::Key,
    read: &E::Value,
    facts: &E::Facts,
) -> Result<bool, SweepError> {
    if E::marked(key, read, facts).is_none() {
        return Ok(false);
    }
    // As it is by now. What the programs write to it between this and the next call is lost: a few
    // octets of counters, or, where a client dials anew by the same port within these microseconds,
    // its new flow, which then is reset as the old one would have been. To compare the flow's birth
    // can't close that: the kernel has no exchange on a condition, and the whole value is written,
    // birth included, so that what the new flow was is lost. It takes a write of one octet in
    // place: a program that finds the entry, compares its backend and destination, and sets the
    // bit.
    let now = sys::lookup(map, key).map_err(failed::<E>("look up an entry of"))?;
    let marked = now.and_then(|value| E::marked(key, &value, facts));
    let Some(marked) = marked else { return Ok(false) };
    sys::replace(map, key, &marked).map_err(failed::<E>("mark an entry of"))
}

fn failed<E: Entries>(operation: &'static str) -> impl Fn(io::Error) -> SweepError {
    move |source| SweepError::Kernel { operation, table: E::TABLE, source }
}
