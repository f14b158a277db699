//! The directives that do something beside looking names up: `acl`, `autopath`, `bind`, `bufsize`,
//! `dns64`, `errors`, `loadbalance` and `log`.

use std::{path::Path, sync::Arc};

use hickory_proto::rr::Name;

use super::{
    CorefileError, Directive, Served, Surroundings, Warning, Word, cache, number, record_type,
    unknown, zone,
};
use crate::{
    dns::{
        chain::{
            acl::{Access, Action, Policy},
            autopath::{Autopath, Search},
            dns64::Dns64,
            query_log::{Class, Format, LogRule},
            text::Pattern,
        },
        forward::error_log::{Consolidated, Errors, Level},
        notation, resolv_conf,
    },
    model::node::Cidr,
};

/// Where the node's own search list is.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What `bufsize` without a number means, in octets.
const PAYLOAD: u64 = 1232;

/// `acl [ZONE...] { ACTION [type TYPE...] [net RANGE...] }`.
pub(super) fn access(directive: &Directive, block: &[Name]) -> Result<Access, CorefileError> {
    let zones = match &directive.arguments[..] {
        [] => block.to_vec(),
        words => zone::list(words)?,
    };
    let policies = directive.body.iter().map(policy).collect::<Result<_, _>>()?;
    Ok(Access { zones, policies })
}

fn policy(line: &Directive) -> Result<Policy, CorefileError> {
    let action = Action::named(&line.name.text).map_err(|why| line.name.error(why))?;
    let (mut kinds, mut sources) = (None, None);
    let mut rest = &line.arguments[..];
    while let [section, behind @ ..] = rest {
        let is_section = |word: &Word| ["type", "net"].contains(&&*word.text.to_ascii_lowercase());
        let end = behind.iter().position(is_section).unwrap_or(behind.len());
        let (words, behind) = behind.split_at(end);
        if !is_section(section) || words.is_empty() {
            return Err(section.error("an action is followed by type TYPES and net RANGES"));
        }
        let all = words.iter().any(|word| word.text == "*");
        let is_net = section.text.eq_ignore_ascii_case("net");
        if is_net && !all {
            let ranges = words.iter().map(range).collect::<Result<Vec<_>, _>>()?;
            sources.get_or_insert_with(Vec::new).extend(ranges);
        } else if !is_net && !all {
            let types = words.iter().map(record_type).collect::<Result<Vec<_>, _>>()?;
            kinds.get_or_insert_with(Vec::new).extend(types);
        }
        rest = behind;
    }
    Ok(Policy { action, kinds, sources })
}

fn range(word: &Word) -> Result<Cidr, CorefileError> {
    notation::range(&word.text).map_err(|why| word.error(why))
}

/// `autopath [ZONE...] @kubernetes|FILE`.
pub(super) fn autopath(
    directive: &Directive,
    block: &[Name],
    served: &Served,
    surroundings: &dyn Surroundings,
) -> Result<(Autopath, Option<Warning>), CorefileError> {
    let [zones @ .., source] = &directive.arguments[..] else {
        return Err(directive.name.error("autopath names @kubernetes or a file"));
    };
    let zones = if zones.is_empty() { block.to_vec() } else { zone::list(zones)? };
    let listed = |path: &str| {
        surroundings.read(Path::new(path)).ok().map(|text| resolv_conf::search_list(&text))
    };
    let mut warning = None;
    let search = match source.text.strip_prefix('@') {
        Some("kubernetes") => {
            if !served.connects_pods {
                let what = "autopath: not done, since pods are not connected by this agent \
                            (--cni=false), which therefore can't tell whose questions they are";
                warning = Some(Warning { at: source.at.clone(), what: what.to_owned() });
            }
            Search::Pods(listed(RESOLV_CONF).unwrap_or_default())
        }
        Some(other) => {
            let why = format!("@{other} has no search list; @kubernetes has, and so have files");
            return Err(source.error(why));
        }
        None => Search::List(listed(&source.text).ok_or_else(|| {
            source.error(format!("{:?} is neither @kubernetes nor a file", source.text))
        })?),
    };
    Ok((Autopath { zones, search }, warning))
}

/// `bind ADDRESS... { except ADDRESS... }`: what is not ours is not answered at, and what is can't be
/// taken out.
pub(super) fn bind(directive: &Directive, served: &Served) -> Result<Vec<Warning>, CorefileError> {
    let ours =
        |word: &Word| word.text.parse().is_ok_and(|address| served.addresses.contains(&address));
    for line in &directive.body {
        if line.name.text != "except" {
            return Err(unknown(line, directive));
        }
        if let Some(word) = line.arguments.iter().find(|word| ours(word)) {
            return Err(word.error(format!(
                "bind: {} is answered at, for all blocks; take it out of clusterDns or nodeLocalDns \
                 of the agent's configuration",
                word.text
            )));
        }
    }
    let others = directive.arguments.iter().filter(|word| !ours(word));
    let warning = |word: &Word| {
        let what = format!(
            "bind: {} is not answered at, only clusterDns and nodeLocalDns of the agent's \
             configuration",
            word.text
        );
        Warning { at: word.at.clone(), what }
    };
    Ok(others.map(warning).collect())
}

