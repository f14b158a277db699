//! What the tests share: hosts made of network namespaces, and waiting on conditions.
//!
//! The tests themselves are modules of `tests/suite`, one binary, so that there is one link.

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "what tests call panics where it fails"
)]

pub mod actor;
pub mod backend;
pub mod echo;
pub mod lab;
pub mod names;
pub mod netns;
pub mod node;
pub mod rate;
pub mod soak;
pub mod storm;
pub mod tables;
pub mod wait;
