//! Mizzen's node agent: Services in eBPF, the pod network, and cluster DNS, each a role that can
//! be switched off.
//!
//! ```text
//! API server ─> kube ─> model ─┬─> desired ─> diff ─> plan ─> apply ─> datapath (eBPF maps)
//! netlink ────> facts ─────────┘                ^               │
//!                              ├─> podnet       └── what the kernel holds
//!                              └─> dns
//! ```
//! State goes one way. `model`, `desired` and `diff` are pure; [`apply`] makes no choices;
//! [`reconcile`] joins them and is the only writer of the tables; [`supervisor`] runs the tasks.

pub mod apply;
pub mod arrivals;
pub mod check;
pub mod cli;
pub mod config;
pub mod data_dir;
pub mod datapath;
pub mod desired;
pub mod diff;
pub mod dns;
pub mod facts;
pub mod follow;
pub mod foreign;
pub mod handover;
mod heap;
pub mod host_ports;
pub mod kube;
pub mod local_pods;
pub mod log;
pub mod metrics;
pub mod migrate;
pub mod model;
pub mod netfilter;
pub mod podnet;
pub mod reconcile;
pub mod redact;
pub mod released;
pub mod resets;
pub mod serve;
mod slice;
pub mod source_ports;
pub mod status;
pub mod supervisor;
pub mod sweep;
pub mod traffic;
pub mod why;
