//! What probes and hooks of a container may be.

use serde_json::Value;

use crate::registry::invalid::Errors;
use crate::registry::rules::{self, Rule, Test};

/// Ways to ask or tell a container something, with what each has to say.
const HANDLERS: &[(&str, &[Rule])] = &[
    ("exec", &[Rule("command", Test::Required(""))]),
    (
        "httpGet",
        &[
            Rule("path", Test::Required("")),
            Rule("port", Test::PortOrName),
            Rule("scheme", Test::OneOf(&["HTTP", "HTTPS"])),
            Rule("httpHeaders[*].name", Test::Check(header_fault)),
        ],
    ),
    ("tcpSocket", &[Rule("port", Test::PortOrName)]),
    ("grpc", &[Rule("port", Test::Port)]),
    ("sleep", &[]),
];

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

const PROBE_RULES: &[Rule] = &[
    Rule("initialDelaySeconds", Test::NotNegative),
    Rule("timeoutSeconds", Test::NotNegative),
    Rule("periodSeconds", Test::NotNegative),
    Rule("successThreshold", Test::NotNegative),
    Rule("failureThreshold", Test::NotNegative),
    Rule("terminationGracePeriodSeconds", Test::Positive),
];

/// Checks probes and hooks of the container at `at`.
pub(super) fn validate(spec: &Value, container: &Value, at: &str, errors: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = container["lifecycle"].get(hook) {
            check_handler(spec, handler, &format!("{at}.lifecycle.{hook}"), errors);
        }
    }
    for name in PROBES {
        let Some(probe) = container.get(name) else { continue };
        let at = format!("{at}.{name}");
        check_handler(spec, probe, &at, errors);
        rules::check_at(&at, PROBE_RULES, probe, errors);
        if name == "readinessProbe" {
            if let Some(grace) = probe.get("terminationGracePeriodSeconds") {
                let why = "must not be set for readinessProbes";
                errors.invalid(format!("{at}.terminationGracePeriodSeconds"), grace.clone(), why);
            }
        } else if probe["successThreshold"].as_i64().unwrap_or(0) != 1 {
            let value = probe["successThreshold"].as_i64().unwrap_or(0);
            errors.invalid(format!("{at}.successThreshold"), value, "must be 1");
        }
    }
}

/// Refuses them to a container that ends before the pod begins.
pub(super) fn forbid(container: &Value, at: &str, errors: &mut Errors) {
    for name in ["lifecycle"].into_iter().chain(PROBES) {
        if container.get(name).is_some() {
            let why = "may not be set for init containers without restartPolicy=Always";
            errors.forbidden(format!("{at}.{name}"), why);
        }
    }
}

/// A handler does one thing.
fn check_handler(spec: &Value, handler: &Value, at: &str, errors: &mut Errors) {
    let mut found = false;
    for (name, rules) in HANDLERS {
        let Some(inner) = handler.get(*name) else { continue };
        let at = format!("{at}.{name}");
        if found {
            errors.forbidden(at, "may not specify more than 1 handler type");
            continue;
        }
        found = true;
        if matches!(*name, "httpGet" | "tcpSocket" | "grpc") && inner.get("port").is_none() {
            errors.invalid(format!("{at}.port"), 0, "must be between 1 and 65535, inclusive");
        }
        rules::check_at(&at, rules, inner, errors);
        if *name == "sleep" {
            check_sleep(spec, inner, at, errors);
        }
    }
    if !found {
        errors.required(at, "must specify a handler type");
    }
}

fn check_sleep(spec: &Value, sleep: &Value, at: String, errors: &mut Errors) {
    let seconds = sleep["seconds"].as_i64().unwrap_or(0);
    let Some(grace) = spec["terminationGracePeriodSeconds"].as_i64() else { return };
    if seconds < 0 || seconds > grace {
        let why =
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.invalid(at, seconds, why);
    }
}

fn header_fault(name: &Value) -> Option<&'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let name = name.as_str().unwrap_or_default();
    (!name.bytes().all(allowed)).then_some(
        "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
    )
}
