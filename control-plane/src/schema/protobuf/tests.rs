//! Messages written by hand from the encoding's description, and arbitrary bytes.

use proptest::prelude::*;
use prost::encoding::{encode_key, encode_varint};

use super::*;

/// A field that holds bytes.
fn bytes(number: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut out);
    encode_varint(value.as_ref().len() as u64, &mut out);
    out.extend_from_slice(value.as_ref());
    out
}

/// A field that holds a number.
fn number(number: u32, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(number, WireType::Varint, &mut out);
    encode_varint(value, &mut out);
    out
}

fn body(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let type_meta = [bytes(1, version), bytes(2, kind)].concat();
    [MAGIC.to_vec(), bytes(1, type_meta), bytes(2, raw), bytes(3, ""), bytes(4, "")].concat()
}

/// `ObjectMeta` as Go writes it: every field that is no pointer, empty or not.
fn metadata(name: &str) -> Vec<u8> {
    let texts = [bytes(1, name), bytes(2, ""), bytes(3, "default"), bytes(4, ""), bytes(5, "")];
    [texts.concat(), bytes(6, ""), number(7, 0), bytes(8, "")].concat()
}

#[test]
fn a_config_map_and_a_secret() {
    let entry = [bytes(1, "key"), bytes(2, "value")].concat();
    let map = [bytes(1, metadata("settings")), bytes(2, &entry)].concat();
    assert_eq!(
        decode(&body("v1", "ConfigMap", &map)),
        Ok(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "settings", "namespace": "default"}, "data": {"key": "value"}}))
    );
    let secret = [bytes(1, metadata("s")), bytes(2, &entry), bytes(3, "Opaque")].concat();
    let secret = decode(&body("v1", "Secret", &secret)).unwrap();
    assert_eq!((&secret["data"], &secret["type"]), (&json!({"key": "dmFsdWU="}), &json!("Opaque")));
}

#[test]
fn pointers_keep_their_zeros_and_embedded_types_are_flat() {
    // replicas: 0 (a pointer), minReadySeconds: 0 (none), paused: false (none); a volume of a
    // config map with a mode; a probe of an HTTP path and a port by name.
    let source = [bytes(1, bytes(1, "settings")), number(3, 0)].concat();
    let volume = [bytes(1, "v"), bytes(2, bytes(19, source))].concat();
    let port = [number(1, 1), number(2, 0), bytes(3, "http")].concat();
    let get = [bytes(1, "/ok"), bytes(2, port), bytes(3, ""), bytes(4, "")].concat();
    let probe = [bytes(1, bytes(2, get)), number(2, 0), number(3, 5)].concat();
    let limit = [bytes(1, "cpu"), bytes(2, bytes(1, "100m"))].concat();
    let resources = bytes(1, limit);
    let container = [bytes(1, "c"), bytes(2, ""), bytes(8, resources), bytes(10, probe)].concat();
    let spec = [bytes(1, volume), bytes(2, container), number(4, 0)].concat();
    let template = [bytes(1, ""), bytes(2, spec)].concat();
    let spec = [number(1, 0), bytes(3, template), number(5, 0), number(7, 0)].concat();
    let deployment = [bytes(1, metadata("web")), bytes(2, spec), bytes(3, "")].concat();
    assert_eq!(
        decode(&body("apps/v1", "Deployment", &deployment)).unwrap(),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"replicas": 0, "template": {"metadata": {}, "spec": {
                "volumes": [{"name": "v", "configMap": {"name": "settings", "defaultMode": 0}}],
                "containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}},
                    "livenessProbe": {"httpGet": {"path": "/ok", "port": "http"}, "timeoutSeconds": 5}}],
                "terminationGracePeriodSeconds": 0,
            }}},
            "status": {},
        })
    );
}

#[test]
fn times_options_and_negative_numbers() {
    let renewed = [number(1, 1_700_000_000), number(2, 5_000_000)].concat();
    let spec = [bytes(1, "me"), number(2, 40), bytes(4, renewed)].concat();
    let lease = decode(&body("coordination.k8s.io/v1", "Lease", &bytes(2, spec))).unwrap();
    assert_eq!(
        lease["spec"],
        json!({"holderIdentity": "me", "leaseDurationSeconds": 40, "renewTime": "2023-11-14T22:13:20.005000Z"})
    );
    let options = [number(1, (-1_i64).cast_unsigned()), bytes(4, "Foreground")].concat();
    let options = decode(&body("policy/v1", "DeleteOptions", &options)).unwrap();
    assert_eq!(options["gracePeriodSeconds"], -1);
    assert_eq!(options["propagationPolicy"], "Foreground");
    let extra = [bytes(1, "scopes"), bytes(2, [bytes(1, "a"), bytes(1, "b")].concat())].concat();
    let review = bytes(2, bytes(5, extra));
    let review = body("authorization.k8s.io/v1", "SubjectAccessReview", &review);
    assert_eq!(decode(&review).unwrap()["spec"]["extra"], json!({"scopes": ["a", "b"]}));
}

#[test]
fn what_is_no_message_is_refused() {
    assert_eq!(decode(b"{}"), Err(ProtobufError::Prefix));
    let unknown = ProtobufError::UnknownKind { version: "v1".into(), kind: "Nothing".into() };
    assert_eq!(decode(&body("v1", "Nothing", &[])), Err(unknown));
    for raw in [vec![0x0a, 0x7f], number(2, 1), vec![0x08], bytes(3, [0xff, 0xfe])] {
        let refused = decode(&body("v1", "Secret", &raw));
        assert!(matches!(refused, Err(ProtobufError::Broken { .. })), "{raw:?}: {refused:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&raw);
        for (version, kind) in [("v1", "Pod"), ("apps/v1", "ControllerRevision"), ("v1", "Event")] {
            let _ = decode(&body(version, kind, &raw));
        }
    }
}
