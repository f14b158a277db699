//! Volumes, claims and classes: what their rules can't say.

use serde_json::json;

use super::invalid::Errors;
use super::object::Object;
use super::strategy::Strategy;

/// [`Strategy`] of persistent volumes.
pub(super) struct Volumes;
/// [`Strategy`] of claims.
pub(super) struct Claims;
/// [`Strategy`] of storage classes.
pub(super) struct Classes;
/// [`Strategy`] of attachments.
pub(super) struct Attachments;

/// Fields of a volume's spec that say where it is.
const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

fn at(source: &str) -> String {
    format!("/spec/{source}")
}

impl Strategy for Volumes {
    fn default(&self, object: &mut Object) {
        if object.at("/spec/hostPath").is_some() {
            object.default("/spec/hostPath/type", "");
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({"phase": "Pending"}));
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        let mut sources = SOURCES.iter().filter(|source| object.at(&at(source)).is_some());
        if sources.next().is_none() {
            errors.required("spec", "must specify a volume type");
        }
        for second in sources {
            errors.forbidden(format!("spec.{second}"), "may not specify more than 1 volume type");
        }
        if object.at("/spec/local").is_some() && object.at("/spec/nodeAffinity").is_none() {
            errors.required("spec.nodeAffinity", "Local volume requires node affinity");
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        if SOURCES.iter().any(|source| object.at(&at(source)) != old.at(&at(source))) {
            let field = "spec.persistentvolumesource";
            errors.forbidden(field, format!("{field} is immutable after creation"));
        }
    }
}

impl Strategy for Claims {
    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({"phase": "Pending"}));
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        let mut hidden = object.clone();
        hidden.copy("/spec/resources/requests", old);
        hidden.copy("/spec/volumeAttributesClassName", old);
        // The binder, and whoever sets the class of a claim that waits for one.
        for field in ["/spec/volumeName", "/spec/storageClassName"] {
            if old.text(field).is_empty() {
                hidden.copy(field, old);
            }
        }
        if hidden.at("/spec") != old.at("/spec") {
            errors.forbidden(
                "spec",
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            );
        }
    }
}

impl Strategy for Classes {
    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            let pointer = format!("/{field}");
            if object.at(&pointer) != old.at(&pointer) {
                errors.forbidden(field, format!("updates to {field} are forbidden."));
            }
        }
    }
}

impl Strategy for Attachments {
    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({"attached": false}));
    }

    fn prepare_status(&self, object: &mut Object, old: &Object) {
        object.copy("/metadata", old);
    }
}
