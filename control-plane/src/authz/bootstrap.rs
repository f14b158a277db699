//! The roles and bindings that every cluster has from the start, as objects.
//!
//! What Kubernetes' users, its components and ours may do. At each start what is missing of them
//! is added again, rules and subjects included, unless an object's annotation
//! [`AUTO_UPDATE`] says `false`.

mod controllers;
mod roles;

use std::sync::LazyLock;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::{Value, json};

use super::{aggregation, rbac};

/// Whether a bootstrap object is kept complete.
pub const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Verbs that read.
const READ: &[&str] = &["get", "list", "watch"];
/// Verbs that write.
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
/// All of them.
const READ_WRITE: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// A rule: verbs, API groups, resources, names.
#[derive(Clone, Copy)]
struct Rule {
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    names: &'static [&'static str],
    urls: &'static [&'static str],
}

/// A rule on resources of one group.
const fn on(
    group: &'static &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
) -> Rule {
    Rule { verbs, groups: std::slice::from_ref(group), resources, names: &[], urls: &[] }
}

/// A rule on objects of certain names.
const fn named(
    group: &'static &'static str,
    resources: &'static [&'static str],
    names: &'static [&'static str],
    verbs: &'static [&'static str],
) -> Rule {
    Rule { names, ..on(group, resources, verbs) }
}

/// A rule on paths.
const fn paths(urls: &'static [&'static str]) -> Rule {
    Rule { verbs: &["get"], groups: &[], resources: &[], names: &[], urls }
}

/// Telling people about objects, in both groups of events.
const EVENTS: Rule =
    Rule { groups: &["", "events.k8s.io"], ..on(&"", &["events"], &["create", "patch", "update"]) };

impl Rule {
    fn value(&self) -> Value {
        let mut value = json!({"verbs": self.verbs});
        let fields = [
            ("apiGroups", self.groups),
            ("resources", self.resources),
            ("resourceNames", self.names),
            ("nonResourceURLs", self.urls),
        ];
        for (name, list) in fields {
            if !list.is_empty() {
                value[name] = json!(list);
            }
        }
        value
    }
}

/// A cluster role.
struct Row {
    name: &'static str,
    rules: &'static [Rule],
    /// The role (`admin`, `edit`, `view`) that it is a part of.
    part_of: Option<&'static str>,
    /// The role (`admin`, `edit`, `view`) whose parts it is made of.
    made_of: Option<&'static str>,
}

/// A cluster role with nothing special.
const fn role(name: &'static str, rules: &'static [Rule]) -> Row {
    Row { name, rules, part_of: None, made_of: None }
}

/// Whom a binding is for.
#[derive(Clone, Copy)]
enum To {
    User(&'static str),
    Group(&'static str),
    /// A service account of `kube-system`.
    Account(&'static str),
}

impl To {
    fn value(self) -> Value {
        match self {
            Self::User(name) => json!({"kind": "User", "apiGroup": rbac::GROUP, "name": name}),
            Self::Group(name) => json!({"kind": "Group", "apiGroup": rbac::GROUP, "name": name}),
            Self::Account(name) => {
                json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"})
            }
        }
    }
}

/// An object of the start: its resource, and itself.
pub type Made = (&'static str, Value);

fn metadata(name: &str, namespace: Option<&str>) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTO_UPDATE: "true"},
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

fn aggregation_label(of: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{of}")
}

fn cluster_role(row: &Row) -> Value {
    let rules: Vec<Value> = row.rules.iter().map(Rule::value).collect();
    let mut value = json!({"metadata": metadata(row.name, None), "rules": rules});
    if let Some(of) = row.part_of {
        value["metadata"]["labels"][aggregation_label(of)] = "true".into();
    }
    if let Some(of) = row.made_of {
        let labels = json!({aggregation_label(of): "true"});
        value["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
    }
    value
}

fn binding(name: &str, namespace: Option<&str>, role: (&str, &str), to: &[To]) -> Value {
    let (kind, role) = role;
    let mut value = json!({
        "metadata": metadata(name, namespace),
        "roleRef": {"apiGroup": rbac::GROUP, "kind": kind, "name": role},
    });
    if !to.is_empty() {
        value["subjects"] = to.iter().map(|one| one.value()).collect();
    }
    value
}

/// All objects, those that others refer to first.
pub fn objects() -> Vec<Made> {
    let mut made: Vec<Made> = Vec::new();
    let rows = roles::CLUSTER_ROLES.iter().chain(controllers::CLUSTER_ROLES);
    made.extend(rows.map(|row| ("clusterroles", cluster_role(row))));
    aggregate(&mut made);
    for (role, to) in roles::BINDINGS {
        made.push(("clusterrolebindings", binding(role, None, ("ClusterRole", role), to)));
    }
    for row in controllers::CLUSTER_ROLES {
        let account = row.name.rsplit(':').next().unwrap_or_default();
        // Kubernetes' controllers may each have an account of their own; ours are one user.
        let to = [To::Account(account), To::User(controllers::USER)];
        made.push(("clusterrolebindings", binding(row.name, None, ("ClusterRole", row.name), &to)));
    }
    for (namespace, name, rules, to) in roles::ROLES {
        let rules: Vec<Value> = rules.iter().map(Rule::value).collect();
        let role = json!({"metadata": metadata(name, Some(namespace)), "rules": rules});
        made.push(("roles", role));
        if !to.is_empty() {
            made.push(("rolebindings", binding(name, Some(namespace), ("Role", name), to)));
        }
    }
    made
}

/// Fills in the rules of what is made of others: it should hold before a controller has run.
fn aggregate(made: &mut [Made]) {
    let parse = |value: &Value| serde_json::from_value::<ClusterRole>(value.clone()).ok();
    // A role may be made of one that is made of others itself.
    for _ in 0..3 {
        let all: Vec<ClusterRole> = made.iter().filter_map(|(_, value)| parse(value)).collect();
        for (_, value) in made.iter_mut() {
            let rules = parse(value).and_then(|role| aggregation::rules(&role, &all.iter()));
            if let Some(rules) = rules.and_then(|rules| serde_json::to_value(rules).ok()) {
                value["rules"] = rules;
            }
        }
    }
}

/// What all nodes may do, apart from what is divided among them.
pub fn node_rules() -> &'static [PolicyRule] {
    static RULES: LazyLock<Vec<PolicyRule>> = LazyLock::new(|| {
        let row = roles::CLUSTER_ROLES.iter().find(|row| row.name == "system:node");
        let rules = row.map(|row| row.rules).unwrap_or_default().iter();
        rules.filter_map(|rule| serde_json::from_value(rule.value()).ok()).collect()
    });
    &RULES
}
