//! The pods of a daemon set: made for one node each, which the scheduler then binds them to.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::history::{GENERATION, HASH_LABEL};
use crate::controllers::{ownership, pod_facts};

/// Label of pods with the generation of the template that they were made from, by which kubectl
/// knew them before there were revisions.
const GENERATION_LABEL: &str = "pod-template-generation";
/// The field by which a node affinity names a node.
const NODE_NAME: &str = "metadata.name";

/// Taints that pods of daemon sets stay under: a node that has trouble needs its daemons most.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// What those of the node's own network stay under besides: they may be what makes it available.
const TOLERATED_BY_HOST: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// Adds the tolerations of daemons to a pod's own.
pub(super) fn tolerate(spec: &mut PodSpec) {
    let host = (spec.host_network == Some(true)).then_some(TOLERATED_BY_HOST);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(host) {
        let wanted = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&wanted) {
            tolerations.push(wanted);
        }
    }
}

/// A pod of the set's present template, whose revision has that hash, for a node.
pub(super) fn new(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let from = template.metadata.unwrap_or_default();
    let mut labels = from.labels.unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    if let Some(generation) = set.annotations().get(GENERATION) {
        labels.insert(GENERATION_LABEL.to_owned(), generation.clone());
    }
    let mut spec = template.spec.unwrap_or_default();
    tolerate(&mut spec);
    insist(spec.affinity.get_or_insert_default(), node);
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![ownership::controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// Makes an affinity insist on one node. What it insisted on before holds for that node.
fn insist(affinity: &mut Affinity, node: &str) {
    let required = NodeSelectorRequirement {
        key: NODE_NAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![required]), match_expressions: None };
    let to_nodes: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    to_nodes.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The node that a pod is on, or insists on while it waits to be bound.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let insisted = || {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
        let fields = required.node_selector_terms.iter().flat_map(|term| &term.match_fields);
        let mut names =
            fields.flatten().filter(|field| field.key == NODE_NAME && field.operator == "In");
        match names.next()?.values.as_deref()? {
            [name] => Some(name.as_str()),
            _ => None,
        }
    };
    pod_facts::node_name(pod).or_else(insisted)
}
