//! events.k8s.io/v1: the core group's events under other names.

use super::object::Object;
use super::view::View;

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
