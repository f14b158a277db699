//! What the agent answers on its socket: JSON, read by `mizzen` and by scripts. Fields are added,
//! never changed.

use serde::{Deserialize, Serialize};

use crate::traffic::Traffic;

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
    /// `ClusterIP`, `NodePort` or `LoadBalancer`, by the addresses that it has.
    #[serde(rename = "type")]
    pub kind: String,
    /// `Cluster` or `Local`.
    #[serde(rename = "internalTrafficPolicy")]
    pub internal_traffic_policy: String,
    /// `Cluster` or `Local`.
    #[serde(rename = "externalTrafficPolicy")]
    pub external_traffic_policy: String,
    /// Seconds of session affinity; 0 where there is none.
    #[serde(rename = "sessionAffinitySeconds")]
    pub session_affinity_seconds: u32,
    /// What clients dial: `address:port`, with `*` for all addresses that take node ports.
    pub frontends: Vec<String>,
    /// The same, each with its kind.
    pub addresses: Vec<Address>,
    /// Backends for clients of the cluster IP.
    pub internal: usize,
    /// Backends for clients outside of the cluster.
    pub external: usize,
    /// Endpoints that some traffic may go to.
    pub endpoints: usize,
    /// Those of them that are on this node.
    pub local: usize,
    /// Those of them that are terminating.
    pub terminating: usize,
    /// What its backends were sent, former ones included.
    #[serde(default)]
    pub traffic: Traffic,
}

/// What a port of a service in one family was sent: `mizzen backends --traffic`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortTraffic {
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
    /// What all its backends were sent, former ones included.
    pub traffic: Traffic,
    /// Its backends at present.
    pub backends: Vec<BackendTraffic>,
}

/// What one backend was sent while it had its place in the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendTraffic {
    /// `address:port`.
    pub backend: String,
    /// How much.
    pub traffic: Traffic,
}

/// What clients dial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// `address:port/protocol`, with `*` for all addresses that take node ports.
    pub address: String,
    /// `ClusterIP`, `NodePort`, `ExternalIP` or `LoadBalancer`.
    pub kind: String,
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
    /// Backends for traffic from this node and its pods to addresses for outside.
    pub nearby: Vec<String>,
    /// Whether it is an address for outside: then `external` and `nearby` apply, else `internal`.
    pub outside: bool,
    /// Whether it stands for all addresses that take node ports.
    #[serde(rename = "anyAddress")]
    pub any_address: bool,
    /// What is wrong with the tables here; empty where nothing is.
    pub fault: String,
}

/// What would be written if the tables were compared now: `mizzen diff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// The steps, a line for each element; empty where the tables are as they should be.
    pub steps: Vec<String>,
}

/// The packet path's connection table: `mizzen flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// The flows, each once, as its opener sees it.
    pub flows: Vec<crate::why::answer::Flow>,
    /// Whether there are more than were asked for.
    pub more: bool,
}
