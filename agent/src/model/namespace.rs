//! Namespaces, below which objects have names.

use std::sync::Arc;

use super::labels::Labels;

/// A Namespace of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
}
