//! Kinds that are another kind's objects in another version: read and written by their own names,
//! stored once.

use super::object::Object;
use super::{Kind, Registry};

/// How a kind shows the objects of another.
pub struct View {
    /// Group of the kind that is stored.
    pub group: &'static str,
    /// Version of the kind that is stored.
    pub version: &'static str,
    /// Turns a stored object into what this kind shows.
    pub show: fn(&mut Object),
    /// Turns what this kind shows into what is stored.
    pub store: fn(&mut Object),
}

impl Kind {
    /// The kind whose objects are stored.
    pub fn stored(&'static self, registry: &Registry) -> &'static Self {
        self.view
            .and_then(|view| registry.resource(view.group, view.version, self.plural))
            .unwrap_or(self)
    }

    /// The stored object as this kind shows it.
    pub fn shown(&self, mut object: Object) -> Object {
        if let Some(view) = self.view {
            (view.show)(&mut object);
            object.set("/apiVersion", self.api_version());
        }
        object
    }

    /// What this kind shows as the object to store.
    pub fn to_store(&self, mut object: Object) -> Object {
        if let Some(view) = self.view {
            (view.store)(&mut object);
            if !object.text("/apiVersion").is_empty() {
                object.set("/apiVersion", super::api_version(view.group, view.version));
            }
        }
        object
    }
}
