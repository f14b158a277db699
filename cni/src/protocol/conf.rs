//! The network configuration that the runtime writes to standard input.

use std::{net::IpAddr, path::PathBuf};

use serde_json::{Map, Value};

use super::{
    Version,
    env::{Verb, valid_identifier},
    error::{CniError, DECODING_FAILURE, INCOMPATIBLE_VERSION, INVALID_CONFIG},
    supported_list,
};
use crate::wire::{Attachment, DEFAULT_STATE_DIR};

/// One plugin's configuration, made from the list by the runtime.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// The version that the result must have.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// Where the agent's socket is.
    pub state_dir: PathBuf,
    /// What the plugins before us made; only ADD and CHECK look at it.
    pub prev_result: Option<Value>,
    /// What the runtime says of this container (`runtimeConfig`); only ADD looks at it.
    pub runtime_config: Map<String, Value>,
    /// What the list or a user of the runtime says (`args.cni`); only ADD looks at it.
    pub args: Map<String, Value>,
    /// GC: all that the runtime knows; `None`: it did not say, so nothing may be removed.
    pub valid_attachments: Option<Vec<Attachment>>,
}

impl NetConf {
    /// The addresses in the previous result, without their prefix lengths.
    pub fn prev_addresses(&self) -> Vec<IpAddr> {
        let ips = self.prev_result.as_ref().and_then(|result| result["ips"].as_array());
        ips.into_iter()
            .flatten()
            .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
            .collect()
    }
}

/// Reads the configuration for `verb`. VERSION doesn't need one: see [`version_of`].
pub fn parse(verb: Verb, stdin: &[u8]) -> Result<NetConf, CniError> {
    let object = object(stdin)?;
    let version = version(verb, &object)?;
    let name = string(&object, "name")?.unwrap_or_default();
    if name.is_empty() {
        return Err(invalid("missing network name", "\"name\" is absent or empty"));
    }
    if !valid_identifier(name) {
        let details = format!("{name:?}: must match [a-zA-Z0-9][a-zA-Z0-9_.-]*");
        return Err(invalid("invalid characters in network name", details));
    }
    // A DEL goes by the attachment alone: whatever an older plugin left there must not stop it.
    let prev_result = match (verb, object.get("prevResult")) {
        (Verb::Add | Verb::Check, Some(value)) if !value.is_null() => Some(prev_result(value)?),
        _ => None,
    };
    Ok(NetConf {
        version,
        name: name.to_owned(),
        state_dir: state_dir(&object)?,
        prev_result,
        runtime_config: section(verb, &object, "runtimeConfig")?,
        args: match section(verb, &object, "args")?.remove("cni") {
            Some(Value::Object(args)) => args,
            _ => Map::new(), // other keys are other plugins'
        },
        valid_attachments: match verb {
            Verb::Gc => valid_attachments(&object)?,
            _ => None,
        },
    })
}

/// The `cniVersion` in `stdin`, for the answer to VERSION, which may come without a configuration
/// and with versions that we don't speak.
pub fn version_of(stdin: &[u8]) -> Option<String> {
    Some(object(stdin).ok()?.get("cniVersion")?.as_str()?.to_owned())
}

fn object(stdin: &[u8]) -> Result<Map<String, Value>, CniError> {
    serde_json::from_slice(stdin).map_err(|error| {
        let msg = "the network configuration on standard input is not a JSON object";
        CniError::new(DECODING_FAILURE, msg, error.to_string())
    })
}

fn version(verb: Verb, object: &Map<String, Value>) -> Result<Version, CniError> {
    // Absent means 0.1.0, says the specification.
    let text = string(object, "cniVersion")?.filter(|text| !text.is_empty()).unwrap_or("0.1.0");
    let incompatible = |details| {
        CniError::new(INCOMPATIBLE_VERSION, format!("incompatible CNI version {text}"), details)
    };
    let version = Version::parse(text)
        .ok_or_else(|| incompatible(format!("supported: {}", supported_list())))?;
    let first = match verb {
        Verb::Check => Version::V0_4_0,
        Verb::Gc | Verb::Status => Version::V1_1_0,
        Verb::Add | Verb::Del | Verb::Version => Version::V0_3_1,
    };
    if version < first {
        return Err(incompatible(format!("{verb:?} exists since {first}")));
    }
    Ok(version)
}

fn state_dir(object: &Map<String, Value>) -> Result<PathBuf, CniError> {
    let path = PathBuf::from(string(object, "stateDir")?.unwrap_or(DEFAULT_STATE_DIR));
    if path.is_absolute() {
        return Ok(path);
    }
    Err(invalid("invalid stateDir", format!("{} is not an absolute path", path.display())))
}

/// The specification's key, and the one that older libraries send beside it. Null is what a library
/// in Go makes of a list that was never set: it says nothing.
fn valid_attachments(object: &Map<String, Value>) -> Result<Option<Vec<Attachment>>, CniError> {
    let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    let said = |key: &'static str| object.get(key).filter(|value| !value.is_null());
    let Some((key, value)) = keys.iter().find_map(|key| Some((key, said(key)?))) else {
        return Ok(None);
    };
    let list = serde_json::from_value(value.clone());
    list.map(Some).map_err(|error| invalid(format!("invalid {key}"), error.to_string()))
}

fn prev_result(value: &Value) -> Result<Value, CniError> {
    let lists_are_lists = ["interfaces", "ips", "routes"]
        .iter()
        .all(|key| matches!(&value[key], Value::Null | Value::Array(_)));
    if value.is_object() && lists_are_lists {
        return Ok(value.clone());
    }
    Err(invalid("invalid prevResult", "must be a result with lists interfaces, ips and routes"))
}

/// An object that may be absent. Nothing in it may stop any verb but ADD.
fn section(
    verb: Verb,
    object: &Map<String, Value>,
    key: &str,
) -> Result<Map<String, Value>, CniError> {
    match object.get(key) {
        Some(Value::Object(section)) => Ok(section.clone()),
        None | Some(Value::Null) => Ok(Map::new()),
        Some(_) if verb != Verb::Add => Ok(Map::new()),
        Some(_) => Err(invalid(format!("invalid {key}"), "must be an object")),
    }
}

fn string<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, CniError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(invalid(format!("invalid {key}"), format!("{other} is not a string"))),
    }
}

/// The configuration's content is wrong.
pub(super) fn invalid(msg: impl Into<String>, details: impl Into<String>) -> CniError {
    CniError::new(INVALID_CONFIG, msg, details)
}
