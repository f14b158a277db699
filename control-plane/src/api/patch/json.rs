//! JSON patches (RFC 6902) within limits: a few copies of copies would fill any memory, and nest a
//! document deeper than it can be read again.

use http::StatusCode;
use json_patch::jsonptr::Pointer;
use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use crate::api::encode;
use crate::api::status::{Failure, Result};
use crate::store::MAX_VALUE;

/// The most operations of a patch (Kubernetes' limit).
const MAX_OPERATIONS: usize = 10_000;
/// The most bytes that the copies of a patch may come to (Kubernetes' limit).
const MAX_COPIED: usize = 3 << 20;
/// How deep a document may be nested: what decodes JSON gives up beyond 128.
const MAX_DEPTH: usize = 100;

/// Applies the operations one after the other. After a failure `document` is of no use.
pub(super) fn apply(document: &mut Value, patch: &Patch) -> Result<()> {
    if patch.len() > MAX_OPERATIONS {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            patch.len()
        );
        return Err(too_large(message));
    }
    let mut copied = 0;
    for (index, operation) in patch.iter().enumerate() {
        copied += check(document, operation, copied)?;
        json_patch::patch(document, std::slice::from_ref(operation)).map_err(|error| {
            let why =
                format!("operation '/{index}' failed at path '{}': {}", error.path, error.kind);
            rejected(&why)
        })?;
    }
    let size = encode::size(document);
    if size > MAX_VALUE {
        let message =
            format!("the patched object is {size} bytes, more than the {MAX_VALUE} allowed");
        return Err(too_large(message));
    }
    Ok(())
}

/// Refuses an operation that leaves the limits; how many bytes it copies.
fn check(document: &Value, operation: &PatchOperation, copied: usize) -> Result<usize> {
    let below = |path: &Pointer, value: &Value| match path.count() + depth(value) {
        0..=MAX_DEPTH => Ok(()),
        _ => Err(rejected(&format!("the document may not be nested deeper than {MAX_DEPTH}"))),
    };
    let (from, to) = match operation {
        PatchOperation::Add(add) => return below(&add.path, &add.value).map(|()| 0),
        PatchOperation::Replace(replace) => {
            return below(&replace.path, &replace.value).map(|()| 0);
        }
        // What comes to lie deeper is looked through, at the cost of a copy.
        PatchOperation::Move(moved) if moved.path.count() > moved.from.count() => {
            (&moved.from, &moved.path)
        }
        PatchOperation::Copy(copy) => (&copy.from, &copy.path),
        _ => return Ok(0),
    };
    let Some(value) = document.pointer(from.as_str()) else { return Ok(0) };
    let size = encode::size(value);
    if copied + size > MAX_COPIED {
        return Err(rejected(&format!(
            "Unable to complete the copy, the accumulated size increase of copy is {}, exceeding the limit {MAX_COPIED}",
            copied + size
        )));
    }
    below(to, value).map(|()| size)
}

/// How many lists and objects are within each other at the deepest place.
fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(fields) => fields.values().map(depth).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}

fn rejected(why: &str) -> Failure {
    let message = format!("the server rejected our request due to an error in our request: {why}");
    Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
}

fn too_large(message: String) -> Failure {
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn applied(document: &Value, operations: Value) -> std::result::Result<Value, StatusCode> {
        let patch: Patch = serde_json::from_value(operations).unwrap();
        let mut document = document.clone();
        apply(&mut document, &patch).map(|()| document).map_err(|failure| failure.code())
    }

    #[test]
    fn operations_follow_each_other() {
        let operations = json!([
            {"op": "add", "path": "/b", "value": [1]},
            {"op": "copy", "from": "/b", "path": "/c"},
            {"op": "move", "from": "/a", "path": "/b/-"},
            {"op": "test", "path": "/b", "value": [1, 7]},
        ]);
        assert_eq!(applied(&json!({"a": 7}), operations), Ok(json!({"b": [1, 7], "c": [1]})));
        let absent = json!([{"op": "remove", "path": "/a"}]);
        assert_eq!(applied(&json!({}), absent), Err(StatusCode::UNPROCESSABLE_ENTITY));
    }

    #[test]
    fn copies_of_copies_stop_before_memory_does() {
        // Each copy doubles the list: without a limit the last one is of exabytes.
        let doubling: Vec<Value> =
            (0..60).map(|_| json!({"op": "copy", "from": "/data", "path": "/data/-"})).collect();
        let document = json!({"data": ["x".repeat(1000)]});
        assert_eq!(applied(&document, doubling.into()), Err(StatusCode::UNPROCESSABLE_ENTITY));
    }

    #[test]
    fn operations_are_counted() {
        let many = |count: usize| {
            let one = json!({"op": "test", "path": "/a", "value": 1});
            applied(&json!({"a": 1}), std::iter::repeat_n(one, count).collect())
        };
        assert!(many(MAX_OPERATIONS).is_ok());
        assert_eq!(many(MAX_OPERATIONS + 1), Err(StatusCode::PAYLOAD_TOO_LARGE));
    }

    #[test]
    fn nothing_is_nested_deeper_than_can_be_read() {
        let mut operations = vec![json!({"op": "add", "path": "/x", "value": {}})];
        operations.extend((0..9).map(|power| {
            let path = format!("/x{}", "/x".repeat(1 << power));
            json!({"op": "copy", "from": "/x", "path": path})
        }));
        assert_eq!(applied(&json!({}), operations.into()), Err(StatusCode::UNPROCESSABLE_ENTITY));
    }

    #[test]
    fn the_result_can_be_stored() {
        let half = "x".repeat(MAX_VALUE / 2);
        let operations = json!([{"op": "copy", "from": "/a", "path": "/b"}]);
        assert_eq!(applied(&json!({"a": half}), operations), Err(StatusCode::PAYLOAD_TOO_LARGE));
    }
}
