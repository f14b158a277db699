//! What the agent answers on its socket: JSON, read by `mizzen` and by scripts. Fields are added,
//! never changed.

use serde::{Deserialize, Serialize};

/// How one part of the agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// `ready`, `waiting` or `degraded`.
    pub state: String,
    /// What it waits for, or what does not work; empty where it is ready.
    pub reason: String,
}

/// `mizzen status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The Node.
    pub node: String,
    /// Whether all parts are ready.
    pub ready: bool,
    /// The parts, by name.
    pub parts: Vec<Part>,
    /// What in the cluster's objects can't be done as asked.
    pub warnings: Vec<String>,
}

/// A port of a service in one family: `mizzen services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The port's name; may be empty.
    pub port: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// What clients dial: `address:port`, with `*` for all addresses that take node ports.
    pub frontends: Vec<String>,
    /// Backends for clients of the cluster IP.
    pub internal: usize,
    /// Backends for clients outside of the cluster.
    pub external: usize,
}

/// What one frontend leads to, as the kernel's tables have it: `mizzen backends`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// What clients dial.
    pub frontend: String,
    /// The service that has it; empty where no service is known for it.
    pub service: String,
    /// Backends for traffic to a cluster IP.
    pub internal: Vec<String>,
    /// Backends for traffic from outside of the cluster.
    pub external: Vec<String>,
    /// What is wrong with the tables here; empty where nothing is.
    pub fault: String,
}

/// What would be written if the tables were compared now: `mizzen diff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// The steps, a line for each element; empty where the tables are as they should be.
    pub steps: Vec<String>,
}
