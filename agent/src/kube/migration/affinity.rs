//! On which nodes kube-proxy's DaemonSet may run, as JSON of a pod's `affinity`. Pure.

use serde_json::{Value, json};

use super::LABEL;
use crate::model::node::KubeProxy;

/// `before`, and besides on nodes alone where kube-proxy is wanted: a node that joins later has no
/// label, and none.
pub fn restricted(before: &Value) -> Value {
    let wanted = wanted();
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

/// What is asked of a node.
fn wanted() -> Value {
    json!({
        "key": LABEL,
        "operator": "In",
        "values": [KubeProxy::Runs.value(), KubeProxy::Returning.value()],
    })
}

/// Whether an affinity admits nodes alone where kube-proxy is wanted.
pub fn is_restricted(affinity: &Value) -> bool {
    let required = &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let Some(terms) = required["nodeSelectorTerms"].as_array() else { return false };
    let asks_for_it = |term: &Value| {
        term["matchExpressions"].as_array().is_some_and(|all| all.contains(&wanted()))
    };
    !terms.is_empty() && terms.iter().all(|term| !asks(term) || asks_for_it(term))
}

/// What an affinity asks for besides: `null` where nothing is left.
///
/// A term that asked for the label alone admitted every other node, and so did all terms together, of
/// which one is enough: without the label nothing is required of a node. Without any such term it stays
/// as it is.
pub fn without_label(affinity: &Value) -> Value {
    let mut left = affinity.clone();
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let of_node = &mut left["nodeAffinity"];
    let Some(terms) = of_node[required]["nodeSelectorTerms"].as_array_mut() else {
        return affinity.clone();
    };
    let (mut was_there, mut admits_all) = (false, false);
    for term in terms {
        let expressions = term.get_mut("matchExpressions").and_then(Value::as_array_mut);
        let Some(expressions) = expressions else { continue };
        let before = expressions.len();
        expressions.retain(|expression| *expression != wanted());
        if expressions.len() == before {
            continue;
        }
        was_there = true;
        if expressions.is_empty() {
            remove(term, "matchExpressions");
        }
        admits_all |= !asks(term);
    }
    if !was_there {
        return affinity.clone();
    }
    if admits_all {
        remove(of_node, required);
        if is_empty(of_node) {
            remove(&mut left, "nodeAffinity");
        }
    }
    if is_empty(&left) { Value::Null } else { left }
}

fn remove(from: &mut Value, field: &str) {
    if let Some(fields) = from.as_object_mut() {
        fields.remove(field);
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
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

    #[test]
    fn what_is_asked_for_is_by_the_contract() {
        let expected = json!({"key": "mizzen.dev/kube-proxy", "operator": "In", "values": ["runs", "returning"]});
        assert_eq!(wanted(), expected);
    }

    #[test]
    fn somebody_may_have_lifted_the_restriction() {
        let linux = json!({"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]});
        let required = |terms: Value| {
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": terms}}})
        };
        let one = required(json!([{"matchExpressions": [linux]}]));
        for before in [Value::Null, json!({}), required(json!([])), one] {
            assert!(!is_restricted(&before) && is_restricted(&restricted(&before)), "{before}");
        }
        let other = json!([{"matchExpressions": [wanted()]}, {"matchExpressions": [linux]}]);
        assert!(!is_restricted(&required(other)), "one term is enough for a node");
    }

    #[test]
    fn without_the_label_an_affinity_asks_for_what_it_asked_for_before() {
        let required = |terms: Value| {
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": terms}}})
        };
        let (linux, arm) = (json!({"key": "os"}), json!({"key": "arch"}));
        let field = json!({"matchFields": [{"key": "metadata.name"}]});
        let both = required(json!([{"matchExpressions": [linux]}, field, {}]));
        let others = json!({"podAntiAffinity": {"x": 1}, "nodeAffinity": {"preferred": [1]}});
        for before in [Value::Null, both.clone(), others.clone()] {
            assert_eq!(without_label(&restricted(&before)), before, "{before}");
        }
        for untouched in [Value::Null, json!({}), json!({"nodeAffinity": null}), both, others] {
            assert_eq!(without_label(&untouched), untouched);
        }
        // Somebody added a term meanwhile.
        let more = required(json!([{"matchExpressions": [linux, wanted()]},
                                   {"matchExpressions": [arm]}]));
        let both = json!([{"matchExpressions": [linux]}, {"matchExpressions": [arm]}]);
        assert_eq!(without_label(&more), required(both));
        // To the term of a DaemonSet that asked for nothing.
        let more = required(json!([{"matchExpressions": [wanted()]},
                                   {"matchExpressions": [arm]}]));
        assert_eq!(without_label(&more), Value::Null, "every node was admitted, and is");
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
