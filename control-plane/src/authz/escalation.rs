//! Nobody grants more than they have: whether rules cover others, rule by rule.
//!
//! A rule of several verbs, groups, resources and names is the sum of rules of one each; it is
//! covered if each of these is covered by some rule of the other side.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::User;
use super::rbac::{NoSuchRole, is_below};

/// Most parts that rules are taken apart into; what has more is not covered.
const PARTS_MAX: usize = 10_000;
/// Most bytes of what is said about rules that are not covered.
const MESSAGE_MAX: usize = 16 * 1024;

fn items(list: Option<&Vec<String>>) -> &[String] {
    list.map_or(&[], Vec::as_slice)
}

fn one(text: &str) -> Vec<String> {
    vec![text.to_owned()]
}

/// How many parts rules have. A rule of a few kilobytes can have billions.
fn count(rules: &[PolicyRule]) -> usize {
    let of = |list: Option<&Vec<String>>| items(list).len();
    let count = |rule: &PolicyRule| {
        let on_resources = of(rule.api_groups.as_ref())
            .saturating_mul(of(rule.resources.as_ref()))
            .saturating_mul(of(rule.resource_names.as_ref()).max(1));
        let on_urls = of(rule.non_resource_urls.as_ref());
        rule.verbs.len().saturating_mul(on_resources.saturating_add(on_urls))
    };
    rules.iter().map(count).fold(0, usize::saturating_add)
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

/// Whether one rule covers a part, or a whole rule.
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

/// The parts of `wanted` that `owner` does not cover; whole rules where those are too many.
pub fn missing(owner: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let covered = |part: &PolicyRule| owner.iter().any(|rule| covers_part(rule, part));
    let rules: Vec<PolicyRule> = wanted.iter().filter(|rule| !covered(rule)).cloned().collect();
    if count(&rules) > PARTS_MAX {
        return rules;
    }
    rules.iter().flat_map(parts).filter(|part| !covered(part)).collect()
}

/// Parts on the same resource and name as one rule with all their verbs.
fn compact(parts: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    let mut on_resources: BTreeMap<[Option<Vec<String>>; 3], PolicyRule> = BTreeMap::new();
    for part in parts {
        if part.resources.is_none() {
            rules.push(part);
            continue;
        }
        let on = [part.api_groups.clone(), part.resources.clone(), part.resource_names.clone()];
        match on_resources.entry(on) {
            Entry::Occupied(mut rule) => rule.get_mut().verbs.extend(part.verbs),
            Entry::Vacant(place) => {
                place.insert(part);
            }
        }
    }
    rules.extend(on_resources.into_values());
    rules
}

/// A text without what goes beyond the longest message.
fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" (and more)");
    }
    text
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
    let who = format!("user {:?} (groups={})", user.name, quoted(&user.groups));
    let attempt = format!("{who} is attempting to grant RBAC permissions not currently held");
    if count(&missing) > PARTS_MAX {
        let why = format!("the rules stand for more than {PARTS_MAX} permissions");
        return Some(cut(format!("{attempt}: {why} of one verb on one resource or name")));
    }
    let mut lines: Vec<String> = compact(missing).iter().map(line).collect();
    lines.sort();
    lines.dedup();
    let mut text = format!("{attempt}:\n{}", lines.join("\n"));
    if !own.1.is_empty() {
        let unresolved: Vec<String> = own.1.iter().map(ToString::to_string).collect();
        text = format!("{text}; resolution errors: [{}]", unresolved.join(", "));
    }
    Some(cut(text))
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
