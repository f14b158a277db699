//! The answer of `mizzen why -o json`: fields are added, never changed (docs/operations.md).

use serde::{Deserialize, Serialize};

/// The answers to one question: one for each address and port that it names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// The node whose tables were read.
    pub node: String,
    /// The answers.
    pub answers: Vec<Answer>,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Who dials.
    pub source: Source,
    /// What is dialled.
    pub destination: Destination,
    /// The service whose frontend it is; none where it is none's.
    pub service: Option<Service>,
    /// The path that decides about a new connection.
    pub decides: PathName,
    /// What that path does with it.
    pub outcome: Outcome,
    /// Both paths, `socket` first.
    pub paths: Vec<Path>,
    /// Connections of this client to this destination that the packet path has in its table, ten
    /// at most.
    pub flows: Vec<Flow>,
}

/// Who dials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Its address.
    pub address: String,
    /// `pod`, `node` (this one) or `outside` (everything else, other nodes included).
    pub kind: String,
    /// Namespace and name of the pod; empty where it is none or is not known.
    pub pod: String,
    /// Whether its sockets are on this node.
    pub here: bool,
}

/// What is dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// Address and port.
    pub address: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The port's name; may be empty.
    pub port: String,
    /// What the address is to it: `ClusterIP`, `NodePort`, `ExternalIP` or `LoadBalancer`.
    pub kind: String,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: String,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: String,
    /// Seconds of session affinity; 0 where there is none.
    pub session_affinity_seconds: u32,
    /// Whether only clients inside of source ranges may use the address.
    pub source_ranges: bool,
}

/// Where a decision is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathName {
    /// Once, where a socket dials.
    Socket,
    /// At the first packet.
    Packet,
}

/// What a path does with a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It goes to one of the candidates.
    Balanced,
    /// It goes to one backend, for a reason of its own.
    Pinned,
    /// It stays as it is.
    Untouched,
    /// The node itself answers, as it does for cluster DNS.
    Local,
    /// The client is told that nobody is there.
    Refused,
    /// It is dropped without a word.
    Dropped,
    /// The path has no part in it.
    Unused,
    /// The tables are at fault.
    Faulty,
}

/// Which endpoints a decision was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowName {
    /// Those of the internal traffic policy.
    Internal,
    /// Those of the external traffic policy.
    External,
    /// Those for this node and its pods at external addresses.
    Nearby,
}

/// What one path does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Path {
    /// Which.
    pub path: PathName,
    /// What becomes of a new connection.
    pub outcome: Outcome,
    /// Why, for people.
    pub reason: String,
    /// The endpoints that it chooses from; none where it comes to no choice.
    pub window: Option<WindowName>,
    /// The backends that a new connection may go to.
    pub candidates: Vec<Candidate>,
    /// The one that it will go to, where that is settled.
    pub pinned: Option<Pinned>,
    /// Whether the source is rewritten; none where nothing is translated.
    pub masquerade: Option<Masquerade>,
}

/// A backend that a new connection may go to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Address and port.
    pub address: String,
    /// From 0 to 1; those of all candidates add up to 1.
    pub probability: f64,
    /// Namespace and name of the pod, where there is one.
    pub pod: Option<String>,
    /// Whether it is on this node.
    pub local: bool,
    /// Whether it is terminating, and used because no other is ready.
    pub terminating: bool,
}

/// A backend that is settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pinned {
    /// Address and port.
    pub address: String,
    /// Namespace and name of the pod, where there is one.
    pub pod: Option<String>,
    /// Why, for people.
    pub reason: String,
}

/// What becomes of the source address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Masquerade {
    /// The address that the backend sees; empty where it is the client's own.
    pub address: String,
    /// Why, for people.
    pub reason: String,
    /// Candidates for which it is the other way round, with the reason.
    pub exceptions: Vec<Exception>,
}

/// A candidate that is treated unlike the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exception {
    /// The candidate's address and port.
    pub candidate: String,
    /// The address that it sees; empty where it is the client's own.
    pub address: String,
    /// Why, for people.
    pub reason: String,
}

/// A flow in the packet path's table, as its opener sees it: also `mizzen flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The client's address and port.
    pub source: String,
    /// What it dialled.
    pub destination: String,
    /// The backend's address and port.
    pub backend: String,
    /// The source that the backend sees; empty where it is the client's own.
    pub masqueraded: String,
    /// Namespace and name of the service; empty where it is not known.
    pub service: String,
    /// `opening`, `established`, `closing`, `closed` or `reset`.
    pub state: String,
    /// Seconds since a packet of either direction was seen.
    pub idle_seconds: u32,
}

impl Outcome {
    /// Whether nothing is left for another path.
    pub fn settles(self) -> bool {
        match self {
            Self::Balanced | Self::Pinned | Self::Local | Self::Refused | Self::Faulty => true,
            Self::Untouched | Self::Dropped | Self::Unused => false,
        }
    }

    /// Whether a client that gets this gets no answer from a backend.
    pub fn fails(self) -> bool {
        matches!(self, Self::Refused | Self::Dropped | Self::Faulty)
    }
}
