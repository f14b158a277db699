//! What the agent knows of the cluster: immutable snapshots, shared by everyone who decides.
//!
//! No I/O, no clock, no `kube` and no `aya` types here. `kube::convert` makes these values from
//! API objects; `desired` (datapath), `dns` (zone) and `podnet` (routes) are functions of them.

pub mod endpoints;
pub mod labels;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod service;
pub mod snapshot;

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

/// What identifies an object among its kind. All that is known of a service has its key, a dozen
/// times over: so it is a pointer, and copies share what it points to.
#[derive(Clone)]
pub struct ObjectKey(Arc<NamespacedName>);

/// Namespace and name of an object.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self::of(namespace.into(), name.into())
    }

    /// The key with these names.
    pub fn of(namespace: Arc<str>, name: Arc<str>) -> Self {
        Self(Arc::new(NamespacedName { namespace, name }))
    }

    /// How many copies there are.
    pub fn copies(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl Deref for ObjectKey {
    type Target = NamespacedName;

    fn deref(&self) -> &NamespacedName {
        &self.0
    }
}

impl PartialEq for ObjectKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for ObjectKey {}

impl Hash for ObjectKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl PartialOrd for ObjectKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ObjectKey {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
