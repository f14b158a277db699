//! The ring buffer by which the programs tell what becomes of connections: there while somebody
//! follows. Its place in an array of one map is the switch that programs look at.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
};

use aya::maps::{Map, MapData, MapError, RingBuf};
use mizzen_ebpf_abi::{counters::Counter, event::FlowEvent};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Datapath,
    counters::{Counters, CountersError},
    layout,
    pin::{PinError, Pins},
    sys,
};

/// Where in the array the buffer is.
const PRESENT: u32 = 0;

/// Why connections can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// A map can't be opened.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The kernel makes no buffer, or does not take it.
    #[error("make a buffer for what the programs tell")]
    Make(#[source] io::Error),
    /// The buffer can't be mapped.
    #[error("map the buffer for what the programs tell")]
    Map(#[from] MapError),
    /// What was lost can't be read.
    #[error(transparent)]
    Counters(#[from] CountersError),
}

/// Begins to follow. One follows at a time; the last one that began has the place.
#[derive(Clone, Debug)]
pub struct FlowEvents {
    pins: Arc<Pins>,
    /// How often it was begun: the buffer of an earlier one must not take the place of a later.
    begun: Arc<Mutex<u64>>,
}

/// What the programs tell, from now on until it is dropped.
pub struct FlowRing {
    ring: RingBuf<MapData>,
    array: OwnedFd,
    /// The kernel's id of the buffer.
    id: u32,
    counters: Counters,
    /// Events that were lost when last asked.
    lost: u64,
    turn: u64,
    begun: Arc<Mutex<u64>>,
}

impl Datapath {
    /// Follows what becomes of connections.
    pub fn flow_events(&self) -> FlowEvents {
        FlowEvents { pins: Arc::clone(&self.pins), begun: Arc::default() }
    }
}

/// Nobody follows any more who did with an agent that was killed.
pub(super) fn forget(pins: &Pins) -> Result<(), PinError> {
    let array = pins.open_map(&layout::FLOW_EVENTS)?;
    let failed = |error| PinError::Open(pins.map(layout::FLOW_EVENTS.name), error);
    sys::delete(array.as_fd(), &PRESENT).map(drop).map_err(failed)
}

impl FlowEvents {
    /// Begins; the programs tell what happens from now on. Waits for those that run.
    pub fn follow(&self) -> Result<FlowRing, FollowError> {
        let array = self.pins.open_map(&layout::FLOW_EVENTS)?;
        let counters = Counters::open(&self.pins)?;
        let lost = counters.get(Counter::FlowEventLost)?;
        let map = sys::create_map(&layout::FLOW_RING).map_err(FollowError::Make)?;
        let id = sys::map_info(map.as_fd()).map_err(FollowError::Make)?.id;
        let fd = map.as_raw_fd().cast_unsigned();
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        sys::update(array.as_fd(), &PRESENT, &fd).map_err(FollowError::Make)?;
        *begun += 1;
        let turn = *begun;
        drop(begun);
        let ring = RingBuf::try_from(Map::RingBuf(MapData::from_fd(map)?))?;
        Ok(FlowRing { ring, array, id, counters, lost, turn, begun: Arc::clone(&self.begun) })
    }

    /// Whether the programs tell what happens.
    pub fn is_followed(&self) -> Result<bool, FollowError> {
        let array = self.pins.open_map(&layout::FLOW_EVENTS)?;
        let present: Option<u32> =
            sys::lookup(array.as_fd(), &PRESENT).map_err(FollowError::Make)?;
        Ok(present.is_some())
    }
}

/// What was told and not taken yet. Having come to the end, it goes on when more is told.
impl Iterator for FlowRing {
    type Item = FlowEvent;

    fn next(&mut self) -> Option<FlowEvent> {
        loop {
            let item = self.ring.next()?;
            if item.len() == size_of::<FlowEvent>() {
                // SAFETY: as many octets as the record has, and any are a value of it.
                return Some(unsafe { item.as_ptr().cast::<FlowEvent>().read_unaligned() });
            }
        }
    }
}

impl FlowRing {
    /// The same, to be waited for. To be called in a runtime.
    pub fn registered(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the descriptor is that of the map, which the ring keeps open for as long as it lives,
        // and it gives no other.
        unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)
    }

    /// Whether this is the buffer that the programs tell.
    fn is_told(&self) -> Result<bool, FollowError> {
        let present: Option<u32> =
            sys::lookup(self.array.as_fd(), &PRESENT).map_err(FollowError::Make)?;
        Ok(present == Some(self.id))
    }

    /// How many were lost since last asked: the buffer was full.
    pub fn newly_lost(&mut self) -> Result<u64, CountersError> {
        let lost = self.counters.get(Counter::FlowEventLost)?;
        Ok(lost.saturating_sub(std::mem::replace(&mut self.lost, lost)))
    }
}

impl AsRawFd for FlowRing {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for FlowRing {
    fn drop(&mut self) {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        // Another agent may have taken over, and have somebody who follows.
        if *begun == self.turn
            && self.is_told().unwrap_or(true)
            && let Err(error) = sys::delete(self.array.as_fd(), &PRESENT)
        {
            tracing::warn!(%error, "the programs go on telling what happens to connections");
        }
    }
}

impl std::fmt::Debug for FlowRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowRing").field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// Nanoseconds of the clock of [`FlowEvent::at_ns`].
pub fn now_ns() -> io::Result<u64> {
    sys::monotonic_ns()
}
