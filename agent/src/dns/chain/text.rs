//! Names as text, which is what rules of a Corefile look at: lower case, with a dot at the end, as
//! CoreDNS gives them to its plugins.

use hickory_proto::rr::{Name, RData};
use regex::{Captures, Regex, RegexBuilder};

/// How long a pattern may be, in octets; CoreDNS's bound.
const MAX_PATTERN: usize = 10_000;
/// How much memory a compiled pattern may take, in octets.
const MAX_COMPILED: usize = 1 << 20;

/// The text of a name.
pub fn of(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

/// The name that a text is; `None` where it is none.
pub fn name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// The name that a record's data leads to, for types whose data is one.
pub fn target(data: &mut RData) -> Option<&mut Name> {
    Some(match data {
        RData::CNAME(name) => &mut name.0,
        RData::NS(name) => &mut name.0,
        RData::PTR(name) => &mut name.0,
        RData::MX(mx) => &mut mx.exchange,
        RData::SRV(srv) => &mut srv.target,
        RData::NAPTR(naptr) => &mut naptr.replacement,
        RData::SOA(soa) => &mut soa.mname,
        _ => return None,
    })
}

/// A text in the form of [`of`], with the dot where `whole` says that it ends as names do.
pub fn normal(text: &str, whole: bool) -> String {
    let dot = if whole && !text.ends_with('.') { "." } else { "" };
    text.to_ascii_lowercase() + dot
}

/// A regular expression. Time and memory are bounded whatever it is and whatever it is run on.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// The pattern that `text` is, as Go's RE2 and this language have it in common; or why not.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > MAX_PATTERN {
            return Err(format!("a pattern has {MAX_PATTERN} octets at most"));
        }
        let mut builder = RegexBuilder::new(text);
        builder.size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build().map(Self).map_err(
            |error| {
                // It is drawn over several lines, of which the last says what is wrong.
                let error = error.to_string();
                let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                format!("{text:?} is no pattern: {why}")
            },
        )
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether it is found in `text`.
    pub fn is_in(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// Where it is found in `text`, and what its groups are there.
    pub fn found<'a>(&self, text: &'a str) -> Option<Captures<'a>> {
        self.0.captures(text)
    }

    /// How many groups it has, the whole one not counted.
    pub fn groups(&self) -> usize {
        self.0.captures_len() - 1
    }

    /// Whether it has a group of that name.
    pub fn has_group(&self, name: &str) -> bool {
        self.0.capture_names().flatten().any(|group| group == name)
    }

    /// `to` with what the groups are in `text` in the places of `{0}`, `{1}`, …; `None` where the
    /// pattern is not in `text`.
    pub fn substituted(&self, text: &str, to: &str) -> Option<String> {
        let found = self.found(text)?;
        let mut whole = String::new();
        let mut rest = to;
        while let Some((before, number, behind)) = placeholder(rest) {
            whole.push_str(before);
            whole.push_str(found.get(number).map_or("", |group| group.as_str()));
            rest = behind;
        }
        Some(whole + rest)
    }

    /// Whether `to` names only groups that there are; or which is missing.
    pub fn check_substitution(&self, to: &str) -> Result<(), String> {
        let mut rest = to;
        while let Some((_, number, behind)) = placeholder(rest) {
            if number > self.groups() {
                return Err(format!("{:?} has no group {number}", self.as_str()));
            }
            rest = behind;
        }
        Ok(())
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

/// What stands before the first `{N}`, the number, and what stands behind.
fn placeholder(text: &str) -> Option<(&str, usize, &str)> {
    let mut from = 0;
    while let Some(open) = text[from..].find('{') {
        let start = from + open + 1;
        let end = start + text[start..].find(|next: char| !next.is_ascii_digit())?;
        if text[end..].starts_with('}')
            && let Ok(number) = text[start..end].parse()
        {
            return Some((&text[..start - 1], number, &text[end + 1..]));
        }
        from = start;
    }
    None
}

/// Which names a rule is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// This one.
    Exact(String),
    /// Those that begin so.
    Prefix(String),
    /// Those that end so.
    Suffix(String),
    /// Those in which it stands.
    Substring(String),
    /// Those in which the pattern is found.
    Regex(Pattern),
}

