//! The part of Go's template language that speaks of a question: fields, groups of the pattern and
//! `parseInt`. All else is an error when the configuration is read.

use regex::Captures;

use super::{Pattern, Subject, record};

/// How long a text may be, in octets, when all is in its place.
const MAX_TEXT: usize = 4096;

/// A text with places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Value(Value),
    /// `parseInt`: a number in that base and of so many bits, written in base ten.
    Number(Value, u32, u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Zone,
    Name,
    /// The name as it was written.
    Question,
    Class,
    Type,
    Remote,
    /// A group by its number.
    Match(usize),
    /// A group by its name.
    Group(String),
}

impl Text {
    /// The text that `template` is; or what of it is no text.
    pub fn new(template: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = template;
        let mut trim = false;
        while let Some((before, behind)) = rest.split_once("{{") {
            let (inside, behind) =
                behind.split_once("}}").ok_or_else(|| "\"{{\" has no end".to_owned())?;
            let before = if trim { before.trim_start() } else { before };
            // A minus beside the braces takes the blanks on its side.
            let (before, inside) = match inside.strip_prefix("- ") {
                Some(inside) => (before.trim_end(), inside),
                None => (before, inside),
            };
            let inside = inside.strip_suffix(" -").inspect(|_| trim = true).unwrap_or_else(|| {
                trim = false;
                inside
            });
            if !before.is_empty() {
                parts.push(Part::Literal(before.to_owned()));
            }
            parts.push(action(inside)?);
            rest = behind;
        }
        let rest = if trim { rest.trim_start() } else { rest };
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Whether the groups that it speaks of are those of any of `patterns`, and whether it is a
    /// record where it is always the same; or what is wrong.
    pub(super) fn check(&self, patterns: &[Pattern]) -> Result<(), String> {
        for part in &self.0 {
            let (Part::Value(value) | Part::Number(value, ..)) = part else { continue };
            match value {
                Value::Group(name) if !patterns.iter().any(|pattern| pattern.has_group(name)) => {
                    return Err(format!("no match has a group {name:?}"));
                }
                Value::Match(number)
                    if *number > 0 && !patterns.iter().any(|all| all.groups() >= *number) =>
                {
                    return Err(format!("no match has a group {number}"));
                }
                _ => {}
            }
        }
        match &self.0[..] {
            [Part::Literal(text)] if record(text).is_none() => {
                Err(format!("{text:?} is no record such as \"example.org. 60 IN A 192.0.2.1\""))
            }
            [] => Err("an empty text is no record".to_owned()),
            _ => Ok(()),
        }
    }

    /// The text with all in its place; `None` where something is not there, or it is too long.
    pub(super) fn filled(
        &self,
        subject: &Subject<'_>,
        found: Option<&Captures<'_>>,
    ) -> Option<String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Value(value) => text.push_str(&value.of(subject, found)?),
                Part::Number(value, base, bits) => {
                    let number = u64::from_str_radix(&value.of(subject, found)?, *base).ok()?;
                    if number.checked_shr(*bits).is_some_and(|beyond| beyond > 0) {
                        return None;
                    }
                    text.push_str(&number.to_string());
                }
            }
            if text.len() > MAX_TEXT {
                return None;
            }
        }
        Some(text)
    }
}

impl Value {
    fn of(&self, subject: &Subject<'_>, found: Option<&Captures<'_>>) -> Option<String> {
        Some(match self {
            Self::Zone => subject.zone.clone(),
            Self::Name => subject.name.clone(),
            Self::Question => subject.query.name().to_ascii(),
            Self::Class => "IN".to_owned(),
            Self::Type => subject.query.query_type().to_string(),
            Self::Remote => subject.client.to_string(),
            // Without a pattern all of the name fits.
            Self::Match(0) if found.is_none() => subject.name.clone(),
            Self::Match(number) => {
                let found = found.filter(|found| *number < found.len())?;
                found.get(*number).map_or_else(String::new, |group| group.as_str().to_owned())
            }
            // A group that is there and took no part is empty.
            Self::Group(name) => found?.name(name)?.as_str().to_owned(),
        })
    }
}

/// What stands between braces.
fn action(inside: &str) -> Result<Part, String> {
    let unsupported = || {
        format!(
            "{{{{{inside}}}}} is not supported in a template; supported are {{{{ .Name }}}}, .Zone, \
             .Class, .Type, .Remote, .Question.Name, .Group.NAME, index .Match N, index .Group \
             \"NAME\" and parseInt VALUE BASE BITS"
        )
    };
    let mut words: Vec<_> = inside.split_whitespace().collect();
    let number = match &words[..] {
        ["parseInt", .., base, bits] => {
            let base: u32 = base.parse().map_err(|_| unsupported())?;
            let bits: u32 = bits.parse().map_err(|_| unsupported())?;
            if !(2..=36).contains(&base) || !(1..=64).contains(&bits) {
                return Err(unsupported());
            }
            Some((base, bits))
        }
        _ => None,
    };
    if number.is_some() {
        words = words[1..words.len() - 2].to_vec();
    }
    let value = match &words[..] {
        [field] => value(field),
        ["index", ".Match", number] => number.parse().ok().map(Value::Match),
        ["index", ".Group", name] => {
            let name = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
            name.map(group)
        }
        _ => None,
    };
    let value = value.ok_or_else(unsupported)?;
    Ok(match number {
        Some((base, bits)) => Part::Number(value, base, bits),
        None => Part::Value(value),
    })
}

fn value(field: &str) -> Option<Value> {
    Some(match field {
        ".Zone" => Value::Zone,
        ".Name" => Value::Name,
        ".Question.Name" => Value::Question,
        ".Class" => Value::Class,
        ".Type" => Value::Type,
        ".Remote" => Value::Remote,
        _ => {
            let name = field.strip_prefix(".Group.")?;
            let is_name = name.chars().all(|next| next.is_alphanumeric() || next == '_');
            return (is_name && !name.is_empty()).then(|| group(name));
        }
    })
}

/// Groups have their number as a name too.
fn group(name: &str) -> Value {
    name.parse().map_or_else(|_| Value::Group(name.to_owned()), Value::Match)
}
