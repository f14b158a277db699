//! The rules of nftables, as others made them: `nft`, kube-proxy, and `iptables` where that is
//! nftables' (`iptables --version` says `nf_tables`). Of a rule nothing is read but where it leads, of
//! a map by which rules lead to chains nothing but whether there is anything in it.

use std::{io, ops::ControlFlow};

use super::{
    Family, TalkError,
    tables::{JUMP, NfTables, SUBSYSTEM, Verb},
    wire::{Attribute, Body, Request, attribute, attributes, insist, number_of, text, text_of},
};

/// The verdict that leads to another chain for good (NFT_GOTO).
const GOTO: u32 = (-4_i32).cast_unsigned();

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// The table's family.
    pub family: Family,
    /// The table.
    pub table: String,
    /// Its name.
    pub name: String,
}

/// A chain that the kernel enters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Which.
    pub chain: Chain,
    /// What for: `filter`, `nat` or `route`.
    pub kind: String,
    /// Whether it drops what none of its rules decides on.
    pub drops: bool,
}

/// A map of verdicts: what is found in it leads to a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerdictMap {
    /// The table's family.
    pub family: Family,
    /// The table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Whether there is nothing in it.
    pub is_empty: bool,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The chain that it is in.
    pub chain: Chain,
    /// What the kernel knows it by, in its table.
    pub handle: u64,
    /// The chains that it leads to, of the same table.
    pub leads_to: Vec<String>,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// All chains of both families.
    pub chains: Vec<Chain>,
    /// Those of them that the kernel enters.
    pub bases: Vec<Base>,
    /// All rules, in order within their chains.
    pub rules: Vec<Rule>,
    /// All maps of verdicts that have names.
    pub maps: Vec<VerdictMap>,
}

/// What shall no longer be there: in this order, all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Tables with all that is in them.
    pub tables: Vec<(Family, String)>,
    /// Single rules.
    pub rules: Vec<Rule>,
    /// Chains with their rules, which lead to each other at most.
    pub chains: Vec<Chain>,
}

impl Removal {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.rules.is_empty() && self.chains.is_empty()
    }

    fn request(&self) -> Request {
        Request::batch(SUBSYSTEM, |request| {
            for (family, table) in &self.tables {
                request.ask(Verb::DeleteTable as u8, *family, &[text(1, table)], 0);
            }
            for Rule { chain, handle, .. } in &self.rules {
                let handle = Attribute::Octets(3, handle.to_be_bytes().to_vec());
                let attributes = [text(1, &chain.table), text(2, &chain.name), handle];
                request.ask(Verb::DeleteRule as u8, chain.family, &attributes, 0);
            }
            for chain in &self.chains {
                let attributes = [text(1, &chain.table), text(2, &chain.name)];
                request.ask(Verb::DeleteRule as u8, chain.family, &attributes, 0);
            }
            for chain in &self.chains {
                let attributes = [text(1, &chain.table), text(3, &chain.name)];
                request.ask(Verb::DeleteChain as u8, chain.family, &attributes, 0);
            }
        })
    }
}

impl NfTables {
    /// All chains and rules.
    pub fn ruleset() -> Result<Ruleset, TalkError> {
        insist(|| Self::open()?.list())
    }

    fn list(&mut self) -> Result<Ruleset, TalkError> {
        let mut found = Ruleset::default();
        for family in Family::ALL {
            let (chains, bases) = (&mut found.chains, &mut found.bases);
            self.0.dump(SUBSYSTEM, Verb::GetChains as u8, family, &[], |body| {
                if let Some(chain) = chain(family, body, 3) {
                    bases.extend(base(&chain, body));
                    chains.push(chain);
                }
                ControlFlow::Continue(())
            })?;
            let rules = &mut found.rules;
            self.0.dump(SUBSYSTEM, Verb::GetRules as u8, family, &[], |body| {
                rules.extend(rule(family, body));
                ControlFlow::Continue(())
            })?;
            let maps = &mut found.maps;
            self.0.dump(SUBSYSTEM, Verb::GetSets as u8, family, &[], |body| {
                maps.extend(verdict_map(family, body));
                ControlFlow::Continue(())
            })?;
        }
        for map in &mut found.maps {
            map.is_empty = is_empty(map)?;
        }
        Ok(found)
    }

