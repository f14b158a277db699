//! Rules for names, labels and annotations (RFC 1035, RFC 1123, Kubernetes' label syntax).

use serde_json::Value;

use super::NameRule;
use super::invalid::Errors;

/// Longest label of a DNS name and longest label value, in bytes.
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain, in bytes.
pub const SUBDOMAIN_MAX: usize = 253;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// Total size of an object's annotations, in bytes.
const ANNOTATIONS_MAX: usize = 256 << 10;

/// What is wrong with a name under a rule.
pub fn fault(name: &str, rule: NameRule) -> Option<String> {
    let (most, fits, text) = match rule {
        NameRule::Any => (SUBDOMAIN_MAX, true, ""),
        NameRule::Subdomain => (SUBDOMAIN_MAX, name.split('.').all(is_label), SUBDOMAIN),
        NameRule::Label => (LABEL_MAX, is_label(name), LABEL),
        NameRule::Label1035 => (LABEL_MAX, is_label_1035(name), LABEL_1035),
        NameRule::PathSegment => return path_segment_fault(name).map(str::to_owned),
    };
    if name.len() > most {
        return Some(format!("must be no more than {most} bytes"));
    }
    (!fits).then(|| text.to_owned())
}

/// What keeps a name from being a segment of a path.
fn path_segment_fault(name: &str) -> Option<&'static str> {
    match name {
        "." => Some("may not be '.'"),
        ".." => Some("may not be '..'"),
        name if name.contains('/') => Some("may not contain '/'"),
        name if name.contains('%') => Some("may not contain '%'"),
        _ => None,
    }
}

/// RFC 1123 label without the bound on its length.
fn is_label(name: &str) -> bool {
    bounded_by(name, u8::is_ascii_alphanumeric, |byte| byte == b'-')
        && !name.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_label_1035(name: &str) -> bool {
    is_label(name) && name.as_bytes()[0].is_ascii_alphabetic()
}

/// Whether `text` is not empty, consists of `edge` and `inner` bytes and begins and ends with an
/// `edge` byte.
fn bounded_by(text: &str, edge: fn(&u8) -> bool, inner: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|byte| edge(byte) || inner(*byte))
}

fn is_name_part(text: &str) -> bool {
    bounded_by(text, u8::is_ascii_alphanumeric, |byte| matches!(byte, b'-' | b'_' | b'.'))
}

/// What is wrong with the key of a label or annotation.
pub fn key_fault(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            return Some("prefix part must be non-empty".to_owned());
        }
        if let Some(fault) = fault(prefix, NameRule::Subdomain) {
            return Some(format!("prefix part {fault}"));
        }
    }
    if name.is_empty() {
        return Some("name part must be non-empty".to_owned());
    }
    if name.len() > LABEL_MAX {
        return Some(format!("name part must be no more than {LABEL_MAX} bytes"));
    }
    (!is_name_part(name)).then(|| QUALIFIED.to_owned())
}

/// What is wrong with the value of a label.
pub fn label_value_fault(value: &str) -> Option<String> {
    if value.len() > LABEL_MAX {
        return Some(format!("must be no more than {LABEL_MAX} bytes"));
    }
    (!value.is_empty() && !is_name_part(value)).then(|| LABEL_VALUE.to_owned())
}

/// What is wrong with the name of a container's port.
pub fn port_fault(name: &str) -> Option<&'static str> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let faults = [
        (name.len() > 15, "must be no more than 15 characters"),
        (
            !name.bytes().all(allowed),
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (
            !name.bytes().any(|byte| byte.is_ascii_lowercase()),
            "must contain at least one letter (a-z)",
        ),
        (name.contains("--"), "must not contain consecutive hyphens"),
        (name.starts_with('-') || name.ends_with('-'), "must not begin or end with a hyphen"),
    ];
    faults.into_iter().find(|(found, _)| *found).map(|(_, fault)| fault)
}

/// Checks a map of labels at `field`.
pub fn check_labels(labels: Option<&Value>, field: &str, errors: &mut Errors) {
    let Some(labels) = labels else { return };
    let Some(labels) = labels.as_object() else {
        errors.invalid(field, labels.clone(), "must be a map of strings");
        return;
    };
    for (key, value) in labels {
        if let Some(fault) = key_fault(key) {
            errors.invalid(field, key.clone(), fault);
        }
        match value.as_str() {
            None => errors.invalid(format!("{field}.{key}"), value.clone(), "must be a string"),
            Some(text) => {
                if let Some(fault) = label_value_fault(text) {
                    errors.invalid(field, text, fault);
                }
            }
        }
    }
}

/// Checks a map of annotations at `field`.
pub fn check_annotations(annotations: Option<&Value>, field: &str, errors: &mut Errors) {
    let Some(annotations) = annotations else { return };
    let Some(annotations) = annotations.as_object() else {
        errors.invalid(field, annotations.clone(), "must be a map of strings");
        return;
    };
    let mut total = 0;
    for (key, value) in annotations {
        if let Some(fault) = key_fault(&key.to_lowercase()) {
            errors.invalid(field, key.clone(), fault);
        }
        let Some(text) = value.as_str() else {
            errors.invalid(format!("{field}.{key}"), value.clone(), "must be a string");
            continue;
        };
        total += key.len() + text.len();
    }
    if total > ANNOTATIONS_MAX {
        errors.too_long(field, ANNOTATIONS_MAX);
    }
}
