//! ConfigMaps and Secrets: texts that become data, sizes, and what can't be changed any more.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::invalid::Errors;
use super::object::Object;
use super::strategy::Strategy;

/// [`Strategy`] of config maps.
pub(super) struct ConfigMaps;
/// [`Strategy`] of secrets.
pub(super) struct Secrets;

/// Bytes that a ConfigMap's or Secret's data may have.
const MOST: usize = 1 << 20;

impl Strategy for ConfigMaps {
    fn validate(&self, object: &Object, errors: &mut Errors) {
        let data = object.at("/data").and_then(Value::as_object);
        let binary = object.at("/binaryData").and_then(Value::as_object);
        for key in data.into_iter().flatten().map(|(key, _)| key) {
            if binary.is_some_and(|binary| binary.contains_key(key)) {
                let why = "duplicate of key present in binaryData";
                errors.invalid(format!("data[{key}]"), key.as_str(), why);
            }
        }
        let texts = data.into_iter().flatten().filter_map(|(_, value)| value.as_str());
        let bytes = binary.into_iter().flatten().filter_map(|(_, value)| value.as_str());
        let total: usize = texts.map(str::len).chain(bytes.map(decoded)).sum();
        if total > MOST {
            errors.too_long("[]", MOST);
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        frozen(object, old, &["data", "binaryData"], errors);
    }
}

impl Strategy for Secrets {
    fn default(&self, object: &mut Object) {
        object.default("/type", "Opaque");
        let Some(Value::Object(texts)) = object.remove("/stringData") else { return };
        for (key, text) in texts {
            let key = key.replace('~', "~0").replace('/', "~1");
            let text = text.as_str().unwrap_or_default();
            object.set(&format!("/data/{key}"), STANDARD.encode(text));
        }
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        let data = object.at("/data").and_then(Value::as_object);
        let values = data.into_iter().flatten().filter_map(|(_, value)| value.as_str());
        if values.map(decoded).sum::<usize>() > MOST {
            errors.too_long("data", MOST);
        }
        let needed: &[&str] = match object.text("/type") {
            "kubernetes.io/tls" => &["tls.crt", "tls.key"],
            "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
            "kubernetes.io/dockercfg" => &[".dockercfg"],
            "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
            _ => &[],
        };
        for key in needed {
            match data.and_then(|data| data.get(*key)).and_then(Value::as_str) {
                None => errors.required(format!("data[{key}]"), ""),
                Some(text) if key.starts_with(".docker") => check_json(key, text, errors),
                Some("") if *key == "ssh-privatekey" => {
                    errors.required(format!("data[{key}]"), "");
                }
                Some(_) => {}
            }
        }
        let login = ["username", "password"];
        let has = |key: &&str| data.is_some_and(|data| data.contains_key(*key));
        if object.text("/type") == "kubernetes.io/basic-auth" && !login.iter().any(has) {
            for key in login {
                errors.required(format!("data[{key}]"), "");
            }
        }
        let account = "/metadata/annotations/kubernetes.io~1service-account.name";
        if object.text("/type") == "kubernetes.io/service-account-token"
            && object.text(account).is_empty()
        {
            errors.required("metadata.annotations[kubernetes.io/service-account.name]", "");
        }
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        if object.at("/type") != old.at("/type") {
            let value = object.at("/type").cloned().unwrap_or_default();
            errors.invalid("type", value, "field is immutable");
        }
        frozen(object, old, &["data"], errors);
    }
}

/// Checks that what base64 stands for is a JSON object.
fn check_json(key: &str, text: &str, errors: &mut Errors) {
    let bytes = STANDARD.decode(text).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        let field = format!("data[{key}]");
        errors.invalid(field, "<secret contents redacted>", error.to_string());
    }
}

/// An immutable object stays as it is.
fn frozen(object: &Object, old: &Object, fields: &[&str], errors: &mut Errors) {
    if !old.flag("/immutable") {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if !object.flag("/immutable") {
        errors.forbidden("immutable", why);
    }
    for field in fields {
        let pointer = format!("/{field}");
        if object.at(&pointer) != old.at(&pointer) {
            errors.forbidden(*field, why);
        }
    }
}

/// Bytes that base64 stands for.
fn decoded(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}
