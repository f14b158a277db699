//! Objects and the bytes that the store keeps of them.
//!
//! The stored form has no `resourceVersion`: that is the store's modification revision, known only
//! after the commit. It is spliced in on the way out, so that get, list and watch never parse
//! what they pass on.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

use super::status::{Failure, Result};
use crate::registry::{Kind, Object};
use crate::store::{Entry, Revision};

/// What precedes the place of the `resourceVersion`.
const METADATA: &[u8] = b"\"metadata\":{";

/// The stored form: `apiVersion`, `kind` and `metadata` first, then the rest by name.
pub(super) fn to_bytes(object: &Object) -> Bytes {
    let first = ["apiVersion", "kind", "metadata"];
    let place = |name: &str| first.iter().position(|known| *known == name).unwrap_or(first.len());
    let mut ordered: Vec<_> = object.fields().collect();
    ordered.sort_by_key(|(name, _)| place(name));
    let mut out = Vec::with_capacity(2048);
    let mut before: &[u8] = b"{";
    for (name, value) in ordered {
        out.extend_from_slice(before);
        before = b",";
        // Writing a JSON value into memory can't fail.
        let _ = serde_json::to_writer(&mut out, name);
        out.push(b':');
        if name == "metadata" {
            let mut metadata = value.clone();
            if let Some(fields) = metadata.as_object_mut() {
                fields.remove("resourceVersion");
            }
            let _ = serde_json::to_writer(&mut out, &metadata);
        } else {
            let _ = serde_json::to_writer(&mut out, value);
        }
    }
    out.push(b'}');
    // It may stay for long: no room to grow.
    out.into_boxed_slice().into()
}

/// How many bytes a value has as JSON.
pub(super) fn size(value: &Value) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting can't fail.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

/// Appends the object as clients see it.
pub(super) fn splice(entry: &Entry, out: &mut BytesMut) {
    let value = &entry.value;
    let Some(at) = value.windows(METADATA.len()).position(|window| window == METADATA) else {
        out.put_slice(value);
        return;
    };
    let (head, tail) = value.split_at(at + METADATA.len());
    out.reserve(value.len() + 48);
    out.put_slice(head);
    out.put_slice(b"\"resourceVersion\":\"");
    out.put_slice(entry.modified.to_string().as_bytes());
    out.put_slice(if tail.starts_with(b"}") { b"\"" } else { b"\"," });
    out.put_slice(tail);
}

/// The object as clients see it.
pub(super) fn bytes(entry: &Entry) -> Bytes {
    let mut out = BytesMut::new();
    splice(entry, &mut out);
    out.freeze()
}

/// The entry as a kind shows it.
pub(super) fn shown(kind: &Kind, entry: Entry) -> Entry {
    if kind.view.is_none() {
        return entry;
    }
    match object(&entry) {
        Ok(stored) => Entry { value: to_bytes(&kind.shown(stored)), ..entry },
        Err(_) => entry,
    }
}

/// The object, parsed.
pub(super) fn object(entry: &Entry) -> Result<Object> {
    at_revision(&entry.value, entry.modified)
}

/// The object as far as its metadata goes, which is all that is parsed.
pub(super) fn head(entry: &Entry) -> Result<Object> {
    #[derive(Deserialize)]
    struct Head {
        metadata: Value,
    }
    let head = serde_json::from_slice::<Head>(&entry.value).ok();
    let object = head.and_then(|head| Object::new(json!({"metadata": head.metadata})));
    let mut object = object.ok_or_else(unreadable)?;
    object.set("/metadata/resourceVersion", entry.modified.to_string());
    Ok(object)
}

fn unreadable() -> Failure {
    Failure::new(
        http::StatusCode::INTERNAL_SERVER_ERROR,
        "InternalError",
        "the stored object is no JSON object",
    )
}

/// A stored value as the object of a revision (a deletion has one of its own).
pub(super) fn at_revision(value: &[u8], revision: Revision) -> Result<Object> {
    let value = serde_json::from_slice(value).ok().and_then(Object::new);
    let mut object = value.ok_or_else(unreadable)?;
    object.set("/metadata/resourceVersion", revision.to_string());
    Ok(object)
}

/// Revision that a `resourceVersion` names.
pub(super) fn revision(text: &str) -> Result<Option<Revision>> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            Failure::bad_request(format!(
                "invalid resource version {text:?}: must be a non-negative integer"
            ))
        }),
    }
}

/// Makes sure that the object says its kind.
pub(super) fn set_kind(object: &mut Object, kind: &Kind) {
    object.set("/apiVersion", kind.api_version());
    object.set("/kind", kind.kind);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_is_spliced_into_the_metadata() {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "binaryData": {"metadata": "x"},
            "data": {"a": "\"metadata\":{"}, "metadata": {"name": "a", "resourceVersion": "3"}});
        let stored = to_bytes(&Object::new(object.clone()).unwrap());
        assert!(!String::from_utf8_lossy(&stored).contains("resourceVersion"));
        let seen = bytes(&Entry { value: stored, created: 1, modified: 77 });
        let mut expected = object;
        expected["metadata"]["resourceVersion"] = "77".into();
        assert_eq!(serde_json::from_slice::<Value>(&seen).unwrap(), expected);
    }
}
