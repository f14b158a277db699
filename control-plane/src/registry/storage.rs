//! Volumes, claims and classes: what their rules can't say.

use serde_json::{Value, json};

use super::NameRule;
use super::invalid::{Errors, IMMUTABLE};
use super::object::Object;
use super::pod::volume::{absolute_fault, backstep_fault};
use super::rules::{self, Rule, Test};
use super::strategy::Strategy;
use crate::schema::quantity;

/// [`Strategy`] of persistent volumes.
pub(super) struct Volumes;
/// [`Strategy`] of claims.
pub(super) struct Claims;
/// [`Strategy`] of storage classes.
pub(super) struct Classes;
/// [`Strategy`] of attachments.
pub(super) struct Attachments;

/// Fields of a volume's spec that say where it is, and what each has to say.
const SOURCES: &[(&str, &[Rule])] = &[
    ("hostPath", &[Rule("path", Test::Required("")), Rule("path", Test::Check(backstep_fault))]),
    ("gcePersistentDisk", &[Rule("pdName", Test::Required(""))]),
    ("awsElasticBlockStore", &[Rule("volumeID", Test::Required(""))]),
    ("glusterfs", &[Rule("endpoints", Test::Required("")), Rule("path", Test::Required(""))]),
    ("flocker", &[]),
    (
        "nfs",
        &[
            Rule("server", Test::Required("")),
            Rule("path", Test::Required("")),
            Rule("path", Test::Check(absolute_fault)),
        ],
    ),
    ("rbd", &[Rule("monitors", Test::Required("")), Rule("image", Test::Required(""))]),
    ("quobyte", &[Rule("registry", Test::Required("")), Rule("volume", Test::Required(""))]),
    ("cephfs", &[Rule("monitors", Test::Required(""))]),
    ("iscsi", &[Rule("targetPortal", Test::Required("")), Rule("iqn", Test::Required(""))]),
    ("cinder", &[Rule("volumeID", Test::Required(""))]),
    ("fc", &[]),
    ("flexVolume", &[Rule("driver", Test::Required(""))]),
    ("azureFile", &[Rule("secretName", Test::Required("")), Rule("shareName", Test::Required(""))]),
    ("vsphereVolume", &[Rule("volumePath", Test::Required(""))]),
    ("photonPersistentDisk", &[Rule("pdID", Test::Required(""))]),
    ("portworxVolume", &[Rule("volumeID", Test::Required(""))]),
    ("azureDisk", &[Rule("diskName", Test::Required("")), Rule("diskURI", Test::Required(""))]),
    ("scaleIO", &[]),
    ("local", &[Rule("path", Test::Required("")), Rule("path", Test::Check(backstep_fault))]),
    ("storageos", &[]),
    (
        "csi",
        &[
            Rule("driver", Test::Required("")),
            Rule("driver", Test::Name(NameRule::Subdomain)),
            Rule("volumeHandle", Test::Required("")),
        ],
    ),
];

fn at(source: &str) -> String {
    format!("/spec/{source}")
}

/// A volume or claim that only one pod may use can't be used otherwise too.
fn check_modes(object: &Object, errors: &mut Errors) {
    let modes = object.list("/spec/accessModes");
    let alone = |mode: &Value| *mode == "ReadWriteOncePod";
    if modes.iter().any(alone) && !modes.iter().all(alone) {
        let why = "may not use ReadWriteOncePod with other access modes";
        errors.forbidden("spec.accessModes", why);
    }
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
        check_modes(object, errors);
        check_capacity(object, errors);
        let mut found = false;
        for (name, rules) in SOURCES {
            let Some(source) = object.at(&at(name)) else { continue };
            let field = format!("spec.{name}");
            if found {
                errors.forbidden(field, "may not specify more than 1 volume type");
                continue;
            }
            found = true;
            rules::check_at(&field, rules, source, errors);
        }
        if !found {
            errors.required("spec", "must specify a volume type");
        }
        let affinity = object.at("/spec/nodeAffinity");
        if affinity.is_some_and(|affinity| affinity["required"].is_null()) {
            let why = "must specify required node constraints";
            errors.required("spec.nodeAffinity.required", why);
        }
        if object.at("/spec/local").is_some() && affinity.is_none() {
            errors.required("spec.nodeAffinity", "Local volume requires node affinity");
        }
        let reclaim = "/spec/persistentVolumeReclaimPolicy";
        if object.text("/spec/hostPath/path") == "/" && object.text(reclaim) == "Recycle" {
            let why = "may not be 'recycle' for a hostPath mount of '/'";
            errors.forbidden("spec.persistentVolumeReclaimPolicy", why);
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        if SOURCES.iter().any(|(source, _)| object.at(&at(source)) != old.at(&at(source))) {
            let field = "spec.persistentvolumesource";
            errors.forbidden(field, format!("{field} is immutable after creation"));
        }
        let affinity = |object: &Object| object.at("/spec/nodeAffinity").cloned();
        if affinity(old).is_some() && affinity(object) != affinity(old) {
            let value = affinity(object).unwrap_or_default();
            let why = "field is immutable, except for updating from beta label to GA";
            errors.invalid("spec.nodeAffinity", value, why);
        }
    }
}

