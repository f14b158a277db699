//! Objects out of bodies: decoded, brought into their type's form, and checked for fields that
//! the type does not have as the client wants it (`fieldValidation`).

use std::collections::HashSet;
use std::fmt;

use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::body;
use super::status::{Failure, Result};
use super::{Body, Call};
use crate::registry::{Kind, Object};
use crate::schema::check::{self, Mismatch};
use crate::schema::{self, Type};

/// Most warnings that a response carries.
const WARNINGS: usize = 32;

/// What becomes of fields that the type does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validation {
    /// They are dropped.
    Ignore,
    /// They are dropped, and the response says so.
    Warn,
    /// The request fails.
    Strict,
}

impl Validation {
    /// What the request asks for.
    pub(super) fn asked(call: &Call) -> Result<Self> {
        match call.params.text("fieldValidation") {
            "Ignore" => Ok(Self::Ignore),
            "" | "Warn" => Ok(Self::Warn),
            "Strict" => Ok(Self::Strict),
            other => Err(Failure::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Invalid",
                format!(
                    "{}.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\"",
                    options(call)
                ),
            )),
        }
    }
}

/// The options type that the request's parameters are.
fn options(call: &Call) -> &'static str {
    match call.method {
        http::Method::POST => "CreateOptions",
        http::Method::PUT => "UpdateOptions",
        _ => "PatchOptions",
    }
}

/// What the response to a write warns of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Warnings(Vec<String>);

impl Warnings {
    /// The warning of a text, none of an empty one.
    pub(super) fn of(text: &str) -> Self {
        Self(if text.is_empty() { Vec::new() } else { vec![text.to_owned()] })
    }

    /// The response with a `Warning` header (RFC 7234, section 5.5) for each.
    pub(super) fn on(self, mut response: Response<Body>) -> Response<Body> {
        for text in self.0.into_iter().take(WARNINGS) {
            if let Ok(value) = HeaderValue::from_str(&format!("299 - {text:?}")) {
                response.headers_mut().append(http::header::WARNING, value);
            }
        }
        response
    }
}

/// Decodes a body into an object of a kind.
pub(super) fn read(call: &Call, kind: &Kind, body: &[u8]) -> Result<(Object, Warnings)> {
    let name = (kind.version, kind.group, kind.kind);
    let (object, warnings) = of_type(call, schema::of(kind), name, body)?;
    Ok((kind.to_store(object), warnings))
}

/// Decodes a body into an object of a type that is no kind of the registry: version, group, name.
pub(super) fn of_type(
    call: &Call,
    of: Option<&'static Type>,
    (version, group, name): (&str, &str, &str),
    body: &[u8],
) -> Result<(Object, Warnings)> {
    let validation = Validation::asked(call)?;
    let (mut value, duplicates) = decode(&call.headers, body)?;
    let version = crate::registry::api_version(group, version);
    // Another kind's fields are no use to anybody: what it is gets refused later.
    let other = value["kind"].as_str().is_some_and(|sent| !sent.is_empty() && sent != name);
    let unknown = match of {
        Some(of) if !other => {
            check::conform(of, &mut value).map_err(|error| mismatch(&version, name, &error))?
        }
        _ => Vec::new(),
    };
    let strict = unknown
        .into_iter()
        .map(|field| format!("unknown field {field:?}"))
        .chain(duplicates.into_iter().map(|field| format!("duplicate field {field:?}")));
    let strict: Vec<String> = strict.collect();
    let warnings = match validation {
        Validation::Strict if !strict.is_empty() => {
            return Err(Failure::bad_request(format!(
                "{name} in version {:?} cannot be handled as a {name}: strict decoding error: {}",
                bare(&version),
                strict.join(", ")
            )));
        }
        Validation::Warn => Warnings(strict),
        _ => Warnings::default(),
    };
    let object = Object::new(value)
        .ok_or_else(|| body::unreadable(&"an object with metadata is expected"))?;
    Ok((object, warnings))
}

