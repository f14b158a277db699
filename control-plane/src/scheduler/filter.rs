//! Where a pod can run: the reasons that speak against a node.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Node, PodSpec, Taint, Toleration};
use kube::ResourceExt;

use super::affinity;
use super::cluster::{Cluster, Needs, NodeInfo};
use crate::controllers::taints;

/// The taint of a cordoned node, which a pod may tolerate.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Why a node cannot take a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// The node is cordoned.
    Unschedulable,
    /// The pod names another node.
    NodeName,
    /// The node repels the pod: key and value of the taint.
    Taint(String, String),
    /// The node is none of those that the pod selects.
    Affinity,
    /// A port of the node that the pod wants is taken.
    Ports,
    /// The node has no room for another pod.
    TooManyPods,
    /// There is not enough left of that resource.
    Insufficient(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unschedulable => f.write_str("node(s) were unschedulable"),
            Self::NodeName => f.write_str("node(s) didn't match the requested node name"),
            Self::Taint(key, value) => {
                write!(f, "node(s) had untolerated taint {{{key}: {value}}}")
            }
            Self::Affinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::Ports => {
                f.write_str("node(s) didn't have free ports for the requested pod ports")
            }
            Self::TooManyPods => f.write_str("Too many pods"),
            Self::Insufficient(resource) => write!(f, "Insufficient {resource}"),
        }
    }
}

/// Why no node can take a pod, in the words of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unschedulable {
    pub(super) message: String,
}

/// The nodes that can take the pod.
pub(super) fn feasible<'c>(
    spec: &PodSpec,
    needs: &Needs,
    cluster: &'c Cluster,
) -> Result<Vec<(&'c str, &'c NodeInfo)>, Unschedulable> {
    let mut fit = Vec::new();
    let mut count = 0;
    let mut against: BTreeMap<String, usize> = BTreeMap::new();
    for (name, info) in cluster.nodes() {
        count += 1;
        let reasons = check(spec, needs, info);
        if reasons.is_empty() {
            fit.push((name, info));
        }
        for reason in reasons {
            *against.entry(reason.to_string()).or_insert(0) += 1;
        }
    }
    if !fit.is_empty() {
        return Ok(fit);
    }
    if count == 0 {
        return Err(Unschedulable { message: "no nodes available to schedule pods".to_owned() });
    }
    let mut reasons: Vec<String> =
        against.into_iter().map(|(reason, nodes)| format!("{nodes} {reason}")).collect();
    reasons.sort();
    let message = format!("0/{count} nodes are available: {}.", reasons.join(", "));
    Err(Unschedulable { message })
}

/// What speaks against the node. The first check that fails decides, as in Kubernetes; the
/// resources that are short are all named.
pub(super) fn check(spec: &PodSpec, needs: &Needs, info: &NodeInfo) -> Vec<Reason> {
    let Some(node) = &info.node else { return vec![Reason::NodeName] };
    let one = |reason: Reason| vec![reason];
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if is_cordoned(node) && !tolerates_cordon(tolerations) {
        return one(Reason::Unschedulable);
    }
    if spec.node_name.as_ref().is_some_and(|name| !name.is_empty() && *name != node.name_any()) {
        return one(Reason::NodeName);
    }
    if let Some(taint) = taints::first(node, tolerations, &["NoSchedule", "NoExecute"]) {
        return one(Reason::Taint(taint.key.clone(), taint.value.clone().unwrap_or_default()));
    }
    if !affinity::is_required(spec, node) {
        return one(Reason::Affinity);
    }
    if needs.ports.iter().any(|port| info.ports.iter().any(|taken| taken.conflicts(port))) {
        return one(Reason::Ports);
    }
    shortages(needs, info)
}

fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

fn tolerates_cordon(tolerations: &[Toleration]) -> bool {
    let taint = Taint {
        key: UNSCHEDULABLE.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    taints::is_tolerated(&taint, tolerations)
}

fn shortages(needs: &Needs, info: &NodeInfo) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if info.pods + 1 > info.allocatable.get("pods") {
        reasons.push(Reason::TooManyPods);
    }
    let short = needs.requests.iter().filter(|(name, amount)| {
        info.requested.get(name).saturating_add(*amount) > info.allocatable.get(name)
    });
    reasons.extend(short.map(|(name, _)| Reason::Insufficient(name.to_owned())));
    reasons
}
