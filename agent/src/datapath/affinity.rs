//! The sweep of the clients that keep their backends: who was silent for longer than the service
//! says is removed, a part of the table at a time. The programs take such an entry for none when
//! the client comes back; this removes those of clients that don't.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use mizzen_ebpf_abi::{
    affinity::{Affinity, AffinityKey},
    limits::AFFINITY_MAX,
};

use super::{
    Datapath, Swept, layout,
    pin::PinError,
    sys::{self, Cursor},
};

/// Entries read by one call to the kernel: bounds how long it is busy with it.
const BATCH: usize = 4_096;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the table of clients that keep their backends")]
pub struct AffinitySweepError {
    /// What was tried.
    pub operation: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Removes clients that were silent for too long, a part at a time.
#[derive(Debug)]
pub struct AffinitySweeper {
    entries: OwnedFd,
    cursor: Option<Cursor>,
    keys: Vec<AffinityKey>,
    values: Vec<Affinity>,
    live: usize,
    live_before: usize,
}

impl Datapath {
    /// The sweeper of the clients that keep their backends.
    pub fn affinity_sweeper(&self) -> Result<AffinitySweeper, PinError> {
        Ok(AffinitySweeper {
            entries: self.pins.open_map(&layout::AFFINITY)?,
            cursor: None,
            keys: vec![AffinityKey::default(); BATCH],
            values: vec![Affinity::default(); BATCH],
            live: 0,
            live_before: 0,
        })
    }
}

impl AffinitySweeper {
    /// Looks at `budget` entries at least, or at what is left of the table. Blocks for the time of
    /// its system calls.
    pub fn run(&mut self, budget: usize) -> Result<Swept, AffinitySweepError> {
        let failed = |operation| move |source| AffinitySweepError { operation, source };
        let now_s = sys::boot_seconds().map_err(failed("ask the time for"))?;
        let mut swept = Swept::default();
        while swept.seen < budget && !swept.finished {
            let entries = self.entries.as_fd();
            let from = self.cursor.as_ref();
            let read = sys::lookup_batch(entries, from, &mut self.keys, &mut self.values)
                .map_err(failed("read"))?;
            self.cursor = read.next;
            swept.finished = self.cursor.is_none();
            swept.seen += read.count;
            for (key, value) in self.keys.iter().zip(&self.values).take(read.count) {
                if !is_over(value, now_s) {
                    self.live += 1;
                    continue;
                }
                // It was read with thousands of others: the client may have come back since.
                let again: Option<Affinity> =
                    sys::lookup(entries, key).map_err(failed("look up an entry of"))?;
                if again.is_some_and(|value| is_over(&value, now_s)) {
                    let was_there =
                        sys::delete(entries, key).map_err(failed("remove an entry of"))?;
                    swept.removed += usize::from(was_there);
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
        f64::from(u32::try_from(self.live_before).unwrap_or(u32::MAX)) / f64::from(AFFINITY_MAX)
    }
}

fn is_over(affinity: &Affinity, now_s: u32) -> bool {
    affinity.is_over(affinity.timeout_s, now_s)
}
