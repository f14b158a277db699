//! `rewrite`: questions that are asked otherwise, and answers that are brought back to what was
//! asked. As with CoreDNS rules go in their order until one that fits says `stop`, and what they
//! did to names is undone in the opposite order.

use hickory_proto::{
    op::Query,
    rr::{Name, Record, RecordType},
};

use super::text::{self, Pattern, Test};
use crate::dns::answer::Reply;

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What it does.
    pub change: Change,
    /// Whether the rules behind it are looked at where it fits (`continue`).
    pub goes_on: bool,
}

/// What a rule does to questions that it fits.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Another name is asked for.
    Name(NameChange),
    /// Another type is asked for.
    Type {
        /// What is asked for.
        from: RecordType,
        /// What is asked in its place.
        to: RecordType,
    },
    /// Records of the answer may be kept for so many seconds.
    Ttl {
        /// For which names.
        test: Test,
        /// At least.
        least: u32,
        /// At most.
        most: u32,
    },
}

/// Another name for some names.
#[derive(Clone, Debug, PartialEq)]
pub struct NameChange {
    test: Test,
    to: String,
    /// Whether names in the answer become what they were without being told how.
    auto: bool,
    answers: Vec<Undo>,
}

/// How a name in the answer is told apart and what it becomes.
#[derive(Clone, Debug, PartialEq)]
enum Renaming {
    /// The name that was asked for in the place of another, and names below it.
    Back { from: String, to: String },
    /// Names that end so.
    Suffix { from: String, to: String },
    /// Names in which the pattern is found.
    Pattern { from: Pattern, to: String },
}

/// What is done to an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Undo {
    /// To the names that records have.
    Owner(Renamed),
    /// To the names that records hold.
    Value(Renamed),
    /// To both.
    Both(Renamed),
    /// To how long it may be kept, in seconds: at least and at most.
    Ttl(u32, u32),
}

/// What a name becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct Renamed(Renaming);

/// A question that is asked otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewritten {
    /// What is asked.
    pub query: Query,
    /// What is done to the answer, last first.
    pub undo: Vec<Undo>,
}

/// A rule made a name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rewriting {from} leads to {to:?}, which is no name")]
pub struct NoName {
    /// What was asked.
    pub from: Name,
    /// What it became.
    pub to: String,
}

impl NameChange {
    /// The change of names that are `kind` (exact, prefix, …) `from` to `to`.
    pub fn new(kind: &str, from: &str, to: &str) -> Result<Self, String> {
        let test = Test::new(kind, from)?;
        if let Test::Regex(pattern) = &test {
            pattern.check_substitution(to)?;
        }
        let whole = matches!(test, Test::Exact(_) | Test::Suffix(_) | Test::Regex(_));
        let to = text::normal(to, whole);
        if matches!(test, Test::Exact(_)) && text::name(&to).is_none() {
            return Err(format!("{to:?} is no name"));
        }
        Ok(Self { auto: matches!(test, Test::Exact(_)), test, to, answers: Vec::new() })
    }

    /// Has names in the answer become what they were (`answer auto`).
    pub fn undo_by_itself(&mut self) -> Result<(), String> {
        if self.answers.iter().any(|undo| matches!(undo, Undo::Owner(_))) {
            return Err("answer auto and answer name do not go together".to_owned());
        }
        self.auto = true;
        Ok(())
    }

    /// Has the names that records have become another one (`answer name`).
    pub fn undo_owner(&mut self, from: &str, to: &str) -> Result<(), String> {
        if self.auto && !matches!(self.test, Test::Exact(_)) {
            return Err("answer auto and answer name do not go together".to_owned());
        }
        self.answers.push(Undo::Owner(Renamed::new(from, to)?));
        Ok(())
    }

    /// Has the names that records hold become another one (`answer value`).
    pub fn undo_value(&mut self, from: &str, to: &str) -> Result<(), String> {
        self.answers.push(Undo::Value(Renamed::new(from, to)?));
        Ok(())
    }

