//! Columns of volumes, claims, classes and what storage drivers report.

use serde_json::Value;

use super::{AGE, Column, NAME, NONE, Object, flag, number, text, wide};

/// What stands where nothing is set.
const UNSET: &str = "<unset>";

fn or_unset(text: &str) -> Value {
    if text.is_empty() { UNSET.into() } else { text.into() }
}

/// Access modes in letters.
fn modes(modes: &[Value]) -> Value {
    let short = |mode: &Value| match mode.as_str() {
        Some("ReadWriteOnce") => Some("RWO"),
        Some("ReadOnlyMany") => Some("ROX"),
        Some("ReadWriteMany") => Some("RWX"),
        Some("ReadWriteOncePod") => Some("RWOP"),
        _ => None,
    };
    // In this order, whatever the object's.
    let order = ["RWO", "ROX", "RWX", "RWOP"];
    let found: Vec<&str> = modes.iter().filter_map(short).collect();
    order.iter().copied().filter(|mode| found.contains(mode)).collect::<Vec<_>>().join(",").into()
}

fn phase(object: &Object) -> Value {
    if object.is_terminating() { "Terminating".into() } else { object.text("/status/phase").into() }
}

/// The class, by its old annotation or by the field.
fn class(object: &Object) -> Value {
    match object.text("/metadata/annotations/volume.beta.kubernetes.io~1storage-class") {
        "" => object.text("/spec/storageClassName").into(),
        class => class.into(),
    }
}

/// PersistentVolumes.
pub const PERSISTENT_VOLUME: &[Column] = &[
    NAME,
    text("Capacity", |volume, _| volume.text("/spec/capacity/storage").into()),
    text("Access Modes", |volume, _| modes(volume.list("/spec/accessModes"))),
    text("Reclaim Policy", |volume, _| volume.text("/spec/persistentVolumeReclaimPolicy").into()),
    text("Status", |volume, _| phase(volume)),
    text("Claim", |volume, _| match volume.text("/spec/claimRef/name") {
        "" => "".into(),
        name => format!("{}/{name}", volume.text("/spec/claimRef/namespace")).into(),
    }),
    text("StorageClass", |volume, _| class(volume)),
    text("VolumeAttributesClass", |volume, _| {
        or_unset(volume.text("/spec/volumeAttributesClassName"))
    }),
    text("Reason", |volume, _| volume.text("/status/reason").into()),
    AGE,
    wide("VolumeMode", |volume, _| or_unset(volume.text("/spec/volumeMode"))),
];

/// PersistentVolumeClaims.
pub const PERSISTENT_VOLUME_CLAIM: &[Column] = &[
    NAME,
    text("Status", |claim, _| phase(claim)),
    text("Volume", |claim, _| claim.text("/spec/volumeName").into()),
    text("Capacity", |claim, _| match claim.text("/spec/volumeName") {
        "" => "".into(),
        _ => claim.text("/status/capacity/storage").into(),
    }),
    text("Access Modes", |claim, _| match claim.text("/spec/volumeName") {
        "" => "".into(),
        _ => modes(claim.list("/status/accessModes")),
    }),
    text("StorageClass", |claim, _| class(claim)),
    text("VolumeAttributesClass", |claim, _| {
        or_unset(claim.text("/spec/volumeAttributesClassName"))
    }),
    AGE,
    wide("VolumeMode", |claim, _| or_unset(claim.text("/spec/volumeMode"))),
];

/// StorageClasses.
pub const STORAGE_CLASS: &[Column] = &[
    Column { cell: |class, _| marked(class), ..NAME },
    text("Provisioner", |class, _| class.text("/provisioner").into()),
    text("ReclaimPolicy", |class, _| class.text("/reclaimPolicy").into()),
    text("VolumeBindingMode", |class, _| class.text("/volumeBindingMode").into()),
    flag("AllowVolumeExpansion", |class, _| class.flag("/allowVolumeExpansion").into()),
    AGE,
];

/// VolumeAttributesClasses.
pub const VOLUME_ATTRIBUTES_CLASS: &[Column] =
    &[NAME, text("DriverName", |class, _| class.text("/driverName").into()), AGE];

/// The name, and whether an annotation makes the class the default one.
fn marked(class: &Object) -> Value {
    let says = |group: &str| {
        class.text(&format!("/metadata/annotations/{group}.kubernetes.io~1is-default-class"))
            == "true"
    };
    let mark = if says("storageclass") || says("storageclass.beta") { " (default)" } else { "" };
    format!("{}{mark}", class.name()).into()
}

/// CSIDrivers.
pub const CSI_DRIVER: &[Column] = &[
    NAME,
    flag("AttachRequired", |driver, _| {
        driver.at("/spec/attachRequired").cloned().unwrap_or(true.into())
    }),
    flag("PodInfoOnMount", |driver, _| driver.flag("/spec/podInfoOnMount").into()),
    flag("StorageCapacity", |driver, _| driver.flag("/spec/storageCapacity").into()),
    text("TokenRequests", |driver, _| {
        let requests = driver.list("/spec/tokenRequests").iter();
        let audiences = requests.map(|one| one["audience"].as_str().unwrap_or_default());
        or_unset(&audiences.collect::<Vec<_>>().join(","))
    }),
    flag("RequiresRepublish", |driver, _| driver.flag("/spec/requiresRepublish").into()),
    text("Modes", |driver, _| {
        let modes = driver.list("/spec/volumeLifecycleModes").iter().filter_map(Value::as_str);
        let modes = modes.collect::<Vec<_>>().join(",");
        if modes.is_empty() { NONE.into() } else { modes.into() }
    }),
    AGE,
];

/// CSINodes.
pub const CSI_NODE: &[Column] =
    &[NAME, number("Drivers", |node, _| node.list("/spec/drivers").len().into()), AGE];

/// VolumeAttachments.
pub const VOLUME_ATTACHMENT: &[Column] = &[
    NAME,
    text("Attacher", |one, _| one.text("/spec/attacher").into()),
    text("PV", |one, _| one.text("/spec/source/persistentVolumeName").into()),
    text("Node", |one, _| one.text("/spec/nodeName").into()),
    flag("Attached", |one, _| one.flag("/status/attached").into()),
    AGE,
];
