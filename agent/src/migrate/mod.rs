//! From kube-proxy to Mizzen and back, on one node: what `mizzen migrate` looks at, decides and does.
//!
//! ```text
//! look (processes, rules, connections, the agent) ─> Seen ─> plan ─> steps, obstacles ─> carry_out
//! ```
//! [`leftovers`] says which rules are kube-proxy's, [`plan`] what follows; both are pure.
//! [`carry_out`] does what a plan says, one step after another, and is the only one that writes.
//!
//! Connections that kube-proxy's rules translated go on: the kernel's connection tracking translates
//! them, not the rules, as long as something keeps it at work ([`hold`]).

pub mod carry_out;
pub mod hold;
pub mod leftovers;
pub mod look;
pub mod plan;
