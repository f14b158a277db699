//! Templates of pods inside other kinds.

use serde_json::Value;

use super::invalid::Errors;
use super::object::Object;
use super::pod::spec::Within;
use super::{invalid, names, pod};

/// Where a kind has its template, and which restart policies it allows.
#[derive(Clone, Copy)]
pub struct Template {
    /// JSON pointer.
    pub at: &'static str,
    /// Restart policies.
    pub restart: &'static [&'static str],
}

impl Template {
    /// Fills in the defaults of the template's pods.
    pub(super) fn fill(&self, object: &mut Object) {
        if let Some(Value::Object(spec)) = object.at_mut(&format!("{}/spec", self.at)) {
            pod::default_spec(spec);
        }
    }

    /// Checks the template, if there is one.
    pub(super) fn check(&self, object: &Object, errors: &mut Errors) {
        let Some(template) = object.at(self.at) else { return };
        let field = invalid::field_of(self.at);
        let labels = template.pointer("/metadata/labels");
        names::check_labels(labels, &format!("{field}.metadata.labels"), errors);
        let Some(spec) = template.get("spec") else {
            errors.required(format!("{field}.spec.containers"), "");
            return;
        };
        pod::spec::validate(spec, &format!("{field}.spec"), Within::Template, errors);
        let policy = spec["restartPolicy"].as_str().unwrap_or_default();
        if self.restart.contains(&policy) {
            return;
        }
        let at = format!("{field}.spec.restartPolicy");
        match self.restart {
            ["Always"] => errors.not_supported(at, policy, self.restart),
            allowed => {
                let allowed: Vec<String> = allowed.iter().map(|one| format!("{one:?}")).collect();
                errors.required(at, &format!("valid values: {}", allowed.join(", ")));
            }
        }
    }
}
