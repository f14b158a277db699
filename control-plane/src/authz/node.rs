//! The Node authorizer: a node may read what its pods refer to, and write about itself and its
//! pods. What it writes is looked at by admission
//! ([`NodeRestriction`](crate::api)).
//!
//! The graph holds pods that have a node, and which of their namespace's objects they refer to.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Deserialize;
use serde_json::Value;

use super::{Attributes, Decision, User, Why, rbac};

/// The group of nodes.
pub const GROUP: &str = "system:nodes";
/// What the names of nodes as users begin with.
pub const PREFIX: &str = "system:node:";
/// The namespace of node leases.
const LEASES: &str = "kube-node-lease";

/// The node that a user is: `None` for a user that is no node, an empty name for one that is
/// unknown.
pub fn identity(user: &User) -> Option<&str> {
    user.is_in(GROUP).then(|| user.name.strip_prefix(PREFIX).unwrap_or_default())
}

/// What a pod refers to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Secret,
    ConfigMap,
    ServiceAccount,
    Claim,
}

/// An object that pods refer to: kind, namespace and name.
type Reference = (Kind, Box<str>, Box<str>);

/// A pod on a node.
#[derive(Debug)]
struct Pod {
    node: Box<str>,
    /// Each once.
    references: Box<[Reference]>,
}

/// Which nodes have pods that refer to what.
#[derive(Debug, Default)]
pub struct Graph {
    pods: HashMap<Box<str>, Pod>,
    /// How many pods of each node refer to an object.
    nodes: HashMap<Reference, HashMap<Box<str>, usize>>,
}

impl Graph {
    /// Takes in a pod as it is stored. One that has no node yet is of no use to any.
    pub fn put(&mut self, namespace: &str, name: &str, stored: &[u8]) {
        self.remove(namespace, name);
        let Ok(Stored { spec }) = serde_json::from_slice::<Stored>(stored) else { return };
        if spec.node_name.is_empty() {
            return;
        }
        let node: Box<str> = spec.node_name.as_str().into();
        let found = spec.references().into_iter();
        let references: BTreeSet<Reference> =
            found.map(|(kind, name)| (kind, namespace.into(), name.into())).collect();
        let references: Box<[Reference]> = references.into_iter().collect();
        for reference in &references {
            let nodes = self.nodes.entry(reference.clone()).or_default();
            *nodes.entry(node.clone()).or_default() += 1;
        }
        self.pods.insert(key(namespace, name), Pod { node, references });
    }

    /// Forgets a pod.
    pub fn remove(&mut self, namespace: &str, name: &str) {
        let Some(pod) = self.pods.remove(&key(namespace, name)) else { return };
        for reference in &pod.references {
            let Some(nodes) = self.nodes.get_mut(reference) else { continue };
            if let Some(count) = nodes.get_mut(&pod.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&pod.node);
                }
            }
            if nodes.is_empty() {
                self.nodes.remove(reference);
            }
        }
    }

    fn has_pod(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.pods.get(&key(namespace, name)).is_some_and(|pod| *pod.node == *node)
    }

    fn refers(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let nodes = self.nodes.get(&(kind, namespace.into(), name.into()));
        nodes.is_some_and(|nodes| nodes.contains_key(node))
    }
}

fn key(namespace: &str, name: &str) -> Box<str> {
    format!("{namespace}/{name}").into()
}

/// The part of a stored pod that matters.
#[derive(Deserialize)]
struct Stored {
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
    service_account_name: String,
    image_pull_secrets: Vec<Value>,
    containers: Vec<Value>,
    init_containers: Vec<Value>,
    ephemeral_containers: Vec<Value>,
    volumes: Vec<Value>,
}

impl Spec {
    fn references(&self) -> Vec<(Kind, String)> {
        let mut found = Vec::new();
        let mut refer = |kind: Kind, name: &'_ Value| {
            if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
                found.push((kind, name.to_owned()));
            }
        };
        for secret in &self.image_pull_secrets {
            refer(Kind::Secret, &secret["name"]);
        }
        let containers =
            self.containers.iter().chain(&self.init_containers).chain(&self.ephemeral_containers);
        for container in containers {
            for source in container["envFrom"].as_array().into_iter().flatten() {
                refer(Kind::Secret, &source["secretRef"]["name"]);
                refer(Kind::ConfigMap, &source["configMapRef"]["name"]);
            }
            for variable in container["env"].as_array().into_iter().flatten() {
                refer(Kind::Secret, &variable["valueFrom"]["secretKeyRef"]["name"]);
                refer(Kind::ConfigMap, &variable["valueFrom"]["configMapKeyRef"]["name"]);
            }
        }
        for volume in &self.volumes {
            refer(Kind::Secret, &volume["secret"]["secretName"]);
            refer(Kind::ConfigMap, &volume["configMap"]["name"]);
            refer(Kind::Claim, &volume["persistentVolumeClaim"]["claimName"]);
            refer(Kind::Secret, &volume["csi"]["nodePublishSecretRef"]["name"]);
            for source in volume["projected"]["sources"].as_array().into_iter().flatten() {
                refer(Kind::Secret, &source["secret"]["name"]);
                refer(Kind::ConfigMap, &source["configMap"]["name"]);
            }
        }
        if !self.service_account_name.is_empty() {
            found.push((Kind::ServiceAccount, self.service_account_name.clone()));
        }
        found
    }
}

