//! On which nodes a daemon set has a pod.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, PodSpec};

use super::pod;
use crate::controllers::taints;
use crate::scheduler::affinity;

/// What a node is to a daemon set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// It has a pod.
    Wanted,
    /// It gets none, and one that is there stays: the node was tainted since.
    Tolerated,
    /// It has none.
    Unwanted,
}

/// A daemon set's pods, as far as their node matters.
pub(super) struct Eligible {
    spec: PodSpec,
}

impl Eligible {
    /// By the template of the set, with the tolerations that its pods are given.
    pub(super) fn new(set: &DaemonSet) -> Self {
        let template = set.spec.as_ref().map(|spec| &spec.template);
        let mut spec = template.and_then(|template| template.spec.clone()).unwrap_or_default();
        pod::tolerate(&mut spec);
        Self { spec }
    }

    /// What that node is to the set. Room and ports are the scheduler's to judge.
    pub(super) fn on(&self, node: &Node) -> Fit {
        let named = self.spec.node_name.as_deref().filter(|name| !name.is_empty());
        if named.is_some_and(|name| node.metadata.name.as_deref() != Some(name))
            || !affinity::is_required(&self.spec, node)
        {
            return Fit::Unwanted;
        }
        let tolerations = self.spec.tolerations.as_deref().unwrap_or_default();
        if taints::first(node, tolerations, &["NoExecute"]).is_some() {
            Fit::Unwanted
        } else if taints::first(node, tolerations, &["NoSchedule"]).is_some() {
            Fit::Tolerated
        } else {
            Fit::Wanted
        }
    }
}
