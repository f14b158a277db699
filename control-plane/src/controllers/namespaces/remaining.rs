//! What the status of a namespace that is being deleted says of what is left in it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::Found;
use crate::controllers::pod_facts::whole_seconds;
use crate::controllers::write::{Target, Write};

/// Conditions of what may go wrong and does not: type, reason and message.
const FINE: [(&str, &str, &str); 3] = [
    (
        "NamespaceDeletionDiscoveryFailure",
        "ResourcesDiscovered",
        "All resources successfully discovered",
    ),
    (
        "NamespaceDeletionGroupVersionParsingFailure",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
    ),
    (
        "NamespaceDeletionContentFailure",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
];

/// The write that makes the status say what is left, unless it does.
pub(super) fn tell(namespace: &Namespace, content: &[Found], now: Timestamp) -> Option<Write> {
    let mut wanted: Vec<Said> = FINE
        .iter()
        .map(|(kind, reason, message)| (*kind, "False", *reason, (*message).to_owned()))
        .collect();
    wanted.push(left(content));
    wanted.push(held(content));
    let status = namespace.status.as_ref();
    let present = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let new: Vec<&Said> = wanted.iter().filter(|said| !is_said(present, said)).collect();
    (!new.is_empty()).then(|| Write::StrategicPatch {
        target: Target::of(namespace),
        subresource: Some("status"),
        patch: json!({
            "metadata": {"uid": namespace.metadata.uid},
            "status": {"conditions": new.iter().map(|said| condition(said, now)).collect::<Vec<_>>()},
        }),
    })
}

/// Type, status, reason and message of a condition.
type Said = (&'static str, &'static str, &'static str, String);

fn is_said(present: &[NamespaceCondition], (kind, status, reason, message): &Said) -> bool {
    present.iter().any(|one| {
        one.type_ == *kind
            && one.status == *status
            && one.reason.as_deref() == Some(reason)
            && one.message.as_deref() == Some(message)
    })
}

fn condition((kind, status, reason, message): &Said, now: Timestamp) -> Value {
    json!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": Time(whole_seconds(now)),
    })
}

fn left(content: &[Found]) -> Said {
    let resource = |found: &Found| {
        let resource = &found.target.resource;
        format!("{}.{}", resource.plural, resource.group)
    };
    let counts = count(content.iter().map(resource));
    let kind = "NamespaceContentRemaining";
    if counts.is_empty() {
        return (kind, "False", "ContentRemoved", "All content successfully removed".to_owned());
    }
    let counts: Vec<String> = counts
        .into_iter()
        .map(|(resource, count)| format!("{resource} has {count} resource instances"))
        .collect();
    let message = format!("Some resources are remaining: {}", counts.join(", "));
    (kind, "True", "SomeResourcesRemain", message)
}

fn held(content: &[Found]) -> Said {
    let counts = count(content.iter().flat_map(|found| found.finalizers.iter().cloned()));
    let kind = "NamespaceFinalizersRemaining";
    if counts.is_empty() {
        let message = "All content-preserving finalizers finished".to_owned();
        return (kind, "False", "ContentHasNoFinalizers", message);
    }
    let counts: Vec<String> = counts
        .into_iter()
        .map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"))
        .collect();
    let message =
        format!("Some content in the namespace has finalizers remaining: {}", counts.join(", "));
    (kind, "True", "SomeFinalizersRemain", message)
}

fn count(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}
