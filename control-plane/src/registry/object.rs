//! An API object as JSON, with typed access to what every object has.

use serde_json::{Value, json};

/// An API object. Always a JSON object; `metadata` may still be missing before it was checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Object(Value);

impl Object {
    /// Takes a decoded body. Nulls in objects mean "not set" and are dropped, as typed decoders do.
    /// Returns `None` if the value is no JSON object or its `metadata` is none.
    pub fn new(mut value: Value) -> Option<Self> {
        prune(&mut value);
        let metadata = value.as_object_mut()?.entry("metadata").or_insert_with(|| json!({}));
        metadata.is_object().then_some(Self(value))
    }

    /// The JSON value.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// The JSON value, to change. It stays an object with metadata.
    pub(super) fn value_mut(&mut self) -> &mut Value {
        &mut self.0
    }

    /// The JSON value, given away.
    pub fn into_value(self) -> Value {
        self.0
    }

    /// The top-level fields.
    pub fn fields(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.as_object().into_iter().flatten()
    }

    /// The value at a JSON pointer (RFC 6901).
    pub fn at(&self, pointer: &str) -> Option<&Value> {
        self.0.pointer(pointer)
    }

    /// The value at a JSON pointer, to change.
    pub fn at_mut(&mut self, pointer: &str) -> Option<&mut Value> {
        self.0.pointer_mut(pointer)
    }

    /// The text at a JSON pointer, empty if there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.at(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The integer at a JSON pointer.
    pub fn integer(&self, pointer: &str) -> Option<i64> {
        self.at(pointer).and_then(Value::as_i64)
    }

    /// Whether the value at a JSON pointer is `true`.
    pub fn flag(&self, pointer: &str) -> bool {
        self.at(pointer).and_then(Value::as_bool).unwrap_or_default()
    }

    /// The list at a JSON pointer, empty if there is none.
    pub fn list(&self, pointer: &str) -> &[Value] {
        self.at(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Writes `value` at a pointer of object keys, making the objects on the way.
    pub fn set(&mut self, pointer: &str, value: impl Into<Value>) {
        *self.slot(pointer) = value.into();
    }

    /// Writes `value` where there is nothing yet.
    pub fn default(&mut self, pointer: &str, value: impl Into<Value>) {
        let slot = self.slot(pointer);
        if slot.is_null() {
            *slot = value.into();
        }
    }

    /// Removes and returns the field at a pointer of object keys.
    pub fn remove(&mut self, pointer: &str) -> Option<Value> {
        let (parent, key) = pointer.rsplit_once('/')?;
        self.0.pointer_mut(parent)?.as_object_mut()?.remove(&unescape(key))
    }

    /// Copies the field at `pointer` from another object, or removes it if that has none.
    pub fn copy(&mut self, pointer: &str, from: &Self) {
        match from.at(pointer) {
            Some(value) => self.set(pointer, value.clone()),
            None => drop(self.remove(pointer)),
        }
    }

    fn slot(&mut self, pointer: &str) -> &mut Value {
        pointer.split('/').skip(1).fold(&mut self.0, |value, key| {
            if !value.is_object() {
                *value = json!({});
            }
            &mut value[unescape(key)]
        })
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    /// `metadata.namespace`, empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.text("/metadata/uid")
    }

    /// `metadata.resourceVersion`.
    pub fn resource_version(&self) -> &str {
        self.text("/metadata/resourceVersion")
    }

    /// Whether somebody asked for the object's deletion.
    pub fn is_terminating(&self) -> bool {
        self.at("/metadata/deletionTimestamp").is_some()
    }

    /// Whether finalizers keep the object, `spec.finalizers` of a namespace included.
    pub fn has_finalizers(&self) -> bool {
        !self.list("/metadata/finalizers").is_empty()
            || (self.text("/kind") == "Namespace" && !self.list("/spec/finalizers").is_empty())
    }
}

/// A segment of a JSON pointer as the key that it means.
fn unescape(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}

/// Drops null members of objects, at every depth. Nulls in lists stay: they are an error that
/// validation names.
fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(prune);
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}