    /// Removes what is there no longer: all of it, or nothing where the kernel refuses, as it does
    /// where a rule of somebody else's leads to one of the chains.
    pub fn carry_out(&mut self, removal: &Removal) -> Result<(), TalkError> {
        self.0.put(&removal.request(), |_| ControlFlow::Continue(()))
    }
}

/// The chain that a message is of, whose name has this attribute's number.
fn chain(family: Family, body: &Body, name: u16) -> Option<Chain> {
    let (table, name) = (attribute(&body.attributes, 1)?, attribute(&body.attributes, name)?);
    (body.family == family as u8).then(|| Chain {
        family,
        table: text_of(table),
        name: text_of(name),
    })
}

/// What a chain is for that the kernel enters.
fn base(chain: &Chain, body: &Body) -> Option<Base> {
    const DROP: u32 = 0;
    let _hook = attribute(&body.attributes, 4)?;
    let policy = attribute(&body.attributes, 5).and_then(number_of);
    let kind = attribute(&body.attributes, 7).map(text_of).unwrap_or_default();
    Some(Base { chain: chain.clone(), kind, drops: policy == Some(DROP) })
}

/// A named map of verdicts, taken for an empty one until it is looked into.
fn verdict_map(family: Family, body: &Body) -> Option<VerdictMap> {
    const ANONYMOUS: u32 = 1;
    const VERDICT: u32 = 0xffff_ff00;
    let number = |kind| attribute(&body.attributes, kind).and_then(number_of);
    let (table, name) = (attribute(&body.attributes, 1)?, attribute(&body.attributes, 2)?);
    let named = number(3).unwrap_or_default() & ANONYMOUS == 0;
    let is = named && number(6) == Some(VERDICT) && body.family == family as u8;
    let (table, name) = (text_of(table), text_of(name));
    is.then_some(VerdictMap { family, table, name, is_empty: true })
}

/// By a line of its own, which is left at the first element. A map that is gone is empty.
fn is_empty(map: &VerdictMap) -> Result<bool, TalkError> {
    let (mut is_empty, names) = (true, [text(1, &map.table), text(2, &map.name)]);
    let mut kernel = NfTables::open()?;
    let listed = kernel.0.dump(SUBSYSTEM, Verb::GetElements as u8, map.family, &names, |body| {
        let elements = attribute(&body.attributes, 3).unwrap_or_default();
        is_empty &= attributes(elements).next().is_none();
        if is_empty { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    match listed {
        Err(TalkError::Refused(error)) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        listed => listed.map(|()| is_empty),
    }
}

fn rule(family: Family, body: &Body) -> Option<Rule> {
    let chain = chain(family, body, 2)?;
    let handle = u64::from_be_bytes(attribute(&body.attributes, 3)?.try_into().ok()?);
    let expressions = attribute(&body.attributes, 4).unwrap_or_default();
    let leads_to = attributes(expressions).filter_map(|(_, expression)| leads_to(expression));
    Some(Rule { chain, handle, leads_to: leads_to.collect() })
}

/// Where an expression leads, if it is one that does (`immediate` with a verdict).
fn leads_to(expression: &[u8]) -> Option<String> {
    let name = attribute(expression, 1)?;
    if text_of(name) != "immediate" {
        return None;
    }
    let verdict = attribute(attribute(attribute(expression, 2)?, 2)?, 2)?;
    let code = number_of(attribute(verdict, 1)?)?;
    (code == JUMP || code == GOTO).then(|| attribute(verdict, 2).map(text_of))?
}
