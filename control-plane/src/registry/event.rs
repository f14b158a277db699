//! Events: where they are and what newer ones say; and events.k8s.io/v1, the core group's events
//! under other names.

use super::invalid::Errors;
use super::names;
use super::object::Object;
use super::strategy::Strategy;
use super::view::View;

/// [`Strategy`] of events.
pub(super) struct Events;

/// The longest of who reports, of what is done and why.
const TEXT_MAX: usize = 128;
/// The longest message of an event that says when it happened.
const MESSAGE_MAX: usize = 1024;

impl Strategy for Events {
    fn validate(&self, object: &Object, errors: &mut Errors) {
        let about = object.text("/involvedObject/namespace");
        let here = object.namespace();
        // What is told of objects of the cluster is in the default namespace; an event that says when
        // it happened may be in the system's, and its namespace is compared with no other.
        let newer = !object.text("/eventTime").is_empty();
        let fits = match (newer, about.is_empty()) {
            (true, true) => matches!(here, "default" | "kube-system"),
            (true, false) => true,
            (false, true) => matches!(here, "" | "default"),
            (false, false) => about == here,
        };
        if !fits {
            let why = "does not match event.namespace";
            errors.invalid("involvedObject.namespace", about, why);
        }
        if object.text("/eventTime").is_empty() {
            return;
        }
        for field in ["reportingComponent", "reportingInstance", "action", "reason"] {
            let text = object.text(&format!("/{field}"));
            if text.is_empty() {
                errors.required(field, "");
            } else if field == "reportingComponent" {
                if let Some(fault) = names::key_fault(text) {
                    errors.invalid(field, text, fault);
                }
            } else if text.len() > TEXT_MAX {
                errors.invalid(field, "", format!("can have at most {TEXT_MAX} characters"));
            }
        }
        if object.text("/message").len() > MESSAGE_MAX {
            errors.invalid("message", "", format!("can have at most {MESSAGE_MAX} characters"));
        }
    }
}

/// The same events; where a field stands in events.k8s.io, and where in the core group.
pub(super) static VIEW: View = View { group: "", version: "v1", show, store };

const NAMES: &[(&str, &str)] = &[
    ("/regarding", "/involvedObject"),
    ("/note", "/message"),
    ("/deprecatedSource", "/source"),
    ("/deprecatedFirstTimestamp", "/firstTimestamp"),
    ("/deprecatedLastTimestamp", "/lastTimestamp"),
    ("/deprecatedCount", "/count"),
    ("/reportingController", "/reportingComponent"),
];

fn show(object: &mut Object) {
    rename(object, |(shown, stored)| (stored, shown));
}

fn store(object: &mut Object) {
    rename(object, |(shown, stored)| (shown, stored));
    object.default("/involvedObject", serde_json::json!({}));
}

fn rename(
    object: &mut Object,
    order: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    for names in NAMES {
        let (from, to) = order(*names);
        if let Some(value) = object.remove(from) {
            object.set(to, value);
        }
    }
}