impl Test {
    /// The test of that kind in a Corefile; or what is wrong with it.
    pub fn new(kind: &str, text: &str) -> Result<Self, String> {
        Ok(match kind {
            "exact" => Self::Exact(normal(text, true)),
            "prefix" => Self::Prefix(normal(text, false)),
            "suffix" => Self::Suffix(normal(text, true)),
            "substring" => Self::Substring(normal(text, false)),
            "regex" => Self::Regex(Pattern::new(text)?),
            other => {
                return Err(format!("{other:?} must be exact, prefix, suffix, substring or regex"));
            }
        })
    }

    /// Whether it is about a name that has this text.
    pub fn admits(&self, name: &str) -> bool {
        match self {
            Self::Exact(text) => name == text,
            Self::Prefix(text) => name.starts_with(text),
            Self::Suffix(text) => name.ends_with(text),
            Self::Substring(text) => name.contains(text),
            Self::Regex(pattern) => pattern.is_in(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn groups_take_the_places_of_their_numbers() {
        let pattern = Pattern::new(r"(.*)-(us-west-1)\.example\.org").unwrap();
        let said = |to: &str| pattern.substituted("ftp-us-west-1.example.org.", to);
        assert_eq!(said("{1}.service.{2}.consul").unwrap(), "ftp.service.us-west-1.consul");
        assert_eq!(said("{0}").unwrap(), "ftp-us-west-1.example.org");
        assert_eq!(said("{{1}{x}{").unwrap(), "{ftp{x}{", "only numbers in braces are places");
        assert_eq!(pattern.substituted("example.org.", "{1}"), None);
        assert!(pattern.check_substitution("{2}").is_ok());
        assert!(pattern.check_substitution("{3}").unwrap_err().contains("no group 3"));
        // What a group holds is not looked at again.
        let swap = Pattern::new(r"^(.*)\.(.*)\.$").unwrap();
        assert_eq!(swap.substituted("{2}.b.", "{1}").unwrap(), "{2}");
    }

    #[test]
    fn patterns_are_bounded() {
        assert!(Pattern::new(&"a".repeat(MAX_PATTERN + 1)).unwrap_err().contains("octets"));
        assert!(Pattern::new("(").unwrap_err().contains("unclosed group"));
        assert!(Pattern::new("(a{1000}){1000}").unwrap_err().contains("size limit"));
    }

    #[test]
    fn names_have_one_text() {
        assert_eq!(of(&Name::from_ascii("A.Example.org").unwrap()), "a.example.org.");
        assert_eq!(of(&Name::root()), ".");
        assert_eq!(name("a..b"), None);
        assert!(name("a.b").unwrap().is_fqdn());
    }

    proptest! {
        /// Any labels have a text, and the text that a rule makes of it is a name or none.
        #[test]
        fn any_name_has_a_text(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..8)) {
            let name_of = Name::from_labels(labels.iter().map(Vec::as_slice));
            if let Ok(whole) = name_of {
                let text = of(&whole);
                prop_assert!(text.ends_with('.'));
                let _any = name(&text);
            }
        }

        #[test]
        fn any_pattern_and_substitution(pattern in "[a-z(){}0-9.*+|?\\[\\]^$\\\\]{0,30}", to in ".{0,30}", text in "[a-z0-9.-]{0,60}") {
            if let Ok(pattern) = Pattern::new(&pattern)
                && pattern.check_substitution(&to).is_ok()
                && let Some(said) = pattern.substituted(&text, &to)
            {
                prop_assert!(said.len() <= to.len() * (1 + text.len()));
            }
        }
    }
}
