//! Label selectors: does an object carry the labels that somebody selects?

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// The labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// Whether a `matchLabels` and `matchExpressions` selector selects these labels. All requirements
/// must hold; the empty selector selects everything.
pub(crate) fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let equalities = selector.match_labels.as_ref().is_none_or(|wanted| contains(labels, wanted));
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    equalities && expressions.iter().all(|requirement| holds(requirement, labels))
}

/// Whether the selector has no requirement. A workload with such a selector selects nothing.
pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_deref().unwrap_or_default().is_empty()
}

/// Whether `labels` holds every pair of `wanted` (a Service's selector).
pub(crate) fn contains(labels: Option<&Labels>, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

fn holds(requirement: &LabelSelectorRequirement, labels: Option<&Labels>) -> bool {
    let value = labels.and_then(|labels| labels.get(&requirement.key));
    let values = requirement.values.as_deref().unwrap_or_default();
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        // An operator that we do not know must not widen a selection.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: (!values.is_empty()).then(|| values.iter().map(|v| (*v).into()).collect()),
            }]),
        }
    }

    #[test]
    fn inv_55_set_based_requirements() {
        let web = labels(&[("app", "web"), ("tier", "front")]);
        let table = [
            (expression("app", "In", &["web", "api"]), true),
            (expression("app", "In", &["api"]), false),
            (expression("zone", "In", &["a"]), false),
            (expression("app", "NotIn", &["api"]), true),
            (expression("app", "NotIn", &["web"]), false),
            (expression("zone", "NotIn", &["a"]), true),
            (expression("tier", "Exists", &[]), true),
            (expression("zone", "Exists", &[]), false),
            (expression("zone", "DoesNotExist", &[]), true),
            (expression("tier", "DoesNotExist", &[]), false),
            (expression("tier", "Gt", &["1"]), false),
        ];
        for (selector, expected) in table {
            assert_eq!(selects(&selector, Some(&web)), expected, "{selector:?}");
        }
    }

    #[test]
    fn inv_57_labels_and_expressions_are_joined_by_and() {
        let mut selector = expression("tier", "In", &["front"]);
        selector.match_labels = Some(labels(&[("app", "web")]));
        assert!(selects(
            &selector,
            Some(&labels(&[("app", "web"), ("tier", "front"), ("x", "y")]))
        ));
        assert!(!selects(&selector, Some(&labels(&[("app", "web")]))));
        assert!(!selects(&selector, Some(&labels(&[("tier", "front")]))));
        assert!(!selects(&selector, None));
    }

    #[test]
    fn inv_57_a_service_selector_is_a_map_and_extra_labels_are_fine() {
        let wanted = labels(&[("app", "web")]);
        assert!(contains(Some(&labels(&[("app", "web"), ("extra", "1")])), &wanted));
        assert!(!contains(Some(&labels(&[("app", "api")])), &wanted));
        assert!(!contains(None, &wanted));
    }
}
