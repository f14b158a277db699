//! What is written of the steps of a block, as what these are.

use std::sync::Arc;

use hickory_proto::rr::Name;

use super::{
    Acl, Bufsize, Consolidate, Dns64, Errors, Log, Meant, Policies, Rewrite, RewriteName,
    RewriteTtl, Template, zones,
};
use crate::dns::{
    chain::{
        acl::{Access, Action, Policy},
        dns64,
        query_log::{Class, Format, LogRule},
        rewrite::{Change, NameChange, Rule},
        template::{self, Text},
        text::{Pattern, Test},
    },
    forward::error_log,
    notation,
};

impl Meant for Rewrite {
    type Meaning = Rule;
    const FIELD: &'static str = "rewrite";

    fn meant(&self) -> Result<Rule, String> {
        let change = match (&self.name, &self.kind, &self.ttl) {
            (Some(name), None, None) => Change::Name(name.meant()?),
            (None, Some(kind), None) => Change::Type {
                from: notation::record_type(&kind.from)?,
                to: notation::record_type(&kind.to)?,
            },
            (None, None, Some(ttl)) => ttl.meant()?,
            _ => return Err("rewrite has one of name, type and ttl".to_owned()),
        };
        Ok(Rule { change, goes_on: self.goes_on })
    }
}

/// What kind of test it is where nothing is said.
fn test(written: Option<&String>) -> &str {
    written.map_or("exact", |test| test)
}

impl Meant for RewriteName {
    type Meaning = NameChange;
    const FIELD: &'static str = "name";

    fn meant(&self) -> Result<NameChange, String> {
        let mut change = NameChange::new(test(self.test.as_ref()), &self.from, &self.to)?;
        if self.answer_auto {
            change.undo_by_itself()?;
        }
        for answer in &self.answer_name {
            change.undo_owner(&answer.from, &answer.to)?;
        }
        for answer in &self.answer_value {
            change.undo_value(&answer.from, &answer.to)?;
        }
        Ok(change)
    }
}

impl Meant for RewriteTtl {
    type Meaning = Change;
    const FIELD: &'static str = "ttl";

    fn meant(&self) -> Result<Change, String> {
        let test = Test::new(test(self.test.as_ref()), &self.name)?;
        let least = self.min.unwrap_or(0);
        let most = self.max.unwrap_or(i32::MAX.unsigned_abs());
        if least > most || self.min.is_none() && self.max.is_none() {
            return Err("ttl has min, max or both, and min is not above max".to_owned());
        }
        Ok(Change::Ttl { test, least, most })
    }
}

impl Meant for Template {
    /// Without zones where it has those of its block.
    type Meaning = template::Template;
    const FIELD: &'static str = "template";

    fn meant(&self) -> Result<template::Template, String> {
        let kind = self.kind.as_deref().filter(|kind| *kind != "ANY");
        let rcode = self.rcode.as_deref().unwrap_or("NOERROR");
        let texts = |all: &[String]| -> Result<Vec<Text>, String> {
            all.iter().map(|text| Text::new(text)).collect()
        };
        let template = template::Template {
            zones: zones(&self.zones, &[])?,
            kind: kind.map(notation::record_type).transpose()?,
            patterns: self
                .patterns
                .iter()
                .map(|text| Pattern::new(text))
                .collect::<Result<_, _>>()?,
            answers: texts(&self.answer)?,
            authorities: texts(&self.authority)?,
            additionals: texts(&self.additional)?,
            code: template::code_named(rcode)
                .ok_or_else(|| format!("{rcode:?} is no response code such as NXDOMAIN"))?,
            explanation: self.ederror,
            fallthrough: zones(&self.fallthrough, &[])?,
        };
        let sections = [&template.answers, &template.authorities, &template.additionals];
        for text in sections.into_iter().flatten() {
            template.check(text)?;
        }
        Ok(template)
    }
}

impl Meant for Dns64 {
    type Meaning = dns64::Dns64;
    const FIELD: &'static str = "dns64";

    fn meant(&self) -> Result<dns64::Dns64, String> {
        let mut dns64 = dns64::Dns64::default();
        if let Some(prefix) = &self.prefix {
            dns64.set_prefix(prefix)?;
        }
        (dns64.translate_all, dns64.allow_ipv4) = (self.translate_all, self.allow_ipv4);
        Ok(dns64)
    }
}

impl Meant for Acl {
    /// Without zones where it has those of its block.
    type Meaning = Access;
    const FIELD: &'static str = "acl";

    fn meant(&self) -> Result<Access, String> {
        let policies = self.policies.iter().map(Meant::meant).collect::<Result<_, _>>()?;
        Ok(Access { zones: zones(&self.zones, &[])?, policies })
    }
}

impl Meant for Policies {
    type Meaning = Policy;
    const FIELD: &'static str = "policies";

    fn meant(&self) -> Result<Policy, String> {
        let types = self.types.iter().map(|text| notation::record_type(text));
        let types: Vec<_> = types.collect::<Result<_, _>>()?;
        let nets = self.nets.iter().map(|text| notation::range(text));
        let nets: Vec<_> = nets.collect::<Result<_, _>>()?;
        Ok(Policy {
            action: Action::named(&self.action)?,
            kinds: (!types.is_empty()).then_some(types),
            sources: (!nets.is_empty()).then_some(nets),
        })
    }
}

impl Meant for Log {
    type Meaning = LogRule;
    const FIELD: &'static str = "log";

    fn meant(&self) -> Result<LogRule, String> {
        let format = self.format.as_deref().map_or_else(|| Ok(Format::default()), Format::new)?;
        let class = |name: &String| {
            Class::named(name)
                .ok_or_else(|| format!("{name:?} must be success, denial, error or all"))
        };
        let mut classes = self.classes.iter().map(class).collect::<Result<Vec<_>, _>>()?;
        if classes.is_empty() {
            classes.push(Class::All);
        }
        Ok(LogRule {
            zones: zones(&self.zones, &[Name::root()])?,
            format: Arc::new(format),
            classes,
            slow: self.min_duration.as_ref().map(|time| time.meant()).transpose()?,
        })
    }
}

impl Meant for Errors {
    type Meaning = error_log::Errors;
    const FIELD: &'static str = "errors";

    fn meant(&self) -> Result<error_log::Errors, String> {
        let rule = |written: &Consolidate| {
            let level = written.level.as_deref().map(error_log::Level::named).transpose()?;
            Ok(error_log::Consolidated {
                period: notation::duration(&written.period)?,
                pattern: Pattern::new(&written.pattern)?,
                level: level.unwrap_or_default(),
            })
        };
        let consolidated = self.consolidate.iter().map(rule).collect::<Result<_, String>>()?;
        Ok(error_log::Errors { consolidated })
    }
}

impl Meant for Bufsize {
    type Meaning = u16;
    const FIELD: &'static str = "bufsize";

    fn meant(&self) -> Result<u16, String> {
        if (512..=4096).contains(&self.0) {
            Ok(self.0)
        } else {
            Err(format!("{} is no number of octets from 512 to 4096", self.0))
        }
    }
}