/// Brings an object that a patch made into its type's form.
pub(super) fn patched(
    validation: Validation,
    kind: &Kind,
    mut value: Value,
    patch: &dyn fmt::Display,
) -> Result<(Value, Warnings)> {
    let Some(of) = schema::of(kind) else { return Ok((value, Warnings::default())) };
    let unknown = check::conform(of, &mut value)
        .map_err(|error| mismatch(&kind.api_version(), kind.kind, &error))?;
    let unknown: Vec<String> =
        unknown.into_iter().map(|field| format!("unknown field {field:?}")).collect();
    match validation {
        Validation::Strict if !unknown.is_empty() => Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!(
                " \"\" is invalid: patch: Invalid value: {:?}: strict decoding error: {}",
                patch.to_string(),
                unknown.join(", ")
            ),
        )),
        Validation::Warn => Ok((value, Warnings(unknown))),
        _ => Ok((value, Warnings::default())),
    }
}

fn mismatch(version: &str, kind: &str, error: &Mismatch) -> Failure {
    let version = bare(version);
    Failure::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
    ))
}

/// The version without its group.
fn bare(version: &str) -> &str {
    version.rsplit('/').next().unwrap_or_default()
}

/// Decodes a body; with JSON also names the fields that stand twice.
fn decode(headers: &HeaderMap, bytes: &[u8]) -> Result<(Value, Vec<String>)> {
    if !matches!(body::media_type(headers), "" | "application/json") {
        return Ok((body::decode(headers, bytes)?, Vec::new()));
    }
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Tracked { path: String::new(), duplicates: &mut duplicates };
    let value = seed
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| body::unreadable(&error))?;
    Ok((value, duplicates))
}

/// Builds a JSON value and notes which fields stand twice.
struct Tracked<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Tracked<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tracked<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> std::result::Result<Value, E> {
        let number = serde_json::Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, list.len());
            let seed = Tracked { path, duplicates: &mut *self.duplicates };
            match items.next_element_seed(seed)? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> std::result::Result<Value, A::Error> {
        let (mut map, mut seen) = (Map::new(), HashSet::new());
        while let Some(name) = fields.next_key::<String>()? {
            let separator = if self.path.is_empty() { "" } else { "." };
            let path = format!("{}{separator}{name}", self.path);
            if self.duplicates.len() > WARNINGS * 4 {
                return Err(A::Error::custom("too many fields stand twice"));
            }
            if !seen.insert(name.clone()) {
                self.duplicates.push(path.clone());
            }
            let seed = Tracked { path, duplicates: &mut *self.duplicates };
            let value = fields.next_value_seed(seed)?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn fields_that_stand_twice_are_named() {
        let text = br#"{"a": 1, "b": [{"c": 1, "c": {"d": 1}}], "a": 2, "e": null, "f": -1.5}"#;
        let (value, duplicates) = decode(&HeaderMap::new(), text).unwrap();
        assert_eq!(duplicates, ["b[0].c", "a"]);
        assert_eq!(
            value,
            serde_json::json!({"a": 2, "b": [{"c": {"d": 1}}], "e": null, "f": -1.5})
        );
        assert!(decode(&HeaderMap::new(), b"{} x").is_err());
    }

    #[test]
    fn the_client_says_what_becomes_of_unknown_fields() {
        let kinds = crate::registry::Registry::default();
        let kind = kinds.resource("", "v1", "configmaps").unwrap();
        let body = br#"{"metadata": {"name": "a"}, "dat": {}, "data": {"a": "b"}, "data": {}}"#;
        let read = |query: &str| read(&Call::new(Method::POST, "", query), kind, body);
        let (object, warnings) = read("").unwrap();
        assert!(object.at("/dat").is_none());
        assert_eq!(warnings.0, ["unknown field \"dat\"", "duplicate field \"data\""]);
        assert_eq!(read("fieldValidation=Ignore").unwrap().1, Warnings::default());
        let status = read("fieldValidation=Strict").unwrap_err().status();
        assert_eq!(
            status["message"],
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dat\", duplicate field \"data\""
        );
        assert!(read("fieldValidation=Maybe").is_err());
    }
}