    /// What `name` becomes, where the change is about it.
    fn of(&self, name: &str) -> Option<String> {
        match &self.test {
            Test::Exact(from) => (name == from).then(|| self.to.clone()),
            Test::Prefix(from) => name.strip_prefix(&**from).map(|rest| self.to.clone() + rest),
            Test::Suffix(from) => name.strip_suffix(&**from).map(|rest| rest.to_owned() + &self.to),
            // An empty text stands everywhere, and would be put between all letters.
            Test::Substring(from) if from.is_empty() => None,
            Test::Substring(from) => {
                name.contains(&**from).then(|| name.replace(&**from, &self.to))
            }
            Test::Regex(pattern) => pattern.substituted(name, &self.to),
        }
    }

    /// What undoes that `from` became `to`.
    fn undo(&self, from: &str, to: &str) -> impl Iterator<Item = Undo> {
        let renaming = match &self.test {
            Test::Suffix(suffix) => Renaming::Suffix { from: self.to.clone(), to: suffix.clone() },
            _ => Renaming::Back { from: to.to_owned(), to: from.to_owned() },
        };
        let auto = self.auto.then_some(Undo::Both(Renamed(renaming)));
        auto.into_iter().chain(self.answers.iter().cloned())
    }
}

impl Renamed {
    fn new(from: &str, to: &str) -> Result<Self, String> {
        let from = Pattern::new(from)?;
        from.check_substitution(to)?;
        Ok(Self(Renaming::Pattern { from, to: text::normal(to, true) }))
    }

    /// What a name that has this text becomes.
    fn of(&self, name: &str) -> Option<String> {
        match &self.0 {
            Renaming::Back { from, to } => {
                let before = name.strip_suffix(&**from)?;
                (before.is_empty() || before.ends_with('.')).then(|| before.to_owned() + to)
            }
            Renaming::Suffix { from, to } => {
                name.strip_suffix(&**from).map(|before| before.to_owned() + to)
            }
            Renaming::Pattern { from, to } => from.substituted(name, to),
        }
    }

    fn apply(&self, name: &mut Name) {
        if let Some(renamed) = self.of(&text::of(name)).as_deref().and_then(text::name) {
            *name = renamed;
        }
    }
}

/// What `rules` make of `query`; `None` where none fits.
pub fn rewritten(rules: &[Rule], query: &Query) -> Result<Option<Rewritten>, NoName> {
    let mut asked = query.clone();
    let mut undo = Vec::new();
    let mut any = false;
    let mut name = text::of(query.name());
    for rule in rules {
        let fits = match &rule.change {
            Change::Name(change) => match change.of(&name) {
                Some(to) => {
                    undo.extend(change.undo(&name, &to));
                    let no_name = || NoName { from: query.name().clone(), to: to.clone() };
                    asked.set_name(text::name(&to).ok_or_else(no_name)?);
                    name = to;
                    true
                }
                None => false,
            },
            Change::Type { from, to } if asked.query_type() == *from => {
                asked.set_query_type(*to);
                true
            }
            Change::Ttl { test, least, most } if test.admits(&name) => {
                undo.push(Undo::Ttl(*least, *most));
                true
            }
            Change::Type { .. } | Change::Ttl { .. } => false,
        };
        any |= fits;
        if fits && !rule.goes_on {
            break;
        }
    }
    Ok(any.then_some(Rewritten { query: asked, undo }))
}

/// Brings the answer to a question that was asked otherwise back to `asked`.
pub fn undone(reply: &mut Reply, undo: &[Undo], asked: &Name) {
    let Reply { answers, authorities, additionals, .. } = reply;
    for record in answers.iter_mut().chain(authorities).chain(additionals) {
        for step in undo.iter().rev() {
            match step {
                Undo::Owner(renamed) => renamed.apply(&mut record.name),
                Undo::Value(renamed) => apply_to_value(renamed, record),
                Undo::Both(renamed) => {
                    apply_to_value(renamed, record);
                    renamed.apply(&mut record.name);
                }
                Undo::Ttl(least, most) => record.ttl = record.ttl.max(*least).min(*most),
            }
        }
        // Letter by letter, as clients want it that mix their letters' case on purpose.
        if record.name == *asked {
            record.name.clone_from(asked);
        }
    }
}

fn apply_to_value(renamed: &Renamed, record: &mut Record) {
    if let Some(name) = text::target(&mut record.data) {
        renamed.apply(name);
    }
}

#[cfg(test)]
mod tests;
