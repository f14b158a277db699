//! Which nodes a pod wants: `nodeSelector` and node affinity.

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PreferredSchedulingTerm,
};
use kube::ResourceExt;

use crate::controllers::selector;

/// Whether the node is one of those that the pod insists on.
pub(crate) fn is_required(spec: &PodSpec, node: &Node) -> bool {
    let labels = spec.node_selector.as_ref();
    if !labels.is_none_or(|wanted| selector::contains(Some(node.labels()), wanted)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    // Terms are alternatives; a selector without terms matches nothing.
    required
        .is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(term, node)))
}

/// The sum of the weights of the pod's wishes that the node meets.
pub(super) fn preference(spec: &PodSpec, node: &Node) -> i64 {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let wishes = affinity
        .and_then(|it| it.preferred_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default();
    let met = |wish: &&PreferredSchedulingTerm| matches(&wish.preference, node);
    wishes.iter().filter(met).map(|wish| i64::from(wish.weight)).sum()
}

/// Whether the node meets all requirements of a term. An empty term matches nothing.
fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = node.name_any();
    let field = |key: &str| (key == "metadata.name").then_some(name.as_str());
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|it| holds(it, node.labels().get(&it.key).map(String::as_str)))
        && fields.iter().all(|it| holds(it, field(&it.key)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|listed| listed == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let compared = number(value).zip(number(values.first().map(String::as_str)));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared.is_some_and(|(value, bound)| value > bound),
        "Lt" => compared.is_some_and(|(value, bound)| value < bound),
        // An operator that we do not know must not let a pod onto a node.
        _ => false,
    }
}
