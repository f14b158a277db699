//! The tables of `iptables-legacy`: an array of rules each, which goes to and from the kernel whole
//! ([`layout`] has its octets). Of a rule nothing is read but where it leads; what stays goes back
//! octet for octet, with jumps that follow what they lead to, and with what it counted.

mod layout;

use std::{
    collections::BTreeSet,
    fs::{File, TryLockError},
    io,
    time::{Duration, Instant},
};

use self::layout::{Entry, Target};
use super::{
    Family,
    ruleset::{Base, Chain, Removal, Rule, Ruleset},
};
use crate::datapath::XtSocket;

/// Names the tables that are in use in the calling thread's network namespace, one a line. A table
/// that is not named there would be made by asking for it.
const NAMES: [(Family, &str); 2] = [
    (Family::Ipv4, "/proc/thread-self/net/ip_tables_names"),
    (Family::Ipv6, "/proc/thread-self/net/ip6_tables_names"),
];
/// Whoever writes such tables locks this first, `iptables-legacy` and kube-proxy too.
const LOCK: &str = "/run/xtables.lock";
/// How long it is waited for.
const LOCKED_MAX: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
/// How often a table is read anew that changes while it is read.
const TRIES: usize = 5;

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name: `nat`, `filter`, …
    pub name: String,
    /// Bits of the hooks at which the kernel enters it (`enum nf_inet_hooks`).
    valid_hooks: u32,
    entries: Vec<Entry>,
    /// By hook: the first entry of its chain, and the last, which is the chain's policy.
    hooks: [Option<(usize, usize)>; layout::HOOKS],
}

/// A table that exists and can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
}

/// A table, and what it is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    before: Table,
    after: Table,
}

/// Why a table is not changed, or not read.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    /// The kernel refuses.
    #[error("{what} the table {table} of {program}: {source}", program = program(*.family))]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The family.
        family: Family,
        /// The table.
        table: String,
        /// Why.
        source: io::Error,
    },
    /// It is not what this program knows.
    #[error("the table {table} of {program} is of a form that is not known: {why}", program = program(*.family))]
    Form {
        /// The family.
        family: Family,
        /// The table.
        table: String,
        /// What is not as it should be.
        why: &'static str,
    },
    /// Somebody else changed it after it was looked at.
    #[error("the table {table} of {program} was changed meanwhile; run it again", program = program(*.family))]
    Changed {
        /// The family.
        family: Family,
        /// The table.
        table: String,
    },
    /// Another program has the lock.
    #[error(
        "another program has had {LOCK} locked for {LOCKED_MAX:?}: find it (`fuser {LOCK}`), and run it again"
    )]
    Locked,
}

/// The command line of this family's tables.
pub const fn program(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "iptables-legacy",
        Family::Ipv6 => "ip6tables-legacy",
    }
}

/// All tables that are in use, and those of them that can't be read.
pub fn tables() -> (Vec<Table>, Vec<Unread>) {
    let (mut tables, mut unread) = (Vec::new(), Vec::new());
    for (family, path) in NAMES {
        // A kernel need not have them.
        let names = std::fs::read_to_string(path).unwrap_or_default();
        for name in names.lines() {
            match read(family, name) {
                Ok(table) => tables.push(table),
                Err(error) => {
                    let (name, why) = (name.to_owned(), error.to_string());
                    unread.push(Unread { family, name, why });
                }
            }
        }
    }
    (tables, unread)
}

fn kernel_error(
    what: &'static str,
    family: Family,
    table: &str,
) -> impl FnOnce(io::Error) -> LegacyError {
    move |source| LegacyError::Kernel { what, family, table: table.to_owned(), source }
}

fn read(family: Family, name: &str) -> Result<Table, LegacyError> {
    let error = || kernel_error("read", family, name);
    let kernel = XtSocket::open(family).map_err(error())?;
    let mut tries = 0;
    let (info, entries) = loop {
        let mut info = layout::info_request(name);
        kernel.get(layout::GET_INFO, &mut info).map_err(error())?;
        let mut entries = layout::entries_request(name, layout::size_in(&info));
        tries += 1;
        match kernel.get(layout::GET_ENTRIES, &mut entries) {
            // It grew or shrank between the two.
            Err(changed) if changed.raw_os_error() == Some(libc::EAGAIN) && tries < TRIES => {}
            outcome => {
                outcome.map_err(error())?;
                break (info, entries);
            }
        }
    };
    layout::table(family, name, &info, &entries).map_err(|why| LegacyError::Form {
        family,
        table: name.to_owned(),
        why,
    })
}

impl Table {
    /// Its chains and rules; a rule's handle is its place.
    pub fn ruleset(&self) -> Ruleset {
        let mut found = Ruleset::default();
        let of_table = |name: &str| Chain {
            family: self.family,
            table: self.name.clone(),
            name: name.to_owned(),
        };
        for (name, range, policy) in self.chains() {
            let chain = of_table(&name);
            if let Some(policy) = policy {
                let drops = self.entries[policy].target == Target::Drop;
                let kind = self.name.clone();
                found.bases.push(Base { chain: chain.clone(), kind, drops });
            }
            for nth in range {
                let leads_to = match self.entries[nth].target {
                    Target::Jump(to) => self.chain_at(to).into_iter().collect(),
                    _ => Vec::new(),
                };
                found.rules.push(Rule { chain: chain.clone(), handle: nth as u64, leads_to });
            }
            found.chains.push(chain);
        }
        found
    }

