//! Waiting for the programs that run: the update of an array of maps does (decision 7).

use std::{
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::Arc,
};

use super::{
    layout,
    maps::kernel,
    pin::{PinError, Pins},
    sys,
};
use crate::apply::maps::BarrierCall;

/// The pinned array, and what is put into it.
#[derive(Debug)]
pub(super) struct Barrier {
    outer: OwnedFd,
    inside: OwnedFd,
}

impl Barrier {
    pub(super) fn open(pins: &Pins) -> Result<Arc<Self>, PinError> {
        let inside = sys::create_map(&layout::INSIDE_BARRIER)
            .map_err(|source| PinError::Open(pins.map(layout::BARRIER.name), source))?;
        Ok(Arc::new(Self { outer: pins.open_map(&layout::BARRIER)?, inside }))
    }

    /// The call that waits, for any thread.
    pub(super) fn call(self: &Arc<Self>) -> BarrierCall {
        let barrier = Arc::clone(self);
        Box::new(move || {
            let inside = barrier.inside.as_raw_fd().cast_unsigned();
            sys::update(barrier.outer.as_fd(), &0_u32, &inside).map_err(kernel(
                "write to",
                &layout::BARRIER,
                &"its entry",
            ))
        })
    }
}
