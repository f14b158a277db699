//! Which objects of a collection a request wants.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Call;
use super::query::Target;
use super::status::Result;
use crate::registry::selector::{Fields, Selector, SelectorError};

/// Label and field selectors of one request.
pub(super) struct Filter {
    labels: Selector,
    /// Conditions on `metadata.name` and `metadata.namespace`: answered by the key.
    by_key: Vec<(Segment, bool, String)>,
    /// Conditions on other fields: JSON pointer, default, equal, value.
    fields: Vec<(&'static str, &'static str, bool, String)>,
}

#[derive(Clone, Copy)]
enum Segment {
    Name,
    Namespace,
}

/// The only part of an object that label selectors need.
#[derive(Deserialize)]
struct Labelled {
    metadata: Labels,
}

#[derive(Deserialize)]
struct Labels {
    labels: Option<Map<String, Value>>,
}

impl Filter {
    /// Reads the selectors of a request.
    pub(super) fn new(call: &Call, target: &Target) -> Result<Self> {
        let labels = Selector::parse(call.params.text("labelSelector"))?;
        let mut filter = Self { labels, by_key: Vec::new(), fields: Vec::new() };
        if !target.name.is_empty() {
            filter.by_key.push((Segment::Name, true, target.name.clone()));
        }
        for (label, equal, value) in Fields::parse(call.params.text("fieldSelector"))?.0 {
            match label.as_str() {
                "metadata.name" => filter.by_key.push((Segment::Name, equal, value)),
                "metadata.namespace" => filter.by_key.push((Segment::Namespace, equal, value)),
                other => {
                    let known = target.kind.selectable.iter().find(|(known, ..)| *known == other);
                    let (_, pointer, default) =
                        known.ok_or_else(|| SelectorError::Field(label.clone()))?;
                    filter.fields.push((pointer, default, equal, value));
                }
            }
        }
        Ok(filter)
    }

    /// Whether everything passes.
    pub(super) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.by_key.is_empty() && self.fields.is_empty()
    }

    /// Whether an object passes. A value that can't be parsed does not.
    pub(super) fn matches(&self, key: &str, value: &[u8]) -> bool {
        self.matches_key(key) && self.matches_labels(value) && self.matches_fields(value)
    }

    fn matches_key(&self, key: &str) -> bool {
        let mut segments = key.rsplit('/');
        let name = segments.next().unwrap_or_default();
        let namespace = segments.next().unwrap_or_default();
        self.by_key.iter().all(|(segment, equal, wanted)| {
            let found = match segment {
                Segment::Name => name,
                Segment::Namespace => namespace,
            };
            (found == wanted) == *equal
        })
    }

    fn matches_labels(&self, value: &[u8]) -> bool {
        self.labels.is_everything()
            || serde_json::from_slice::<Labelled>(value)
                .is_ok_and(|object| self.labels.matches(object.metadata.labels.as_ref()))
    }

    fn matches_fields(&self, value: &[u8]) -> bool {
        if self.fields.is_empty() {
            return true;
        }
        let Ok(object) = serde_json::from_slice::<Value>(value) else { return false };
        self.fields.iter().all(|(pointer, default, equal, wanted)| {
            let found = match object.pointer(pointer) {
                None | Some(Value::Null) => (*default).to_owned(),
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            (found == *wanted) == *equal
        })
    }
}
