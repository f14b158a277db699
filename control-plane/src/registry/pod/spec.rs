//! What a pod spec may be, in a pod or in a template: a table of rules, and what they can't say.

use serde_json::Value;

use super::{container, scheduling, volume};
use crate::registry::NameRule;
use crate::registry::invalid::Errors;
use crate::registry::names;
use crate::registry::rules::{self, Rule, Test};

/// What a spec is part of: a few rules are for pods alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::registry) enum Within {
    /// A pod.
    Pod,
    /// The template of a controller.
    Template,
}

const INT32_MAX: i64 = 2_147_483_647;
/// Numbers of users and groups.
pub(super) const ID: Test = Test::Between(0, INT32_MAX);

const RULES: &[Rule] = &[
    Rule("restartPolicy", Test::OneOf(&["Always", "OnFailure", "Never"])),
    Rule("dnsPolicy", Test::OneOf(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"])),
    Rule("nodeSelector", Test::Labels),
    Rule("securityContext.fsGroup", ID),
    Rule("securityContext.runAsUser", ID),
    Rule("securityContext.runAsGroup", ID),
    Rule("securityContext.supplementalGroups[*]", ID),
    Rule("securityContext.fsGroupChangePolicy", Test::OneOf(&["Always", "OnRootMismatch"])),
    Rule("securityContext.seccompProfile.type", Test::OneOf(SECCOMP)),
    Rule("dnsConfig.nameservers[*]", Test::Address),
    Rule("dnsConfig.searches[*]", Test::Text(search_fault)),
    Rule("readinessGates[*].conditionType", Test::Text(names::key_fault)),
    Rule("serviceAccountName", Test::Name(NameRule::Subdomain)),
    Rule("nodeName", Test::Name(NameRule::Subdomain)),
    Rule("activeDeadlineSeconds", Test::Between(1, INT32_MAX)),
    Rule("hostname", Test::Name(NameRule::Label)),
    Rule("subdomain", Test::Name(NameRule::Label)),
    Rule("hostAliases[*].ip", Test::Address),
    Rule("hostAliases[*].hostnames[*]", Test::Name(NameRule::Subdomain)),
    Rule("priorityClassName", Test::Name(NameRule::Subdomain)),
    Rule("runtimeClassName", Test::Name(NameRule::Subdomain)),
    Rule("preemptionPolicy", Test::OneOf(&["PreemptLowerPriority", "Never"])),
    Rule("overhead{*}", Test::Quantity),
    Rule("os.name", Test::OneOf(&["linux", "windows"])),
];

/// Ways to confine a container.
pub(super) const SECCOMP: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
/// Limits of a resolver's configuration.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARACTERS_MAX: usize = 2048;

/// Checks a pod spec at `field`.
pub(in crate::registry) fn validate(spec: &Value, field: &str, of: Within, errors: &mut Errors) {
    let volumes = volume::validate(spec, field, errors);
    let context = container::Context { spec, volumes: &volumes, of };
    container::validate(&context, field, errors);
    rules::check_at(field, RULES, spec, errors);
    check_host_network(spec, field, of, errors);
    check_dns(spec, field, errors);
    scheduling::validate(spec, field, of, errors);
    let ephemeral = spec["ephemeralContainers"].as_array();
    if of == Within::Template && ephemeral.is_some_and(|containers| !containers.is_empty()) {
        let why = "ephemeral containers not allowed in pod template";
        errors.forbidden(format!("{field}.ephemeralContainers"), why);
    }
}

/// On the node's network a port of a container is one of the node, under the same number.
fn check_host_network(spec: &Value, field: &str, of: Within, errors: &mut Errors) {
    if spec["hostNetwork"] != true {
        return;
    }
    for (index, container) in items(&spec["containers"]) {
        for (number, port) in items(&container["ports"]) {
            let host = port["hostPort"].as_i64().unwrap_or(0);
            if (of == Within::Pod || host != 0) && port["containerPort"].as_i64() != Some(host) {
                let at = format!("{field}.containers[{index}].ports[{number}].hostPort");
                errors.invalid(at, host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

fn check_dns(spec: &Value, field: &str, errors: &mut Errors) {
    let config = &spec["dnsConfig"];
    let at = format!("{field}.dnsConfig");
    let nameservers = config["nameservers"].as_array().map_or(0, Vec::len);
    if spec["dnsPolicy"] == "None" {
        if config.is_null() {
            errors.required(at, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if nameservers == 0 {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.required(format!("{at}.nameservers"), why);
            return;
        }
    }
    let mut limit = |name: &str, found: usize, most: usize, what: &str| {
        if found > most {
            let why = format!("must not have more than {most} {what}");
            errors.invalid(format!("{at}.{name}"), config[name].clone(), why);
        }
    };
    let searches = items(&config["searches"]).filter_map(|(_, search)| search.as_str());
    let searches: Vec<&str> = searches.collect();
    limit("nameservers", nameservers, NAMESERVERS_MAX, "nameservers");
    limit("searches", searches.len(), SEARCHES_MAX, "search paths");
    let what = "characters (including spaces) in the search list";
    limit("searches", searches.join(" ").len(), SEARCH_CHARACTERS_MAX, what);
    for (index, option) in items(&config["options"]) {
        if option["name"].as_str().unwrap_or_default().is_empty() {
            errors.required(format!("{at}.options[{index}]"), "must not be empty");
        }
    }
}

/// What is wrong with a domain that names are searched in; labels may have underscores.
fn search_fault(search: &str) -> Option<String> {
    let bare = search.strip_suffix('.').unwrap_or(search).replace('_', "x");
    if bare.is_empty() {
        return None;
    }
    names::fault(&bare, NameRule::Subdomain)
}

/// The items of a list, with their numbers.
pub(super) fn items(list: &Value) -> impl Iterator<Item = (usize, &Value)> {
    list.as_array().into_iter().flatten().enumerate()
}