/// `bufsize [OCTETS]`.
pub(super) fn payload(directive: &Directive) -> Result<u16, CorefileError> {
    let octets = match &directive.arguments[..] {
        [] => PAYLOAD,
        [word] => number(word, 512, 4096)?,
        [_, word, ..] => return Err(word.error("bufsize has one number of octets")),
    };
    Ok(u16::try_from(octets).unwrap_or(u16::MAX))
}

/// `dns64 [PREFIX] { prefix PREFIX; translate_all; allow_ipv4 }`, beside what another one said.
pub(super) fn dns64(directive: &Directive, dns64: &mut Dns64) -> Result<(), CorefileError> {
    match &directive.arguments[..] {
        [] => {}
        [prefix] => dns64.set_prefix(&prefix.text).map_err(|why| prefix.error(why))?,
        [_, word, ..] => return Err(word.error("dns64 has one prefix")),
    }
    for line in &directive.body {
        match (&*line.name.text, &line.arguments[..]) {
            ("prefix", [prefix]) => {
                dns64.set_prefix(&prefix.text).map_err(|why| prefix.error(why))?;
            }
            ("translate_all", []) => dns64.translate_all = true,
            ("allow_ipv4", []) => dns64.allow_ipv4 = true,
            _ => return Err(unknown(line, directive)),
        }
    }
    Ok(())
}

/// `errors { consolidate DURATION PATTERN [LEVEL] }`.
pub(super) fn errors(directive: &Directive) -> Result<Errors, CorefileError> {
    let mut errors = Errors::default();
    for line in &directive.body {
        match (&*line.name.text, &line.arguments[..]) {
            ("consolidate", [period, pattern, level @ ..]) if level.len() < 2 => {
                let level = level
                    .first()
                    .map(|word| Level::named(&word.text).map_err(|why| word.error(why)));
                errors.consolidated.push(Consolidated {
                    period: cache::duration(period)?,
                    pattern: Pattern::new(&pattern.text).map_err(|why| pattern.error(why))?,
                    level: level.transpose()?.unwrap_or_default(),
                });
            }
            ("consolidate", _) => {
                let why = "consolidate has a duration, a pattern and perhaps a level";
                return Err(line.name.error(why));
            }
            // What panics here is said with its stack in any case.
            ("stacktrace" | "panicRecoveryStacktrace", []) => {}
            _ => return Err(unknown(line, directive)),
        }
    }
    Ok(errors)
}

/// `loadbalance [round_robin]`: that it is done.
pub(super) fn loadbalance(directive: &Directive) -> Result<bool, CorefileError> {
    let mut words = directive.arguments.iter();
    let policy = words.next().filter(|word| word.text != "round_robin");
    let option = || directive.body.first().map(|line| &line.name);
    match policy.or_else(|| words.next()).or_else(option) {
        None => Ok(true),
        Some(word) => Err(word.error(format!(
            "loadbalance: {:?} is not supported; addresses are said in turns, as round_robin does",
            word.text
        ))),
    }
}

/// `log [NAME...] [FORMAT] { class CLASS...; minDuration DURATION }`.
pub(super) fn log(directive: &Directive) -> Result<LogRule, CorefileError> {
    let (zones, format) = match &directive.arguments[..] {
        [zones @ .., format] if format.text.contains('{') => {
            (zones, Format::new(&format.text).map_err(|why| format.error(why))?)
        }
        zones => (zones, Format::default()),
    };
    let zones = if zones.is_empty() { vec![Name::root()] } else { zone::list(zones)? };
    let mut rule = LogRule { zones, format: Arc::new(format), classes: Vec::new(), slow: None };
    for line in &directive.body {
        match (&*line.name.text, &line.arguments[..]) {
            ("class", words) if !words.is_empty() => {
                for word in words {
                    let class = Class::named(&word.text).ok_or_else(|| {
                        let why = format!("{:?} must be success, denial, error or all", word.text);
                        word.error(why)
                    })?;
                    rule.classes.push(class);
                }
            }
            ("minDuration", [word]) => rule.slow = Some(cache::duration(word)?),
            _ => return Err(unknown(line, directive)),
        }
    }
    if rule.classes.is_empty() {
        rule.classes.push(Class::All);
    }
    Ok(rule)
}
