//! What the agent knows of the cluster: immutable snapshots, shared by everyone who decides.
//!
//! No I/O, no clock, no `kube` and no `aya` types here. `kube::convert` makes these values from
//! API objects; `desired` (datapath), `dns` (zone) and `podnet` (routes) are functions of them.

pub mod endpoints;
pub mod node;
pub mod pod;
pub mod service;
pub mod snapshot;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: std::sync::Arc<str>,
    /// The name.
    pub name: std::sync::Arc<str>,
}

impl ObjectKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
