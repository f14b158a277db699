//! `NodeRestriction`: a node writes about itself and the pods that it runs. The Node authorizer
//! let it come this far without knowing what it brings.

use serde_json::Value;

use super::is;
use crate::api::status::{Failure, Result};
use crate::api::update::Part;
use crate::api::{Api, encode};
use crate::authz::User;
use crate::registry::{Kind, Object};

/// The annotation of mirrors of static pods.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
/// The namespace of node leases.
const LEASES: &str = "kube-node-lease";

/// Labels of `kubernetes.io` and `k8s.io` that a node may give itself.
const OWN_LABELS: [&str; 13] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Whole prefixes of such labels.
const OWN_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

fn forbid<T>(kind: &Kind, object: &Object, why: &str) -> Result<T> {
    Err(Failure::forbidden(kind, object.name(), why))
}

/// A user of the group of nodes has to be one.
fn known(kind: &Kind, object: &Object, user: &User, node: &str) -> Result<()> {
    if node.is_empty() {
        let why = format!("could not determine node from user {:?}", user.name);
        return forbid(kind, object, &why);
    }
    Ok(())
}

impl Api {
    /// What a node creates.
    pub(super) async fn restrict_create(
        &self,
        kind: &Kind,
        object: &Object,
        user: &User,
        node: &str,
    ) -> Result<()> {
        known(kind, object, user, node)?;
        if is(kind, "", "pods") {
            return self.restrict_pod(kind, object, node).await;
        }
        if is(kind, "", "nodes") {
            own_node(kind, object, node)?;
            let none = Value::Null;
            let labels = object.at("/metadata/labels").unwrap_or(&none);
            let forbidden = forbidden_labels(labels, &none);
            if !forbidden.is_empty() {
                let labels = forbidden.join(", ");
                let why =
                    format!("node {node:?} is not allowed to set the following labels: {labels}");
                return forbid(kind, object, &why);
            }
            return Ok(());
        }
        if is(kind, "coordination.k8s.io", "leases") {
            return lease(kind, object, node);
        }
        if is(kind, "storage.k8s.io", "csinodes") && object.name() != node {
            let why = "can only access CSINode with the same name as the requesting node";
            return forbid(kind, object, why);
        }
        Ok(())
    }

    /// Only mirrors of the node's own static pods, which refer to nothing.
    async fn restrict_pod(&self, kind: &Kind, pod: &Object, node: &str) -> Result<()> {
        let annotations = pod.at("/metadata/annotations");
        let why = if annotations.is_none_or(|all| all.get(MIRROR).is_none()) {
            format!(
                "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
            )
        } else if pod.text("/spec/nodeName") != node {
            format!("node {node:?} can only create pods with spec.nodeName set to itself")
        } else if let Some(why) = self.wrong_owner(pod, node).await? {
            why
        } else if let Some(what) = referred(pod) {
            format!("node {node:?} can not create pods that reference {what}")
        } else {
            return Ok(());
        };
        forbid(kind, pod, &why)
    }

    /// The node has to be the pod's one owner.
    async fn wrong_owner(&self, pod: &Object, node: &str) -> Result<Option<String>> {
        let set = |what: &str| Ok(Some(format!("node {node:?} can only create pods with {what}")));
        let [owner] = pod.list("/metadata/ownerReferences") else {
            let single = pod.list("/metadata/ownerReferences").len() > 1;
            let what = if single { "a single owner" } else { "an owner" };
            return set(&format!("{what} reference set to itself"));
        };
        if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
            return set("an owner reference set to itself");
        }
        if owner["controller"] != true {
            return set("a controller owner reference set to itself");
        }
        if owner["blockOwnerDeletion"] == true {
            let why =
                format!("node {node:?} must not set blockOwnerDeletion on an owner reference");
            return Ok(Some(why));
        }
        let entry = self.store.get(&format!("core/nodes/{node}")).await?;
        let found = entry.map(|entry| encode::object(&entry)).transpose()?;
        let uid = found.as_ref().map(Object::uid).unwrap_or_default();
        let claimed = owner["uid"].as_str().unwrap_or_default();
        let differs = uid.is_empty() || uid != claimed;
        Ok(differs.then(|| format!("node {node} UID mismatch: expected {claimed} got {uid}")))
    }
}

/// What a pod refers to that a mirror may not.
fn referred(pod: &Object) -> Option<&'static str> {
    let spec = pod.at("/spec")?;
    let has = |value: &Value, keys: [&str; 2]| keys.iter().any(|key| !value[*key].is_null());
    let volumes = || spec["volumes"].as_array().into_iter().flatten();
    let projected = || volumes().filter_map(|one| one["projected"]["sources"].as_array()).flatten();
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    let containers = || containers.iter().filter_map(|list| spec[*list].as_array()).flatten();
    let sources = || {
        let from = containers().filter_map(|one| one["envFrom"].as_array()).flatten();
        let values = containers().filter_map(|one| one["env"].as_array()).flatten();
        from.chain(values.map(|one| &one["valueFrom"]))
    };
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty())
        || projected().any(|one| !one["serviceAccountToken"].is_null())
    {
        return Some("a service account");
    }
    if sources().any(|one| has(one, ["secretRef", "secretKeyRef"]))
        || volumes().chain(projected()).any(|one| !one["secret"].is_null())
        || spec["imagePullSecrets"].as_array().is_some_and(|list| !list.is_empty())
    {
        return Some("secrets");
    }
    if sources().any(|one| has(one, ["configMapRef", "configMapKeyRef"]))
        || volumes().chain(projected()).any(|one| !one["configMap"].is_null())
    {
        return Some("configmaps");
    }
    if projected().any(|one| !one["clusterTrustBundle"].is_null()) {
        return Some("clustertrustbundles");
    }
    volumes()
        .any(|one| has(one, ["persistentVolumeClaim", "ephemeral"]))
        .then_some("persistentvolumeclaims")
}

