//! The flows of the packet path: both entries of one go when both are silent for too long, since
//! traffic may go one way only.

use std::{os::fd::AsFd as _, sync::Arc};

use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    conntrack::{Flow, FlowKey, flow_flags},
    counters::Counter,
    flow_state::{self, Need, state},
    limits::{FLOWS_LEAST, FLOWS_MAX, FLOWS_MOST, FLOWS_PER_CPU},
    maps,
    service::backend_flags,
};

use super::{
    Datapath, counters,
    layout::{self, MapLayout},
    maps::KernelMaps,
    pin::{PinError, Pins},
    sweep::{Entries, Facts, Sweeper},
};
use crate::apply::maps::Maps as _;

/// One for each direction.
pub(super) const ENTRIES_OF_FLOW: u32 = 2;

/// For how many flows a new table has room.
pub(super) fn room(configured: Option<u32>) -> u32 {
    configured.unwrap_or_else(|| default_room(counters::online_cpus())).clamp(1, FLOWS_MAX)
}

/// Where nothing is configured, on a machine with so many CPUs.
fn default_room(cpus: usize) -> u32 {
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    FLOWS_PER_CPU.saturating_mul(cpus).clamp(FLOWS_LEAST, FLOWS_MOST)
}

/// Logs where the table of an earlier agent has another size than is configured: programs write to
/// it all the time, so that it can't be replaced unnoticed.
pub(super) fn tell_other_size(pins: &Pins, configured: Option<u32>) -> Result<(), PinError> {
    let (layout, wanted) = (&layout::FLOWS, room(configured));
    let map = pins.open_map(layout)?;
    let found = MapLayout::of(map.as_fd(), layout)
        .map_err(|error| PinError::Open(pins.map(layout.name), error))?;
    let has = found.entries / ENTRIES_OF_FLOW;
    if has != wanted {
        tracing::warn!(
            has,
            wanted,
            "the table of flows keeps the size that an earlier agent gave it until the node starts \
             anew, or is drained and its pins are removed"
        );
    }
    Ok(())
}

/// The tables of backends.
#[derive(Debug)]
pub struct Backends(KernelMaps);

impl Backends {
    /// Whether the flow's backend was deleted, by the record with its id.
    fn say_is_gone(&self, flow: &Flow) -> bool {
        let (addr, port, flags) = if flow.destination.is_v4() {
            let b = self.0.backend4(flow.backend);
            (Addr::from_v4(b.addr), b.port, b.flags)
        } else {
            let b = self.0.backend6(flow.backend);
            (Addr::from_v6(b.addr), b.port, b.flags)
        };
        flags & backend_flags::GONE != 0
            && addr == flow.destination
            && port == flow.destination_port
    }
}

impl Facts for Backends {
    fn open(pins: &Pins) -> Result<Self, PinError> {
        KernelMaps::open(pins).map(Self)
    }
}

/// The entries of `FLOWS`.
#[derive(Debug)]
pub struct Flows;

impl Entries for Flows {
    type Key = FlowKey;
    type Value = Flow;
    const TABLE: &'static str = maps::FLOWS;
    type Facts = Backends;
    const INSERTED: Option<(Counter, u32)> = Some((Counter::FlowCreated, ENTRIES_OF_FLOW));

    fn is_over(key: &FlowKey, flow: &Flow, now_s: u32, need: Need) -> bool {
        flow_state::silent(key.protocol, flow, now_s, need)
    }

    fn marked(key: &FlowKey, flow: &Flow, backends: &Backends) -> Option<Flow> {
        let to_backend = flow_flags::ORIGINAL | flow_flags::OUTWARD;
        let may_be_marked = key.protocol == protocol::TCP
            && flow.flags & to_backend == flow_flags::ORIGINAL
            && flow.state & state::GONE == 0;
        let marked = || Flow { state: flow.state | state::GONE, ..*flow };
        (may_be_marked && backends.say_is_gone(flow)).then(marked)
    }

    fn partner(key: &FlowKey, flow: &Flow) -> Option<FlowKey> {
        Some(key.rewritten(flow).reversed())
    }
}

impl Datapath {
    /// The sweeper of the flow table.
    pub fn flow_sweeper(&self) -> Result<Sweeper<Flows>, PinError> {
        Sweeper::open(Arc::clone(&self.pins), &layout::FLOWS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u03_a_table_has_room_by_cpus_within_bounds_or_as_configured() {
        let by_cpus = [1, 2, 4, 6, 8, 64, usize::MAX].map(default_room);
        assert_eq!(by_cpus, [131_072, 131_072, 131_072, 196_608, 262_144, 262_144, 262_144]);
        assert_eq!([Some(1_024), Some(u32::MAX)].map(room), [1_024, FLOWS_MAX]);
    }
}
