//! Roles and bindings: what a rule must say, and that a binding never changes its role.

use serde_json::Value;

use super::invalid::Errors;
use super::object::Object;
use super::strategy::Strategy;
use crate::authz::rbac::GROUP;

/// [`Strategy`] of roles.
pub(super) struct Roles {
    namespaced: bool,
}

/// Those of namespaces.
pub(super) const ROLES: Roles = Roles { namespaced: true };
/// Those of the cluster.
pub(super) const CLUSTER_ROLES: Roles = Roles { namespaced: false };

/// [`Strategy`] of bindings.
pub(super) struct Bindings {
    namespaced: bool,
}

/// Those of namespaces.
pub(super) const ROLE_BINDINGS: Bindings = Bindings { namespaced: true };
/// Those of the cluster.
pub(super) const CLUSTER_ROLE_BINDINGS: Bindings = Bindings { namespaced: false };

fn is_empty(value: &Value) -> bool {
    value.as_array().is_none_or(Vec::is_empty)
}

impl Strategy for Roles {
    fn validate(&self, object: &Object, errors: &mut Errors) {
        for (index, rule) in object.list("/rules").iter().enumerate() {
            let at = |field: &str| format!("rules[{index}].{field}");
            if is_empty(&rule["verbs"]) {
                errors.required(at("verbs"), "verbs must contain at least one value");
            }
            let urls = &rule["nonResourceURLs"];
            if !is_empty(urls) {
                let fields = ["apiGroups", "resources", "resourceNames"];
                if self.namespaced {
                    let why = "namespaced rules cannot apply to non-resource URLs";
                    errors.invalid(at("nonResourceURLs"), urls.clone(), why);
                }
                if !fields.iter().all(|field| is_empty(&rule[*field])) {
                    let why = "rules cannot apply to both regular resources and non-resource URLs";
                    errors.invalid(at("nonResourceURLs"), urls.clone(), why);
                }
                continue;
            }
            if is_empty(&rule["apiGroups"]) {
                let why = "resource rules must supply at least one api group";
                errors.required(at("apiGroups"), why);
            }
            if is_empty(&rule["resources"]) {
                let why = "resource rules must supply at least one resource";
                errors.required(at("resources"), why);
            }
        }
        if object.at("/aggregationRule").is_some()
            && object.list("/aggregationRule/clusterRoleSelectors").is_empty()
        {
            let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.required("aggregationRule.clusterRoleSelectors", why);
        }
    }
}

