//! The sweep of the packet path's flow table: what is silent for too long is removed.
//!
//! The programs forget an expired flow when a packet of it comes; this removes those of which
//! none comes. Each run does a bounded part and goes on where the last one ended. An entry is
//! removed where both entries of its flow are silent: traffic may go one way only.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use mizzen_ebpf_abi::{
    conntrack::{Flow, FlowKey},
    flow_state,
    limits::FLOWS_MAX,
};

use super::{
    Datapath, layout,
    pin::PinError,
    sys::{self, Cursor},
};

/// Entries read by one call to the kernel: bounds how long it is busy with it.
const BATCH: usize = 4_096;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the flow table")]
pub struct SweepError {
    /// What was tried.
    pub operation: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries looked at.
    pub seen: usize,
    /// Entries removed.
    pub removed: usize,
    /// Whether the run reached the end of the table: the next begins anew.
    pub finished: bool,
}

/// Removes expired flows, a part at a time.
#[derive(Debug)]
pub struct FlowSweeper {
    flows: OwnedFd,
    cursor: Option<Cursor>,
    keys: Vec<FlowKey>,
    values: Vec<Flow>,
    live: usize,
    live_before: usize,
}

impl Datapath {
    /// The sweeper of the flow table.
    pub fn flow_sweeper(&self) -> Result<FlowSweeper, PinError> {
        Ok(FlowSweeper {
            flows: self.pins.open_map(&layout::FLOWS)?,
            cursor: None,
            keys: vec![FlowKey::default(); BATCH],
            values: vec![Flow::default(); BATCH],
            live: 0,
            live_before: 0,
        })
    }
}

impl FlowSweeper {
    /// Looks at `budget` entries at least, or at what is left of the table, and removes those of
    /// expired flows. Blocks for the time of its system calls.
    pub fn run(&mut self, budget: usize) -> Result<Swept, SweepError> {
        let now_s = sys::boot_seconds()
            .map_err(|source| SweepError { operation: "ask the time for", source })?;
        let mut swept = Swept::default();
        while swept.seen < budget && !swept.finished {
            let read = sys::lookup_batch(
                self.flows.as_fd(),
                self.cursor.as_ref(),
                &mut self.keys,
                &mut self.values,
            )
            .map_err(|source| SweepError { operation: "read", source })?;
            self.cursor = read.next;
            swept.finished = self.cursor.is_none();
            swept.seen += read.count;
            for index in 0..read.count {
                if self.is_over(index, now_s)? {
                    swept.removed += self.remove(index)?;
                } else {
                    self.live += 1;
                }
            }
        }
        if swept.finished {
            self.live_before = std::mem::take(&mut self.live);
        }
        Ok(swept)
    }

    /// How full the table was when it was last swept to its end, from 0 to 1.
    pub fn pressure(&self) -> f64 {
        f64::from(u32::try_from(self.live_before).unwrap_or(u32::MAX)) / f64::from(FLOWS_MAX)
    }

    fn is_over(&self, index: usize, now_s: u32) -> Result<bool, SweepError> {
        let (key, read) = (&self.keys[index], &self.values[index]);
        if !flow_state::silent(key.protocol, read, now_s) {
            return Ok(false);
        }
        let entry = |key: &FlowKey| -> Result<Option<Flow>, SweepError> {
            sys::lookup(self.flows.as_fd(), key)
                .map_err(|source| SweepError { operation: "look up an entry of", source })
        };
        // It was read with thousands of others: a packet may have come since, or a new flow with
        // the same addresses.
        let still = entry(key)?.filter(|flow| flow_state::silent(key.protocol, flow, now_s));
        let Some(flow) = still else {
            return Ok(false);
        };
        let peer = entry(&peer_key(key, &flow))?;
        Ok(peer.is_none_or(|peer| flow_state::silent(key.protocol, &peer, now_s)))
    }

    /// Removes both entries of a flow; how many there were.
    fn remove(&self, index: usize) -> Result<usize, SweepError> {
        let (key, flow) = (&self.keys[index], &self.values[index]);
        let mut removed = 0;
        for key in [key, &peer_key(key, flow)] {
            let was_there = sys::delete(self.flows.as_fd(), key)
                .map_err(|source| SweepError { operation: "remove an entry of", source })?;
            removed += usize::from(was_there);
        }
        Ok(removed)
    }
}

/// The key of a flow's other entry.
fn peer_key(key: &FlowKey, flow: &Flow) -> FlowKey {
    key.rewritten(flow).reversed()
}