fn own_node(kind: &Kind, object: &Object, node: &str) -> Result<()> {
    if object.name() == node {
        return Ok(());
    }
    let why = format!("node {node:?} is not allowed to modify node {:?}", object.name());
    forbid(kind, object, &why)
}

fn lease(kind: &Kind, object: &Object, node: &str) -> Result<()> {
    if object.namespace() != LEASES {
        let why = format!("can only access leases in the {LEASES:?} system namespace");
        return forbid(kind, object, &why);
    }
    if object.name() != node {
        let why = "can only access node lease with the same name as the requesting node";
        return forbid(kind, object, why);
    }
    Ok(())
}

/// What a node changes.
pub(super) fn update(
    kind: &Kind,
    part: Part,
    new: &Object,
    old: &Object,
    user: &User,
    node: &str,
) -> Result<()> {
    known(kind, old, user, node)?;
    if is(kind, "", "pods") {
        return update_pod(kind, part, new, old, node);
    }
    if is(kind, "coordination.k8s.io", "leases") {
        return lease(kind, old, node);
    }
    if !is(kind, "", "nodes") {
        return Ok(());
    }
    own_node(kind, old, node)?;
    if new.list("/spec/taints") != old.list("/spec/taints") {
        return forbid(kind, old, &format!("node {node:?} is not allowed to modify taints"));
    }
    let none = Value::Null;
    let labels = |object: &'_ Object| object.at("/metadata/labels").unwrap_or(&none).clone();
    let forbidden = forbidden_labels(&labels(new), &labels(old));
    if !forbidden.is_empty() {
        let why = format!("is not allowed to modify labels: {}", forbidden.join(", "));
        return forbid(kind, old, &why);
    }
    Ok(())
}

fn update_pod(kind: &Kind, part: Part, new: &Object, old: &Object, node: &str) -> Result<()> {
    let why = if part != Part::Status {
        format!(
            "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
        )
    } else if old.text("/spec/nodeName") != node {
        format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        )
    } else if new.at("/metadata/labels") != old.at("/metadata/labels") {
        format!("node {node:?} cannot update labels through pod status")
    } else {
        return Ok(());
    };
    forbid(kind, old, &why)
}

/// What a node deletes or evicts.
pub(super) fn delete(kind: &Kind, old: &Object, user: &User, node: &str) -> Result<()> {
    known(kind, old, user, node)?;
    if is(kind, "", "pods") && old.text("/spec/nodeName") != node {
        let why = format!("node {node:?} can only delete pods with spec.nodeName set to itself");
        return forbid(kind, old, &why);
    }
    if is(kind, "", "nodes") {
        return own_node(kind, old, node);
    }
    if is(kind, "coordination.k8s.io", "leases") {
        return lease(kind, old, node);
    }
    Ok(())
}

/// Which labels differ that a node may not set.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let none = serde_json::Map::new();
    let (new, old) = (new.as_object().unwrap_or(&none), old.as_object().unwrap_or(&none));
    let differs = |key: &&String| new.get(*key) != old.get(*key);
    let mut keys: Vec<String> = new
        .keys()
        .chain(old.keys())
        .filter(differs)
        .filter(|key| is_reserved(key))
        .cloned()
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

fn is_reserved(label: &str) -> bool {
    let prefix = label.split_once('/').map_or("", |(prefix, _)| prefix);
    let below = |domain: &str| {
        prefix == domain || prefix.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    if below("node-restriction.kubernetes.io") {
        return true;
    }
    let own = OWN_LABELS.contains(&label) || OWN_PREFIXES.iter().any(|known| below(known));
    (below("kubernetes.io") || below("k8s.io")) && !own
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_may_say_where_it_is_and_not_what_it_is_for() {
        for own in [
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
            "node.kubernetes.io/x",
            "a.kubelet.kubernetes.io/x",
            "example.com/x",
            "plain",
        ] {
            assert!(!is_reserved(own), "{own}");
        }
        for reserved in [
            "node-restriction.kubernetes.io/x",
            "a.node-restriction.kubernetes.io/x",
            "node-role.kubernetes.io/control-plane",
            "kubernetes.io/x",
            "x.k8s.io/y",
        ] {
            assert!(is_reserved(reserved), "{reserved}");
        }
        let old = json!({"node-role.kubernetes.io/a": "", "same.k8s.io/x": "1"});
        let new = json!({"same.k8s.io/x": "1", "kubernetes.io/b": "", "mine": ""});
        assert_eq!(forbidden_labels(&new, &old), ["kubernetes.io/b", "node-role.kubernetes.io/a"]);
    }

    #[test]
    fn a_mirror_refers_to_nothing() {
        let pod = |spec: Value| Object::new(json!({"spec": spec})).unwrap();
        assert_eq!(
            referred(&pod(json!({"containers": [{"env": [{"name": "a", "value": "b"}]}]}))),
            None
        );
        for (spec, what) in [
            (json!({"serviceAccountName": "x"}), "a service account"),
            (json!({"containers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}), "secrets"),
            (json!({"volumes": [{"secret": {"secretName": "s"}}]}), "secrets"),
            (
                json!({"initContainers": [{"env": [{"valueFrom": {"configMapKeyRef": {}}}]}]}),
                "configmaps",
            ),
            (json!({"volumes": [{"projected": {"sources": [{"configMap": {}}]}}]}), "configmaps"),
            (
                json!({"volumes": [{"persistentVolumeClaim": {"claimName": "c"}}]}),
                "persistentvolumeclaims",
            ),
        ] {
            assert_eq!(referred(&pod(spec.clone())), Some(what), "{spec}");
        }
    }
}