    /// The names of the chains, the places of their rules, and of the policy where the kernel enters
    /// them. What ends a chain is no rule.
    fn chains(&self) -> Vec<(String, std::ops::Range<usize>, Option<usize>)> {
        let hooks = self.hooks.iter().zip(layout::BUILT_IN);
        let mut chains: Vec<_> = hooks
            .filter_map(|(hook, name)| {
                let (first, policy) = (*hook)?;
                Some((name.to_owned(), first..policy, Some(policy)))
            })
            .collect();
        let heads =
            self.entries.iter().enumerate().filter_map(|(nth, entry)| match &entry.target {
                Target::Head(name) => Some((nth, name)),
                _ => None,
            });
        let heads: Vec<_> = heads.collect();
        // The last head ends the table.
        let own = heads.windows(2).map(|pair| {
            let [(head, name), (next, _)] = pair else { return (String::new(), 0..0, None) };
            ((*name).clone(), head + 1..next.saturating_sub(1).max(head + 1), None)
        });
        chains.extend(own);
        chains
    }

    /// The name of the chain whose first entry this is.
    fn chain_at(&self, first: usize) -> Option<String> {
        match &self.entries.get(first.checked_sub(1)?)?.target {
            Target::Head(name) => Some(name.clone()),
            _ => None,
        }
    }

    /// What it becomes without what of `removal` is its; `None` where that is nothing, or rules that
    /// stay lead to it.
    pub fn without(&self, removal: &Removal) -> Option<Change> {
        let is_own = |chain: &Chain| chain.family == self.family && chain.table == self.name;
        let rules = removal.rules.iter().filter(|rule| is_own(&rule.chain));
        let mut gone: BTreeSet<usize> =
            rules.filter_map(|rule| usize::try_from(rule.handle).ok()).collect();
        let names: BTreeSet<&str> =
            removal.chains.iter().filter(|chain| is_own(chain)).map(|chain| &*chain.name).collect();
        for (name, rules, policy) in self.chains() {
            if policy.is_none() && names.contains(&*name) {
                // With its head and its end.
                gone.extend(rules.start - 1..=rules.end);
            }
        }
        // By whom kube-proxy's rules are told this can't be: what others lead to stays.
        let leads_there = |(nth, entry): (usize, &Entry)| {
            matches!(entry.target, Target::Jump(to) if gone.contains(&to)) && !gone.contains(&nth)
        };
        if gone.is_empty() || self.entries.iter().enumerate().any(leads_there) {
            return None;
        }
        // Where what was at a place is now, or what comes behind it.
        let mut places = Vec::with_capacity(self.entries.len());
        let mut kept = 0;
        for nth in 0..self.entries.len() {
            places.push(kept);
            kept += usize::from(!gone.contains(&nth));
        }
        let moved = |entry: &Entry| match entry.target {
            Target::Jump(to) => Entry { target: Target::Jump(places[to]), ..entry.clone() },
            _ => entry.clone(),
        };
        let left = self.entries.iter().enumerate().filter(|(nth, _)| !gone.contains(nth));
        let after = Self {
            entries: left.map(|(_, entry)| moved(entry)).collect(),
            hooks: self.hooks.map(|hook| hook.map(|(first, end)| (places[first], places[end]))),
            ..self.clone()
        };
        Some(Change { before: self.clone(), after })
    }
}

/// Puts a table in the place of one that is still as it was looked at.
pub fn carry_out(change: &Change) -> Result<(), LegacyError> {
    let Change { before, after } = change;
    let (family, name) = (before.family, &*before.name);
    let _lock = lock()?;
    if read(family, name)? != *before {
        return Err(LegacyError::Changed { family, table: name.to_owned() });
    }
    let kernel = XtSocket::open(family).map_err(kernel_error("change", family, name))?;
    let counted = kernel
        .replace(&layout::replacement(after), before.entries.len())
        .map_err(kernel_error("change", family, name))?;
    // Of what stays: the kernel began anew.
    let counters = layout::counters(after, &counted);
    // The rules are gone as they should be, whatever becomes of what others' counted.
    if let Err(error) = kernel.add_counters(&counters) {
        tracing::warn!(?family, table = name, %error, "what rules counted is not put back");
    }
    Ok(())
}

/// Keeps other programs from writing such tables, where this one can reach the lock: not in a pod. The
/// kernel refuses by itself what was made of another number of rules.
fn lock() -> Result<Option<File>, LegacyError> {
    let opened = File::options().write(true).create(true).truncate(false).open(LOCK);
    let Ok(file) = opened else { return Ok(None) };
    let until = Instant::now() + LOCKED_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOOK),
            Err(TryLockError::WouldBlock) => return Err(LegacyError::Locked),
            // A file system without locks.
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
