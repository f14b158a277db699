//! Nobody grants more than they have: whether rules cover others, rule by rule.
//!
//! A rule of several verbs, groups, resources and names is the sum of rules of one each; it is
//! covered if each of these is covered by some rule of the other side.

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::User;
use super::rbac::{NoSuchRole, is_below};

/// Most parts that rules are taken apart into; what has more is not covered.
const PARTS_MAX: usize = 100_000;

fn items(list: Option<&Vec<String>>) -> &[String] {
    list.map_or(&[], Vec::as_slice)
}

fn one(text: &str) -> Vec<String> {
    vec![text.to_owned()]
}

/// The rule as rules of one verb on one resource (and name) or URL each.
fn parts(rule: &PolicyRule) -> Vec<PolicyRule> {
    let mut parts = Vec::new();
    for verb in &rule.verbs {
        for group in items(rule.api_groups.as_ref()) {
            for resource in items(rule.resources.as_ref()) {
                let part = |name: Option<&String>| PolicyRule {
                    verbs: one(verb),
                    api_groups: Some(one(group)),
                    resources: Some(one(resource)),
                    resource_names: name.map(|name| one(name)),
                    non_resource_urls: None,
                };
                match items(rule.resource_names.as_ref()) {
                    [] => parts.push(part(None)),
                    names => parts.extend(names.iter().map(|name| part(Some(name)))),
                }
            }
        }
        for url in items(rule.non_resource_urls.as_ref()) {
            let non_resource_urls = Some(one(url));
            parts.push(PolicyRule { verbs: one(verb), non_resource_urls, ..PolicyRule::default() });
        }
    }
    parts
}

fn has_all(owner: &[String], wanted: &[String]) -> bool {
    owner.iter().any(|one| one == "*") || wanted.iter().all(|one| owner.contains(one))
}

/// Whether one rule covers a part.
fn covers_part(owner: &PolicyRule, part: &PolicyRule) -> bool {
    let names = items(owner.resource_names.as_ref());
    let wanted_names = items(part.resource_names.as_ref());
    let named = names.is_empty()
        || (!wanted_names.is_empty() && wanted_names.iter().all(|name| names.contains(name)));
    let resource = |wanted: &String| {
        let owned = items(owner.resources.as_ref());
        let of_all_kinds =
            wanted.split_once('/').is_some_and(|(_, sub)| owned.contains(&format!("*/{sub}")));
        owned.iter().any(|one| one == "*" || one == wanted) || of_all_kinds
    };
    let url = |wanted: &String| {
        items(owner.non_resource_urls.as_ref()).iter().any(|one| is_below(one, wanted))
    };
    has_all(&owner.verbs, &part.verbs)
        && has_all(items(owner.api_groups.as_ref()), items(part.api_groups.as_ref()))
        && items(part.resources.as_ref()).iter().all(resource)
        && items(part.non_resource_urls.as_ref()).iter().all(url)
        && named
}

/// The parts of `wanted` that `owner` does not cover.
pub fn missing(owner: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let parts: Vec<PolicyRule> = wanted.iter().flat_map(parts).take(PARTS_MAX).collect();
    let covered = |part: &PolicyRule| owner.iter().any(|rule| covers_part(rule, part));
    if parts.len() == PARTS_MAX {
        return parts;
    }
    parts.into_iter().filter(|part| !covered(part)).collect()
}

/// Parts on the same resource and name as one rule with all their verbs.
fn compact(parts: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    for part in parts {
        let same = |rule: &&mut PolicyRule| {
            rule.resources.is_some()
                && rule.api_groups == part.api_groups
                && rule.resources == part.resources
                && rule.resource_names == part.resource_names
        };
        match rules.iter_mut().find(same) {
            Some(rule) => rule.verbs.extend(part.verbs),
            None => rules.push(part),
        }
    }
    rules
}

/// A list as Go's `%q` writes it: `["a" "b"]`.
fn quoted(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|one| format!("{one:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

/// A rule on one line.
fn line(rule: &PolicyRule) -> String {
    let fields = [
        ("APIGroups", items(rule.api_groups.as_ref())),
        ("Resources", items(rule.resources.as_ref())),
        ("ResourceNames", items(rule.resource_names.as_ref())),
        ("NonResourceURLs", items(rule.non_resource_urls.as_ref())),
        ("Verbs", &rule.verbs),
    ];
    let said = fields.iter().filter(|(_, list)| !list.is_empty());
    let said: Vec<String> = said.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
    format!("{{{}}}", said.join(", "))
}

/// Why a user with `own` rules may not grant `wanted`, if so.
pub fn forbids(
    user: &User,
    own: &(Vec<PolicyRule>, Vec<NoSuchRole>),
    wanted: &[PolicyRule],
) -> Option<String> {
    let missing = missing(&own.0, wanted);
    if missing.is_empty() {
        return None;
    }
    let mut lines: Vec<String> = compact(missing).iter().map(line).collect();
    lines.sort();
    lines.dedup();
    let mut text = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        lines.join("\n")
    );
    if !own.1.is_empty() {
        let unresolved: Vec<String> = own.1.iter().map(ToString::to_string).collect();
        text = format!("{text}; resolution errors: [{}]", unresolved.join(", "));
    }
    Some(text)
}

/// The rules of somebody who may do everything.
pub fn everything() -> Vec<PolicyRule> {
    let star = || Some(one("*"));
    vec![
        PolicyRule {
            verbs: one("*"),
            api_groups: star(),
            resources: star(),
            ..PolicyRule::default()
        },
        PolicyRule { verbs: one("*"), non_resource_urls: star(), ..PolicyRule::default() },
    ]
}
