//! What was acknowledged stays: the server as a process of its own that is killed, whose disk is
//! full or damaged, whose clock jumps, and that has more clients than it likes.
//!
//! Tests named `soak_…` do a seeded twentieth of their work, and all of it for `cargo xtask soak`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail at that place")]

mod claims;
mod clock;
mod crashes;
mod crowd;
mod damage;
mod dice;
mod full_disk;
mod process;