/// How much a volume holds is all that can be said of its capacity.
fn check_capacity(object: &Object, errors: &mut Errors) {
    let Some(Value::Object(capacity)) = object.at("/spec/capacity") else { return };
    if !capacity.is_empty() && (capacity.len() > 1 || !capacity.contains_key("storage")) {
        errors.not_supported("spec.capacity", json!(capacity), &["storage"]);
    }
}

/// What a claim asks for.
const REQUEST: &str = "/spec/resources/requests/storage";
/// What may change of a claim is in here.
const FROZEN: &str = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

impl Strategy for Claims {
    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({"phase": "Pending"}));
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        check_modes(object, errors);
        let field = "spec.resources[storage]";
        match object.text(REQUEST) {
            "" => errors.required(field, ""),
            text if quantity::nanos(text).is_some_and(|amount| amount <= 0) => {
                errors.invalid(field, text, "must be greater than zero");
            }
            _ => {}
        }
        for source in ["dataSource", "dataSourceRef"] {
            if let Some(value) = object.at(&at(source)) {
                check_source(value, &format!("spec.{source}"), errors);
            }
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        let bound = object.text("/status/phase") == "Bound";
        let mut hidden = object.clone();
        // The binder, and whoever sets the class of a claim that waits for one.
        if old.text("/spec/volumeName").is_empty() {
            hidden.copy("/spec/volumeName", old);
        }
        if old.at("/spec/storageClassName").is_none() {
            hidden.copy("/spec/storageClassName", old);
        }
        if bound {
            hidden.copy(REQUEST, old);
            hidden.copy("/spec/volumeAttributesClassName", old);
        }
        if hidden.at("/spec") != old.at("/spec") {
            errors.forbidden("spec", FROZEN);
        }
        let amount = |object: &Object, pointer| quantity::nanos(object.text(pointer)).unwrap_or(0);
        let asked = amount(object, REQUEST);
        // It may shrink again where a volume could not grow, but not to what there is.
        if asked < amount(old, REQUEST) && asked <= amount(old, "/status/capacity/storage") {
            let why = "field can not be less than status.capacity";
            errors.forbidden("spec.resources.requests.storage", why);
        }
        let mode = |object: &Object| object.at("/spec/volumeMode").cloned().unwrap_or_default();
        if mode(object) != mode(old) {
            errors.invalid("volumeMode", mode(object), IMMUTABLE);
        }
        let class = "/spec/volumeAttributesClassName";
        if !old.text(class).is_empty() && object.at(class).is_none() {
            let why = "update from non-nil value to nil is forbidden";
            errors.forbidden("spec.volumeAttributesClassName", why);
        }
    }
}

/// Where the content of a claim's volume comes from.
fn check_source(source: &Value, field: &str, errors: &mut Errors) {
    for part in ["name", "kind"] {
        if source[part].as_str().unwrap_or_default().is_empty() {
            errors.required(format!("{field}.{part}"), "");
        }
    }
    let kind = source["kind"].as_str().unwrap_or_default();
    let group = source["apiGroup"].as_str().unwrap_or_default();
    if group.is_empty() && !matches!(kind, "" | "PersistentVolumeClaim") {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.invalid(field, kind, why);
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
