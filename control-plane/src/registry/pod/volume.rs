//! What the volumes of a pod may be.

use std::collections::BTreeMap;

use serde_json::Value;

use super::spec::items;
use crate::registry::NameRule;
use crate::registry::invalid::Errors;
use crate::registry::names;
use crate::registry::rules::{self, Rule, Test};
use crate::schema::quantity;

/// Where the content of a volume comes from, in the order in which Kubernetes looks, and what each
/// has to say.
const SOURCES: &[(&str, &[Rule])] = &[
    ("emptyDir", &[]),
    (
        "hostPath",
        &[
            Rule("path", Test::Required("")),
            Rule("path", Test::Check(backstep_fault)),
            Rule(
                "type",
                Test::OneOf(&[
                    "",
                    "BlockDevice",
                    "CharDevice",
                    "Directory",
                    "DirectoryOrCreate",
                    "File",
                    "FileOrCreate",
                    "Socket",
                ]),
            ),
        ],
    ),
    ("gitRepo", &[Rule("repository", Test::Required(""))]),
    ("gcePersistentDisk", &[Rule("pdName", Test::Required(""))]),
    ("awsElasticBlockStore", &[Rule("volumeID", Test::Required(""))]),
    (
        "secret",
        &[
            Rule("secretName", Test::Required("")),
            Rule("defaultMode", Test::Check(mode_fault)),
            Rule("items[*].key", Test::Required("")),
            Rule("items[*].path", Test::Required("")),
            Rule("items[*].path", Test::Check(descent_fault)),
            Rule("items[*].mode", Test::Check(mode_fault)),
        ],
    ),
    (
        "nfs",
        &[
            Rule("server", Test::Required("")),
            Rule("path", Test::Required("")),
            Rule("path", Test::Check(absolute_fault)),
        ],
    ),
    ("iscsi", &[Rule("targetPortal", Test::Required("")), Rule("iqn", Test::Required(""))]),
    ("glusterfs", &[Rule("endpoints", Test::Required("")), Rule("path", Test::Required(""))]),
    ("flocker", &[]),
    ("persistentVolumeClaim", &[Rule("claimName", Test::Required(""))]),
    ("rbd", &[Rule("monitors", Test::Required("")), Rule("image", Test::Required(""))]),
    ("cinder", &[Rule("volumeID", Test::Required(""))]),
    ("cephfs", &[Rule("monitors", Test::Required(""))]),
    ("quobyte", &[Rule("registry", Test::Required("")), Rule("volume", Test::Required(""))]),
    (
        "downwardAPI",
        &[
            Rule("defaultMode", Test::Check(mode_fault)),
            Rule("items[*].path", Test::Required("")),
            Rule("items[*].path", Test::Check(descent_fault)),
            Rule("items[*].mode", Test::Check(mode_fault)),
        ],
    ),
    ("fc", &[]),
    ("flexVolume", &[Rule("driver", Test::Required(""))]),
    (
        "configMap",
        &[
            Rule("name", Test::Required("")),
            Rule("defaultMode", Test::Check(mode_fault)),
            Rule("items[*].key", Test::Required("")),
            Rule("items[*].path", Test::Required("")),
            Rule("items[*].path", Test::Check(descent_fault)),
            Rule("items[*].mode", Test::Check(mode_fault)),
        ],
    ),
    ("azureFile", &[Rule("secretName", Test::Required("")), Rule("shareName", Test::Required(""))]),
    ("vsphereVolume", &[Rule("volumePath", Test::Required(""))]),
    ("photonPersistentDisk", &[Rule("pdID", Test::Required(""))]),
    ("portworxVolume", &[Rule("volumeID", Test::Required(""))]),
    ("azureDisk", &[Rule("diskName", Test::Required("")), Rule("diskURI", Test::Required(""))]),
    ("storageos", &[]),
    (
        "projected",
        &[
            Rule("defaultMode", Test::Check(mode_fault)),
            Rule("sources[*].configMap.name", Test::Required("")),
            Rule("sources[*].secret.name", Test::Required("")),
            Rule("sources[*].serviceAccountToken.path", Test::Required("")),
            Rule("sources[*].serviceAccountToken.path", Test::Check(descent_fault)),
            Rule("sources[*].serviceAccountToken.expirationSeconds", Test::Check(expiry_fault)),
        ],
    ),
    ("scaleIO", &[]),
    ("csi", &[Rule("driver", Test::Required(""))]),
    ("ephemeral", &[Rule("volumeClaimTemplate", Test::Required(""))]),
    ("image", &[Rule("reference", Test::Required(""))]),
];

/// Checks the volumes of the spec at `field`; returns them by their names.
pub(in crate::registry::pod) fn validate<'a>(
    spec: &'a Value,
    field: &str,
    errors: &mut Errors,
) -> BTreeMap<&'a str, &'a Value> {
    let mut volumes = BTreeMap::new();
    for (index, volume) in items(&spec["volumes"]) {
        let at = format!("{field}.volumes[{index}]");
        check_sources(volume, &at, errors);
        let name = volume["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            errors.required(format!("{at}.name"), "");
        } else if let Some(fault) = names::fault(name, NameRule::Label) {
            errors.invalid(format!("{at}.name"), name, fault);
        } else if volumes.insert(name, volume).is_some() {
            errors.duplicate(format!("{at}.name"), name);
        }
    }
    volumes
}

/// A volume has one source.
fn check_sources(volume: &Value, at: &str, errors: &mut Errors) {
    let mut found = false;
    for (name, rules) in SOURCES {
        let Some(source) = volume.get(*name) else { continue };
        let field = format!("{at}.{name}");
        if found {
            errors.forbidden(field, "may not specify more than 1 volume type");
            continue;
        }
        found = true;
        rules::check_at(&field, rules, source, errors);
    }
    if !found {
        errors.required(at, "must specify a volume type");
    }
    let limit = volume.pointer("/emptyDir/sizeLimit").and_then(Value::as_str);
    if limit.and_then(quantity::nanos).is_some_and(|limit| limit < 0) {
        let why = "SizeLimit field must be a valid resource quantity";
        errors.forbidden(format!("{at}.emptyDir.sizeLimit"), why);
    }
}

/// What is wrong with a path that goes back up.
pub(in crate::registry) fn backstep_fault(path: &Value) -> Option<&'static str> {
    let path = path.as_str().unwrap_or_default();
    path.split('/').any(|part| part == "..").then_some("must not contain '..'")
}

/// What is wrong with a path that begins anywhere.
pub(in crate::registry) fn absolute_fault(path: &Value) -> Option<&'static str> {
    (!path.as_str().unwrap_or_default().starts_with('/')).then_some("must be an absolute path")
}

/// What is wrong with a path that stays below where it begins.
fn descent_fault(path: &Value) -> Option<&'static str> {
    let text = path.as_str().unwrap_or_default();
    if text.starts_with('/') { Some("must be a relative path") } else { backstep_fault(path) }
}

fn mode_fault(mode: &Value) -> Option<&'static str> {
    (!mode.as_i64().is_some_and(|mode| (0..=0o777).contains(&mode)))
        .then_some("must be a number between 0 and 0777 (octal), both inclusive")
}

fn expiry_fault(seconds: &Value) -> Option<&'static str> {
    match seconds.as_i64().unwrap_or_default() {
        ..600 => Some("may not specify a duration less than 10 minutes"),
        seconds if seconds > 1 << 32 => Some("may not specify a duration larger than 2^32 seconds"),
        _ => None,
    }
}
