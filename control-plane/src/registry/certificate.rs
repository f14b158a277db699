//! CertificateSigningRequests: who asks for what never changes; approval is a subresource.

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
        object.copy("/status/conditions", old);
    }
}
