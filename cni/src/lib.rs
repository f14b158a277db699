//! Mizzen's CNI plugin: parses what the container runtime says, asks the agent, says the answer.
//!
//! It has no state and makes no decisions: addresses, links and routes are the agent's. What it
//! owns is the CNI protocol ([`protocol`]), a time limit on every call, and the one thing that
//! must work without the agent: [`offline`] DEL.
//!
//! ```text
//! runtime ──env, stdin──> protocol ──Call──> plugin ──wire──> agent (podnet::server)
//!         <──stdout────── protocol <─Value── plugin <──wire──
//! ```

pub mod protocol;

pub mod wire;

pub mod client;
pub mod offline;
pub mod plugin;
