//! The process runtime for real: namespaces, cgroups, mounts, exit codes. Needs root.
//!
//! Each test has a state folder and a cgroup of its own, and checks that nothing of it is left.
//! The CNI plugin here is a small script: the real one has its own tests with the agent.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod bed;
mod lifecycle;
mod roots;
