//! CertificateSigningRequests: who asks for what never changes; approval is a subresource.

use serde_json::Value;

use super::object::Object;
use super::strategy::Strategy;

/// [`Strategy`] of requests.
pub(super) struct Requests;

impl Strategy for Requests {
    fn prepare_update(&self, object: &mut Object, old: &Object) {
        object.copy("/spec", old);
    }

    fn prepare_status(&self, object: &mut Object, old: &Object) {
        // Decisions come by the other subresource.
        let decides = |one: &&Value| one["type"] == "Approved" || one["type"] == "Denied";
        let decisions = old.list("/status/conditions").iter().filter(decides);
        let others = object.list("/status/conditions").iter().filter(|one| !decides(one));
        let conditions: Vec<Value> = decisions.chain(others).cloned().collect();
        if conditions.is_empty() {
            object.remove("/status/conditions");
        } else {
            object.set("/status/conditions", conditions);
        }
    }
}
