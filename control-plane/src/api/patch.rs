//! PATCH: JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge patch.

mod json;

use std::fmt;

use http::{Response, StatusCode};
use serde_json::Value;

use super::body::{self, Form};
use super::fields::{self, Validation, Warnings};
use super::query::Target;
use super::status::{Failure, Result};
use super::update::Part;
use super::{Api, Body, Call, strategic};
use crate::registry::Object;
use crate::schema::{self, Type};

/// A patch of a known format.
pub(super) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Reads the patch that a request carries.
    pub(super) fn read(call: &Call, body: &[u8]) -> Result<Self> {
        let broken = |error: serde_json::Error| {
            Failure::bad_request(format!("error decoding patch: {error}"))
        };
        match body::media_type(&call.headers) {
            "application/json-patch+json" => {
                serde_json::from_slice(body).map(Self::Json).map_err(broken)
            }
            "application/merge-patch+json" => {
                serde_json::from_slice(body).map(Self::Merge).map_err(broken)
            }
            "application/strategic-merge-patch+json" => {
                serde_json::from_slice(body).map(Self::Strategic).map_err(broken)
            }
            other => Err(body::unsupported(
                other,
                "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
            )),
        }
    }

    /// The object with the patch applied.
    pub(super) fn apply(&self, of: Option<&'static Type>, old: &Object) -> Result<Value> {
        let mut value = old.value().clone();
        match self {
            Self::Json(patch) => json::apply(&mut value, patch)?,
            Self::Merge(patch) => json_patch::merge(&mut value, patch),
            Self::Strategic(patch) => strategic::apply(&mut value, patch, of)
                .map_err(|error| Failure::bad_request(error.to_string()))?,
        }
        Ok(value)
    }
}

impl fmt::Display for Patch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(patch) => write!(formatter, "{patch}"),
            Self::Merge(patch) | Self::Strategic(patch) => write!(formatter, "{patch}"),
        }
    }
}

/// The patch leaves something else than an object of the kind.
pub(super) fn no_object(kind: &str) -> Failure {
    Failure::bad_request(format!("the patch does not leave a {kind}"))
}

impl Api {
    pub(super) async fn patch(
        &self,
        call: &Call,
        target: &Target,
        body: &[u8],
        form: Form,
    ) -> Result<Response<Body>> {
        let (object, warnings) = self.patched(call, target, body, Part::Main).await?;
        Ok(warnings.on(form.respond(target.kind, &object, call, StatusCode::OK)))
    }

    /// The target with the patch applied to one of its parts.
    pub(super) async fn patched(
        &self,
        call: &Call,
        target: &Target,
        body: &[u8],
        part: Part,
    ) -> Result<(Object, Warnings)> {
        let patch = Patch::read(call, body)?;
        let validation = Validation::asked(call)?;
        let stored = target.stored(&self.registry);
        let mut warnings = Warnings::default();
        let change = |old: &Object| {
            let shown = target.kind.shown(old.clone());
            let value = patch.apply(schema::of(target.kind), &shown)?;
            let (value, found) = fields::patched(validation, target.kind, value, &patch)?;
            warnings = found;
            let new = Object::new(value).ok_or_else(|| no_object(target.kind.kind))?;
            let new = target.kind.to_store(new);
            if new.name() != old.name() {
                return Err(Failure::bad_request(format!(
                    "the name of the object ({}) does not match the name on the URL ({})",
                    new.name(),
                    old.name()
                )));
            }
            Ok(new)
        };
        let object = self.rewrite(&stored, part, &call.how()?, change).await?;
        Ok((object, warnings))
    }
}
