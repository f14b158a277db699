//! Waiting for a descriptor to become readable.

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers a descriptor that we own with the asynchronous runtime.
#[expect(unsafe_code, reason = "the runtime has no safe registration for owned descriptors")]
pub(super) fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, open, and moves into the `AsyncFd`, which gives out only
    // shared references: it cannot be closed or replaced while it is registered.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}
