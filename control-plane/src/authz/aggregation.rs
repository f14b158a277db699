//! Cluster roles that are made of others: the rules of all that their selectors match.

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};

use crate::controllers::selector::selects;

/// The rules that an aggregated role should have; `None` for a role that is not aggregated.
/// `all` are the cluster's roles in the order of their names.
pub fn rules<'a>(
    role: &ClusterRole,
    all: &(impl Iterator<Item = &'a ClusterRole> + Clone),
) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors.unwrap_or_default() {
        for other in all.clone() {
            let own = other.metadata.name == role.metadata.name;
            if own || !selects(selector, other.metadata.labels.as_ref()) {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(rules)
}
