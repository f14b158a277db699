//! What the programs counted, summed over the CPUs.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
};

use mizzen_ebpf_abi::counters::Counter;

use super::{
    layout::{self, MapLayout},
    pin::{PinError, Pins},
    sys,
};

/// The counters of one node's programs. They count from the load of the first agent on.
#[derive(Debug)]
pub struct Counters {
    map: OwnedFd,
    cpus: usize,
}

/// Why the counters can't be read.
#[derive(Debug, thiserror::Error)]
#[error("read the eBPF counters")]
pub struct CountersError(#[from] io::Error);

/// The pin of a table that is about to take another's place.
const NEXT: &str = "COUNTERS_NEXT";

/// Sees to it that a table that is pinned has room for all counters. New ones are appended to those
/// that an earlier agent knew, which is no other layout: a larger table takes the place of its, with
/// what was counted. Its programs count in the old one until they are replaced.
pub(super) fn make_room(pins: &Pins) -> Result<(), PinError> {
    let path = pins.map(layout::COUNTERS.name);
    let failed = |error| PinError::Open(path.clone(), error);
    let old = match sys::open_pin(&path) {
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let found = MapLayout::of(old.as_fd(), &layout::COUNTERS).map_err(failed)?;
    // What is not a table of counters at all is told by who checks all maps.
    if found.entries >= layout::COUNTERS.entries
        || !layout::COUNTERS.differs_in_entries_at_most(&found)
    {
        return Ok(());
    }
    let grow = || {
        let new = sys::create_map(&layout::COUNTERS)?;
        let mut values = vec![0; cpus()?];
        for counter in 0..found.entries {
            sys::lookup_per_cpu(old.as_fd(), counter, &mut values)?;
            sys::update_per_cpu(new.as_fd(), counter, &values)?;
        }
        let next = pins.map(NEXT);
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        sys::pin(new.as_fd(), &next)?;
        fs::rename(&next, &path)
    };
    grow().map_err(failed)?;
    let (from, to) = (found.entries, layout::COUNTERS.entries);
    tracing::info!(from, to, "took over what an earlier agent's programs counted");
    Ok(())
}

impl Counters {
    pub(super) fn open(pins: &Pins) -> Result<Self, PinError> {
        let map = pins.open_map(&layout::COUNTERS)?;
        // As many words as the kernel writes: one per CPU that there could be.
        let cpus =
            cpus().map_err(|error| PinError::Open(pins.map(layout::COUNTERS.name), error))?;
        Ok(Self { map, cpus })
    }

    /// One counter.
    pub fn get(&self, counter: Counter) -> Result<u64, CountersError> {
        let mut values = vec![0; self.cpus];
        sys::lookup_per_cpu(self.map.as_fd(), counter as u32, &mut values)?;
        Ok(values.iter().sum())
    }

    /// All counters, in index order.
    pub fn all(&self) -> Result<Vec<(Counter, u64)>, CountersError> {
        Counter::ALL.iter().map(|counter| Ok((*counter, self.get(*counter)?))).collect()
    }
}

/// How many CPUs there could be; the kernel's numbers of them are below that.
pub(super) fn cpus() -> io::Result<usize> {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    possible_cpus(&list).ok_or_else(|| io::Error::other("the list of possible CPUs is unreadable"))
}

/// How many CPUs there are at present; one where that can't be read.
pub(super) fn online_cpus() -> usize {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    possible_cpus(&list).unwrap_or(1)
}

/// One more than the last CPU of a list such as `0-3` or `0,2-7`.
fn possible_cpus(list: &str) -> Option<usize> {
    let last = list.trim().rsplit([',', '-']).next()?;
    last.parse::<usize>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::possible_cpus;

    #[test]
    fn counts_possible_cpus() {
        assert_eq!(possible_cpus("0\n"), Some(1));
        assert_eq!(possible_cpus("0-1\n"), Some(2));
        assert_eq!(possible_cpus("0,2-127\n"), Some(128));
        assert_eq!(possible_cpus(""), None);
    }
}
