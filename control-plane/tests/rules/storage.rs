//! PersistentVolumes and claims: what they are, and what may change.

use serde_json::{Value, json};

use crate::bed::{Bed, causes, merge};

const VOLUMES: &str = "/api/v1/persistentvolumes";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";

fn volume(change: &Value) -> Value {
    let mut spec = json!({
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "nfs": {"server": "nfs.example", "path": "/data"},
    });
    merge(&mut spec, change);
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    json!({"metadata": {"generateName": "v-"}, "spec": spec})
}

fn claim(name: &str, change: &Value) -> Value {
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "2Gi"}},
    });
    merge(&mut spec, change);
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn volumes_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    for (change, expected) in [
        (json!({"nfs": null}), "spec: Required value: must specify a volume type"),
        (
            json!({"hostPath": {"path": "/x"}}),
            "spec.nfs: Forbidden: may not specify more than 1 volume type",
        ),
        (json!({"nfs": {"server": "", "path": "/data"}}), "spec.nfs.server: Required value"),
        (
            json!({"nfs": {"path": "data"}}),
            "spec.nfs.path: Invalid value: \"data\": must be an absolute path",
        ),
        (
            json!({"nfs": null, "hostPath": {"path": "/a/../b"}}),
            "spec.hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (
            json!({"nfs": null, "csi": {"driver": "d.example"}}),
            "spec.csi.volumeHandle: Required value",
        ),
        (
            json!({"nfs": null, "local": {"path": "/x"}}),
            "spec.nodeAffinity: Required value: Local volume requires node affinity",
        ),
        (
            json!({"nodeAffinity": {}}),
            "spec.nodeAffinity.required: Required value: must specify required node constraints",
        ),
        (
            json!({"capacity": {"cpu": "1", "storage": "1Gi"}}),
            "spec.capacity: Unsupported value: {\"cpu\":\"1\",\"storage\":\"1Gi\"}: supported values: \"storage\"",
        ),
        (json!({"accessModes": []}), "spec.accessModes: Required value"),
        (
            json!({"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]}),
            "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
        ),
        (
            json!({"volumeMode": "Raw"}),
            "spec.volumeMode: Unsupported value: \"Raw\": supported values: \"Block\", \"Filesystem\"",
        ),
        (
            json!({"nfs": null, "hostPath": {"path": "/"}, "persistentVolumeReclaimPolicy": "Recycle"}),
            "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
        ),
    ] {
        assert_eq!(bed.refused(VOLUMES, &volume(&change)).await, [expected], "{change}");
    }
}

#[tokio::test]
async fn what_may_change_of_a_volume() {
    let bed = Bed::start().await;
    let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]});
    let affinity = json!({"required": {"nodeSelectorTerms": [term]}});
    let made = bed.post(VOLUMES, &volume(&json!({"nodeAffinity": affinity}))).await.unwrap();
    let path = format!("{VOLUMES}/{}", made["metadata"]["name"].as_str().unwrap());
    bed.patch("merge", &path, &json!({"spec": {"capacity": {"storage": "2Gi"}}})).await.unwrap();
    for (change, start) in [
        (
            json!({"nfs": {"path": "/other"}}),
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
        ),
        (
            json!({"volumeMode": "Block"}),
            "spec.volumeMode: Invalid value: \"Block\": field is immutable",
        ),
        (
            json!({"nodeAffinity": null}),
            "spec.nodeAffinity: Invalid value: null: field is immutable, except for updating from beta label to GA",
        ),
    ] {
        assert_eq!(bed.refused_change(&path, &json!({"spec": change})).await, [start], "{change}");
    }
}

#[tokio::test]
async fn claims_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    for (change, expected) in [
        (
            json!({"accessModes": []}),
            "spec.accessModes: Required value: at least 1 access mode is required",
        ),
        (
            json!({"accessModes": ["ReadWriteOncePod", "ReadOnlyMany"]}),
            "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
        ),
        (
            json!({"resources": {"requests": {"storage": "0"}}}),
            "spec.resources[storage]: Invalid value: \"0\": must be greater than zero",
        ),
        (
            json!({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}),
            "spec.dataSource: Invalid value: \"VolumeSnapshot\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        ),
    ] {
        assert_eq!(bed.refused(CLAIMS, &claim("a", &change)).await, [expected], "{change}");
    }
}

#[tokio::test]
async fn what_may_change_of_a_claim() {
    const FROZEN: &str = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
    const SHRUNK: &str =
        "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity";
    let bed = Bed::start().await;
    bed.post(CLAIMS, &claim("c", &json!({}))).await.unwrap();
    let path = format!("{CLAIMS}/c");
    let change = async |spec: Value| {
        let changed = bed.patch("merge", &path, &json!({"spec": spec})).await;
        changed.map_or_else(|status| causes(&status), |_| Vec::new())
    };
    let size = |size: &str| json!({"resources": {"requests": {"storage": size}}});
    assert_eq!(change(size("3Gi")).await, [FROZEN], "not bound yet");
    assert_eq!(change(json!({"storageClassName": "fast"})).await, [""; 0], "there was none");
    assert_eq!(change(json!({"storageClassName": "slow"})).await, [FROZEN]);
    assert_eq!(change(json!({"volumeName": "v"})).await, [""; 0], "the binder");
    assert_eq!(change(json!({"volumeName": "w"})).await, [FROZEN]);
    let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": "2Gi"}}});
    bed.patch("merge", &format!("{path}/status"), &bound).await.unwrap();
    assert_eq!(change(size("4Gi")).await, [""; 0], "it grows");
    assert_eq!(change(size("3Gi")).await, [""; 0], "and back, as long as it is more");
    assert_eq!(change(size("2Gi")).await, [SHRUNK]);
    assert_eq!(change(json!({"accessModes": ["ReadOnlyMany"]})).await, [FROZEN]);
    let mode = "volumeMode: Invalid value: \"Block\": field is immutable";
    assert_eq!(change(json!({"volumeMode": "Block"})).await, [FROZEN, mode]);
}
