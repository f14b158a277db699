//! Namespaces: the phase and the finalizer that keeps a namespace until it is empty.

use serde_json::json;

use super::object::Object;
use super::strategy::Strategy;

/// The finalizer that the namespace controller removes once the namespace is empty.
const FINALIZER: &str = "kubernetes";

/// Namespaces that can't be deleted (the NamespaceLifecycle admission plugin).
const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

/// [`Strategy`] of namespaces.
pub(super) struct Namespaces;

impl Strategy for Namespaces {
    fn default(&self, object: &mut Object) {
        let name = object.name().to_owned();
        if !name.is_empty() {
            object.set("/metadata/labels/kubernetes.io~1metadata.name", name);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set("/spec/finalizers", json!([FINALIZER]));
        object.set("/status", json!({"phase": "Active"}));
    }

    fn forbids_deletion(&self, object: &Object) -> Option<&'static str> {
        IMMORTAL.contains(&object.name()).then_some("this namespace may not be deleted")
    }

    fn prepare_update(&self, object: &mut Object, old: &Object) {
        object.copy("/spec/finalizers", old);
    }
}
