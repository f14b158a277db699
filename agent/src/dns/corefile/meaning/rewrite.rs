//! `rewrite`: questions that are asked otherwise.

use super::{CorefileError, Directive, Word, record_type};
use crate::dns::chain::{
    rewrite::{Change, NameChange, Rule},
    text::Test,
};

/// What a TTL without an upper end is bounded by (RFC 2181 8).
const MAX_TTL: u32 = i32::MAX as u32;

/// `rewrite [continue|stop] FIELD …`, in one line or with the rest in braces.
pub(super) fn read(directive: &Directive) -> Result<Rule, CorefileError> {
    let lines = directive.body.iter();
    let in_braces = lines.flat_map(|line| std::iter::once(&line.name).chain(&line.arguments));
    let words: Vec<&Word> = directive.arguments.iter().chain(in_braces).collect();
    let (goes_on, words) = match &words[..] {
        [first, rest @ ..] if first.text == "continue" => (true, rest),
        [first, rest @ ..] if first.text == "stop" => (false, rest),
        all => (false, all),
    };
    let [field, rest @ ..] = words else {
        return Err(directive.name.error("rewrite names what it rewrites, such as name"));
    };
    let change = match &*field.text {
        "name" => Change::Name(name(field, rest)?),
        "type" => match rest {
            [from, to] => Change::Type { from: record_type(from)?, to: record_type(to)? },
            _ => return Err(field.error("type is followed by two types, such as ANY HINFO")),
        },
        "ttl" => ttl(field, rest)?,
        other => {
            let why =
                format!("rewrite {other:?} is not supported; supported are name, type and ttl");
            return Err(field.error(why));
        }
    };
    Ok(Rule { change, goes_on })
}

/// `[exact|prefix|suffix|substring|regex] FROM TO [answer …]`.
fn name(field: &Word, words: &[&Word]) -> Result<NameChange, CorefileError> {
    let (kind, from, to, answers) = match words {
        [from, to] => ("exact", from, to, &[][..]),
        [kind, from, to, answers @ ..] => (&*kind.text, from, to, answers),
        _ => return Err(field.error("name is followed by a name and what it becomes")),
    };
    let change = NameChange::new(kind, &from.text, &to.text);
    let mut change = change.map_err(|why| words[0].error(why))?;
    let mut rest = answers;
    while let [answer, behind @ ..] = rest {
        // One `answer` may stand before several of its kinds.
        let behind = if answer.text == "answer" { behind } else { rest };
        let [kind, behind @ ..] = behind else {
            return Err(answer.error("answer is followed by auto, name or value"));
        };
        let (done, behind) = match (&*kind.text, behind) {
            ("auto", behind) => (change.undo_by_itself(), behind),
            ("name", [from, to, behind @ ..]) => (change.undo_owner(&from.text, &to.text), behind),
            ("value", [from, to, behind @ ..]) => (change.undo_value(&from.text, &to.text), behind),
            _ => {
                let why = "behind the names stands answer auto, answer name FROM TO or answer \
                           value FROM TO";
                return Err(kind.error(why));
            }
        };
        done.map_err(|why| kind.error(why))?;
        rest = behind;
    }
    Ok(change)
}

/// `[exact|…] NAME SECONDS`, or a range of seconds: `MIN-MAX`, `MIN-`, `-MAX`.
fn ttl(field: &Word, words: &[&Word]) -> Result<Change, CorefileError> {
    let (kind, name, seconds) = match words {
        [name, seconds] => ("exact", name, seconds),
        [kind, name, seconds] => (&*kind.text, name, seconds),
        _ => return Err(field.error("ttl is followed by a name and seconds")),
    };
    let test = Test::new(kind, &name.text).map_err(|why| words[0].error(why))?;
    let why = || seconds.error(format!("{:?} is no TTL such as 30 or 30-300", seconds.text));
    let bound = |text: &str, open: u32| {
        if text.is_empty() { Ok(open) } else { text.parse().map_err(|_| why()) }
    };
    let (least, most) = match seconds.text.split_once('-') {
        Some(("", "")) => return Err(why()),
        Some((least, most)) => (bound(least, 0)?, bound(most, MAX_TTL)?),
        None => seconds.text.parse().map(|both| (both, both)).map_err(|_| why())?,
    };
    if least > most {
        return Err(why());
    }
    Ok(Change::Ttl { test, least, most })
}
