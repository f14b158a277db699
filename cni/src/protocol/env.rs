//! What the runtime says by environment variables.

use std::path::PathBuf;

use super::error::{CniError, INVALID_ENVIRONMENT};
use crate::wire::{Attachment, Pod, Trace};

/// What is asked of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Connect a container.
    Add,
    /// Disconnect it.
    Del,
    /// Verify that it is connected.
    Check,
    /// Disconnect all that the runtime no longer knows.
    Gc,
    /// Say whether an ADD could succeed.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Verb {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// The variables without which the call means nothing.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc | Self::Status => &["CNI_PATH"],
            Self::Version => &[],
        }
    }
}

/// One call, as far as the environment tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// What is asked.
    pub verb: Verb,
    /// About which interface; empty names where the verb is about none.
    pub attachment: Attachment,
    /// The container's network namespace; DEL may come without.
    pub netns: Option<PathBuf>,
    /// The runtime allows the plugin's own namespace (`CNI_NETNS_OVERRIDE`).
    pub netns_override: bool,
    /// Who the container is to Kubernetes.
    pub pod: Pod,
    /// W3C trace context.
    pub trace: Trace,
    /// `IP` in `CNI_ARGS`: addresses that are asked for, separated by commas.
    pub ip: Option<String>,
    /// `MAC` in `CNI_ARGS`: the link-layer address that is asked for.
    pub mac: Option<String>,
}

/// Reads the environment through `lookup`. `Ok(None)`: `CNI_COMMAND` is absent, so it is a person
/// who called.
pub fn parse(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Invocation>, CniError> {
    let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
    let Some(command) = get("CNI_COMMAND") else { return Ok(None) };
    let verb = Verb::parse(&command)
        .ok_or_else(|| invalid(format!("unknown CNI_COMMAND: {command}"), String::new()))?;
    let missing: Vec<_> =
        verb.required().iter().copied().filter(|name| get(name).is_none()).collect();
    if !missing.is_empty() {
        let text = format!("required env variables [{}] missing", missing.join(","));
        return Err(invalid(text, String::new()));
    }
    let attachment = Attachment {
        container_id: get("CNI_CONTAINERID").unwrap_or_default(),
        ifname: get("CNI_IFNAME").unwrap_or_default(),
    };
    if verb.required().contains(&"CNI_CONTAINERID") {
        validate(&attachment)?;
    }
    let flag = get("CNI_NETNS_OVERRIDE").unwrap_or_default();
    let args = get("CNI_ARGS").unwrap_or_default();
    let argument = |key| Some(value(&args, key)).filter(|value| !value.is_empty());
    Ok(Some(Invocation {
        verb,
        attachment,
        netns: get("CNI_NETNS").map(PathBuf::from),
        netns_override: flag == "1" || flag.eq_ignore_ascii_case("true"),
        pod: pod(&args),
        trace: Trace {
            // No longer than W3C has them; what is longer is nobody's.
            trace_parent: get("TRACEPARENT").filter(|text| text.len() <= 64),
            trace_state: get("TRACESTATE").filter(|text| text.len() <= 512),
            baggage: get("BAGGAGE").filter(|text| text.len() <= 8192),
        },
        ip: argument("IP"),
        mac: argument("MAC"),
    }))
}

fn validate(attachment: &Attachment) -> Result<(), CniError> {
    if !valid_identifier(&attachment.container_id) {
        return Err(invalid(
            "invalid characters in CNI_CONTAINERID",
            format!("{:?}: must match [a-zA-Z0-9][a-zA-Z0-9_.-]*", attachment.container_id),
        ));
    }
    let reason = match attachment.ifname.as_str() {
        name if name.len() > 15 => "is longer than 15 bytes",
        "." | ".." => "means a folder",
        name if name.contains(['/', ':']) || name.contains(char::is_whitespace) => {
            "has a slash, a colon or white space in it"
        }
        _ => return Ok(()),
    };
    Err(invalid("invalid CNI_IFNAME", format!("{:?} {reason}", attachment.ifname)))
}

/// Whether `text` may name a container or a network.
pub fn valid_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The pod in `CNI_ARGS`.
fn pod(args: &str) -> Pod {
    Pod {
        namespace: value(args, "K8S_POD_NAMESPACE"),
        name: value(args, "K8S_POD_NAME"),
        uid: value(args, "K8S_POD_UID"),
    }
}

/// The value of a key in `CNI_ARGS` (`KEY=value;KEY=value`), empty where it has none. Other keys are
/// other plugins'.
fn value(args: &str, key: &str) -> String {
    let pair = args.split(';').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key);
    pair.map(|(_, value)| value.to_owned()).unwrap_or_default()
}

fn invalid(msg: impl Into<String>, details: impl Into<String>) -> CniError {
    CniError::new(INVALID_ENVIRONMENT, msg, details)
}
