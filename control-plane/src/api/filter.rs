//! Which objects of a collection a request wants.

use std::sync::OnceLock;

use bytes::Bytes;
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

/// A stored object, as far as selectors have asked for it: parsed once, for however many of them.
pub(super) struct Candidate {
    value: Bytes,
    labels: OnceLock<Option<Labels>>,
    object: OnceLock<Option<Value>>,
}

impl Candidate {
    /// A stored value. Nothing is parsed yet.
    pub(super) const fn new(value: Bytes) -> Self {
        Self { value, labels: OnceLock::new(), object: OnceLock::new() }
    }

    /// Its labels; `None` for what is no object.
    fn labels(&self) -> Option<&Labels> {
        let parse = || serde_json::from_slice::<Labelled>(&self.value).ok().map(|it| it.metadata);
        self.labels.get_or_init(parse).as_ref()
    }

    /// All of it; `None` for what is no JSON.
    fn object(&self) -> Option<&Value> {
        self.object.get_or_init(|| serde_json::from_slice(&self.value).ok()).as_ref()
    }
}

impl Filter {
    /// Reads the selectors of a request.
    pub(super) fn new(call: &Call, target: &Target) -> Result<Self> {
        let labels = Selector::parse(call.params.text("labelSelector"))?;
        let mut filter = Self { labels, by_key: Vec::new(), fields: Vec::new() };
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
    pub(super) fn matches(&self, key: &str, candidate: &Candidate) -> bool {
        self.matches_key(key) && self.matches_labels(candidate) && self.matches_fields(candidate)
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

    fn matches_labels(&self, candidate: &Candidate) -> bool {
        self.labels.is_everything()
            || candidate.labels().is_some_and(|found| self.labels.matches(found.labels.as_ref()))
    }

    fn matches_fields(&self, candidate: &Candidate) -> bool {
        if self.fields.is_empty() {
            return true;
        }
        let Some(object) = candidate.object() else { return false };
        self.fields.iter().all(|(pointer, default, equal, wanted)| {
            let holds = match object.pointer(pointer) {
                None | Some(Value::Null) => *default == wanted,
                Some(Value::String(text)) => text == wanted,
                Some(other) => {
                    let text = other.to_string();
                    text == *wanted
                }
            };
            holds == *equal
        })
    }
}