impl Strategy for Bindings {
    fn default(&self, object: &mut Object) {
        object.default("/roleRef/apiGroup", GROUP);
        let Some(Value::Array(subjects)) = object.at_mut("/subjects") else { return };
        for subject in subjects.iter_mut().filter(|subject| subject.is_object()) {
            let of_users = matches!(subject["kind"].as_str(), Some("User" | "Group"));
            if of_users && subject["apiGroup"].as_str().unwrap_or_default().is_empty() {
                subject["apiGroup"] = GROUP.into();
            }
            if let Some(fields) = subject.as_object_mut()
                && fields.get("apiGroup").is_some_and(|group| group == "" || group.is_null())
            {
                fields.remove("apiGroup");
            }
        }
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        let role = |field: &str| object.text(&format!("/roleRef/{field}"));
        if role("apiGroup") != GROUP {
            errors.not_supported("roleRef.apiGroup", role("apiGroup"), &[GROUP]);
        }
        let kinds: &[&str] =
            if self.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        if !kinds.contains(&role("kind")) {
            errors.not_supported("roleRef.kind", role("kind"), kinds);
        }
        if role("name").is_empty() {
            errors.required("roleRef.name", "");
        }
        for (index, subject) in object.list("/subjects").iter().enumerate() {
            self.validate_subject(subject, &format!("subjects[{index}]"), errors);
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        if object.at("/roleRef") != old.at("/roleRef") {
            let role = object.at("/roleRef").cloned().unwrap_or_default();
            errors.invalid("roleRef", role, "cannot change roleRef");
        }
    }
}

impl Bindings {
    fn validate_subject(&self, subject: &Value, at: &str, errors: &mut Errors) {
        let text = |field: &str| subject[field].as_str().unwrap_or_default();
        if text("name").is_empty() {
            errors.required(format!("{at}.name"), "");
        }
        let group = match text("kind") {
            "ServiceAccount" => "",
            "User" | "Group" => GROUP,
            other => {
                let known = ["ServiceAccount", "User", "Group"];
                errors.not_supported(format!("{at}.kind"), other, &known);
                return;
            }
        };
        if text("apiGroup") != group {
            errors.not_supported(format!("{at}.apiGroup"), text("apiGroup"), &[group]);
        }
        if text("kind") == "ServiceAccount" && !self.namespaced && text("namespace").is_empty() {
            errors.required(format!("{at}.namespace"), "");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(strategy: &dyn Strategy, object: Value) -> String {
        let mut object = Object::new(object).unwrap();
        let mut errors = Errors::default();
        strategy.default(&mut object);
        strategy.validate(&object, &mut errors);
        errors.to_string()
    }

    #[test]
    fn a_rule_says_what_it_is_about() {
        let rules = |rule: Value| json!({"rules": [rule]});
        let whole = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
        assert_eq!(faults(&ROLES, rules(whole)), "[]");
        for (rule, field) in [
            (json!({"apiGroups": [""], "resources": ["pods"]}), "rules[0].verbs: Required value"),
            (
                json!({"verbs": ["get"], "resources": ["pods"]}),
                "rules[0].apiGroups: Required value",
            ),
            (json!({"verbs": ["get"], "apiGroups": [""]}), "rules[0].resources: Required value"),
            (json!({"verbs": ["get"], "nonResourceURLs": ["/x"]}), "namespaced rules cannot apply"),
        ] {
            let found = faults(&ROLES, rules(rule));
            assert!(found.contains(field), "{found:?} does not say {field:?}");
        }
        let url = json!({"verbs": ["get"], "nonResourceURLs": ["/x"]});
        assert_eq!(faults(&CLUSTER_ROLES, rules(url)), "[]");
    }

    #[test]
    fn a_binding_has_subjects_that_can_be_and_keeps_its_role() {
        let binding = |role: &str, subject: Value| json!({"roleRef": {"kind": role, "name": "r"}, "subjects": [subject]});
        let account = json!({"kind": "ServiceAccount", "name": "x"});
        assert_eq!(faults(&ROLE_BINDINGS, binding("Role", account.clone())), "[]");
        assert_eq!(
            faults(&ROLE_BINDINGS, binding("ClusterRole", json!({"kind": "User", "name": "x"}))),
            "[]"
        );
        for (found, expected) in [
            (
                faults(&CLUSTER_ROLE_BINDINGS, binding("ClusterRole", account.clone())),
                "subjects[0].namespace: Required value",
            ),
            (
                faults(
                    &CLUSTER_ROLE_BINDINGS,
                    binding("Role", json!({"kind": "User", "name": "x"})),
                ),
                "roleRef.kind: Unsupported value: \"Role\"",
            ),
            (
                faults(&ROLE_BINDINGS, binding("Role", json!({"kind": "Robot", "name": "x"}))),
                "subjects[0].kind: Unsupported value: \"Robot\"",
            ),
            (
                faults(&ROLE_BINDINGS, binding("Role", json!({"kind": "Group", "name": ""}))),
                "subjects[0].name: Required value",
            ),
        ] {
            assert!(found.contains(expected), "{found:?} does not say {expected:?}");
        }
        let (old, new) = (binding("Role", account.clone()), binding("ClusterRole", account));
        let mut errors = Errors::default();
        ROLE_BINDINGS.validate_update(
            &Object::new(new).unwrap(),
            &Object::new(old).unwrap(),
            &mut errors,
        );
        assert!(errors.to_string().contains("cannot change roleRef"), "{errors}");
    }
}