fn no(why: impl Into<String>) -> Decision {
    Decision::NoOpinion(Why::Said(why.into()))
}

fn yes_if(allowed: bool) -> Decision {
    if allowed { Decision::Allow(Why::Silent) } else { Decision::NoOpinion(Why::Silent) }
}

/// Decides about a node's request; has no opinion about others'. `rules` hold for what is not
/// divided among nodes.
pub fn decide(
    user: &User,
    asked: &Attributes<'_>,
    graph: &Graph,
    rules: &[PolicyRule],
) -> Decision {
    let node = match identity(user) {
        None => return Decision::NoOpinion(Why::Silent),
        Some("") => return no(format!("unknown node for user {:?}", user.name)),
        Some(node) => node,
    };
    match (asked.group, asked.resource) {
        ("", "secrets") => read(node, asked, graph, Kind::Secret),
        ("", "configmaps") => read(node, asked, graph, Kind::ConfigMap),
        ("", "persistentvolumeclaims") => match (asked.verb, asked.subresource) {
            ("get", "") | ("update" | "patch", "status") => {
                related(node, asked, graph, Kind::Claim)
            }
            (_, "status") => no("can only get/update/patch this type"),
            _ => no("can only get individual resources of this type"),
        },
        ("", "serviceaccounts") => token(node, asked, graph),
        ("", "nodes") => own_node(node, asked),
        ("", "pods") => pod(node, asked, graph),
        ("coordination.k8s.io", "leases") => lease(node, asked),
        ("storage.k8s.io", "csinodes") => csi_node(node, asked),
        // Which volumes the node's claims are bound to is not followed yet.
        ("", "persistentvolumes") | ("storage.k8s.io", "volumeattachments") => no(unrelated(node)),
        _ => yes_if(rules.iter().any(|rule| rbac::allows(rule, asked))),
    }
}

fn unrelated(node: &str) -> String {
    format!("no relationship found between node '{node}' and this object")
}

/// An object that a pod of the node refers to.
fn related(node: &str, asked: &Attributes<'_>, graph: &Graph, kind: Kind) -> Decision {
    if asked.name.is_empty() {
        return no("No Object name found");
    }
    if graph.refers(node, kind, asked.namespace, asked.name) {
        return Decision::Allow(Why::Silent);
    }
    no(unrelated(node))
}

fn read(node: &str, asked: &Attributes<'_>, graph: &Graph, kind: Kind) -> Decision {
    if !matches!(asked.verb, "get" | "list" | "watch") {
        return no("can only read resources of this type");
    }
    if !asked.subresource.is_empty() {
        return no("cannot read subresource");
    }
    if asked.namespace.is_empty() {
        return no("can only read namespaced object of this type");
    }
    related(node, asked, graph, kind)
}

fn token(node: &str, asked: &Attributes<'_>, graph: &Graph) -> Decision {
    if asked.verb != "create" || asked.name.is_empty() {
        return no("can only create tokens for individual service accounts");
    }
    if asked.subresource != "token" {
        return no("can only create token subresource of serviceaccount");
    }
    related(node, asked, graph, Kind::ServiceAccount)
}

fn own_node(node: &str, asked: &Attributes<'_>) -> Decision {
    match (asked.subresource, asked.verb, asked.name) {
        // Admission looks which node is meant.
        ("", "create" | "update" | "patch", _) | ("status", "update" | "patch", _) => {
            Decision::Allow(Why::Silent)
        }
        ("", "get" | "list" | "watch", name) if name == node => Decision::Allow(Why::Silent),
        ("", "get" | "list" | "watch", "") => {
            no(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch", other) => {
            no(format!("node '{node}' cannot read '{other}', only its own Node object"))
        }
        _ => Decision::NoOpinion(Why::Silent),
    }
}

fn pod(node: &str, asked: &Attributes<'_>, graph: &Graph) -> Decision {
    let own = || {
        if graph.has_pod(node, asked.namespace, asked.name) {
            Decision::Allow(Why::Silent)
        } else {
            no(unrelated(node))
        }
    };
    match (asked.subresource, asked.verb) {
        ("", "get") => own(),
        ("", "list" | "watch") => {
            let of_node =
                |(field, value): &(String, String)| field == "spec.nodeName" && value == node;
            match asked.fields.iter().any(of_node) {
                true => Decision::Allow(Why::Silent),
                false if asked.name.is_empty() => {
                    no("can only list/watch pods with spec.nodeName field selector")
                }
                false => own(),
            }
        }
        // Admission looks which pods are meant.
        ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
            Decision::Allow(Why::Silent)
        }
        _ => Decision::NoOpinion(Why::Silent),
    }
}

fn lease(node: &str, asked: &Attributes<'_>) -> Decision {
    if !matches!(asked.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if asked.namespace != LEASES {
        return no(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    // At a creation the name is not known yet: admission looks at it.
    if asked.verb != "create" && asked.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    Decision::Allow(Why::Silent)
}

fn csi_node(node: &str, asked: &Attributes<'_>) -> Decision {
    if !matches!(asked.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a CSINode");
    }
    if !asked.subresource.is_empty() {
        return no("cannot authorize CSINode subresources");
    }
    if asked.verb != "create" && asked.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    Decision::Allow(Why::Silent)
}
