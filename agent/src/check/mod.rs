//! `mizzen check`: is this node's datapath healthy, and what to do where it is not.
//!
//! ```text
//! board, kernel, tables, settings ──read──> Facts ──judge (pure)──> findings ──> text or JSON
//! ```
//! What fails concerns traffic now. What is warned of does not yet, or costs something.

mod host;
mod judge;
mod pod_network;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use mizzen_ebpf_abi::counters::Counter;
use serde::{Deserialize, Serialize};

pub use host::Host;
pub use judge::judge;
pub use pod_network::PodNetworkFacts;

use crate::{
    apply::maps::Usage,
    datapath::{Features, Place, Uplinks},
    status::State,
};

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Something is lost or may go wrong later.
    Warn,
    /// Traffic suffers, or would.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `agent`, `programs`, ….
    pub check: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub said: String,
    /// What to do; empty where all is well.
    pub remedy: String,
}

/// The answer: `/v1/check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The Node.
    pub node: String,
    /// Whether nothing fails.
    pub healthy: bool,
    /// What was looked at, in a fixed order.
    pub findings: Vec<Finding>,
}

/// What is judged.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The agent's parts.
    pub parts: BTreeMap<&'static str, State>,
    /// The datapath; `None` where the services role is off.
    pub datapath: Option<DatapathFacts>,
    /// Settings of the kernel.
    pub host: Host,
    /// The pod network, or why it can't be looked at; `None` where the CNI role is off.
    pub pod_network: Option<Result<PodNetworkFacts, String>>,
}

/// The state of the programs and of their tables.
#[derive(Clone, Debug)]
pub struct DatapathFacts {
    /// What the kernel has.
    pub features: Features,
    /// Whether packet programs are links of their interfaces, else filters, which are not looked at.
    pub packet_links: bool,
    /// Where socket programs belong.
    pub cgroup: PathBuf,
    /// Where programs are, or why that can't be told.
    pub places: Result<Vec<Place>, String>,
    /// The devices to other hosts, or why they can't be told.
    pub uplinks: Result<Uplinks, String>,
    /// How many steps the tables are away from what they should be, or why that is not known.
    pub differences: Result<usize, String>,
    /// How full tables are.
    pub usage: Vec<Usage>,
    /// Elements that somebody else altered and that were mended, since the agent started.
    pub healed: u64,
    /// What the programs counted.
    pub counters: Vec<(Counter, u64)>,
    /// First and last source port of masqueraded flows.
    pub snat_ports: (u16, u16),
    /// The node ports in use.
    pub node_ports: BTreeSet<u16>,
    /// Whether another CNI plugin connects the pods.
    pub foreign_cni: bool,
    /// Whether this node answers for cluster DNS, so that a program belongs at its loopback interface.
    pub resolver: bool,
}
