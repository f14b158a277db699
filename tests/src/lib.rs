//! What the tests share: hosts made of network namespaces, and waiting on conditions.
//!
//! The tests themselves are modules of `tests/suite`, one binary, so that there is one link.

pub mod netns;
pub mod wait;
