//! On which nodes kube-proxy's DaemonSet may run, as JSON of a pod's `affinity`. Pure.

use serde_json::{Value, json};

use super::LABEL;
use crate::model::node::KubeProxy;

/// `before`, and besides on nodes alone where kube-proxy is wanted: a node that joins later has no
/// label, and none.
pub fn restricted(before: &Value) -> Value {
    let wanted = json!({
        "key": LABEL,
        "operator": "In",
        "values": [KubeProxy::Runs.value(), KubeProxy::Returning.value()],
    });
    let mut affinity = if before.is_object() { before.clone() } else { json!({}) };
    let required = &mut affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    match required["nodeSelectorTerms"].as_array_mut() {
        // One of them is enough for a node, so each has to ask for it. One that asks for nothing
        // admits no node, and goes on to.
        Some(terms) if !terms.is_empty() => {
            for term in terms.iter_mut().filter(|term| asks(term)) {
                match term["matchExpressions"].as_array_mut() {
                    Some(expressions) => expressions.push(wanted.clone()),
                    None => term["matchExpressions"] = json!([wanted]),
                }
            }
        }
        _ => required["nodeSelectorTerms"] = json!([{"matchExpressions": [wanted]}]),
    }
    affinity
}

/// Whether a term asks for anything.
fn asks(term: &Value) -> bool {
    let any = |field: &str| term[field].as_array().is_some_and(|list| !list.is_empty());
    any("matchExpressions") || any("matchFields")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(before: &Value) -> Value {
        restricted(before)["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            ["nodeSelectorTerms"]
            .clone()
    }

    fn wanted() -> Value {
        json!({"key": "mizzen.dev/kube-proxy", "operator": "In", "values": ["runs", "returning"]})
    }

    #[test]
    fn where_there_was_none_the_label_alone_decides() {
        for before in [Value::Null, json!({}), json!({"nodeAffinity": null})] {
            assert_eq!(terms(&before), json!([{"matchExpressions": [wanted()]}]), "{before}");
        }
    }

    #[test]
    fn what_was_asked_for_before_is_asked_for_besides() {
        let linux = json!({"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]});
        let named = json!([{"key": "metadata.name", "operator": "In", "values": ["n"]}]);
        let before = json!({
            "podAntiAffinity": {"x": 1},
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}],
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [linux]}, {"matchFields": named}, {},
                ]},
            },
        });
        let expected = json!([
            {"matchExpressions": [linux, wanted()]},
            {"matchFields": named, "matchExpressions": [wanted()]},
            {},
        ]);
        assert_eq!(terms(&before), expected);
        let mut after = restricted(&before);
        let required = &mut after["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        *required =
            before["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"].clone();
        assert_eq!(after, before, "nothing else is changed");
    }
}
