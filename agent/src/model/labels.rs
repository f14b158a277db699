//! Labels of objects, and selections by them, as the API has them (`labels.Parse`).

use std::{collections::BTreeSet, fmt, str::FromStr};

/// The labels of an object: in one piece of memory, and in most clusters there are many such.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// A line for each, its key and value with [`BETWEEN`] between; neither can have these.
    text: Box<str>,
}

const BETWEEN: char = '=';

impl<'a> FromIterator<(&'a str, &'a str)> for Labels {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(all: I) -> Self {
        let mut text = String::new();
        // What can be no label is none.
        let whole = |part: &str| !part.contains([BETWEEN, '\n']);
        for (key, value) in all.into_iter().filter(|(key, value)| whole(key) && whole(value)) {
            text.extend([key, "=", value, "\n"]);
        }
        Self { text: text.into() }
    }
}

impl Labels {
    /// The value under a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut all = self.text.lines().filter_map(|line| line.split_once(BETWEEN));
        all.find(|(known, _)| *known == key).map(|(_, value)| value)
    }
}

/// Which objects are meant: those that meet every requirement. Without any, all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    all: Vec<Requirement>,
}

/// What is asked of an object's labels.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    condition: Condition,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    /// There is such a label (`key`), or none (`!key`).
    There(bool),
    /// It has one of these values (`=`, `==`, `in`).
    In(BTreeSet<String>),
    /// It has none of them, or there is no such label (`!=`, `notin`).
    NotIn(BTreeSet<String>),
}

/// A text that selects nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{part:?} is no requirement of labels, such as tier=web, tier!=web, tier in (web, db) or !tier"
)]
pub struct SelectorError {
    part: String,
}

impl Selector {
    /// Whether an object with these labels is meant.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.all.iter().all(|Requirement { key, condition }| {
            let value = labels.get(key);
            match condition {
                Condition::There(there) => value.is_some() == *there,
                Condition::In(values) => value.is_some_and(|value| values.contains(value)),
                Condition::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            }
        })
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    /// Requirements with commas between, in the API's notation.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let parts = parts(text).into_iter().map(str::trim);
        let all = parts
            .map(|part| requirement(part).ok_or_else(|| SelectorError { part: part.to_owned() }));
        Ok(Self { all: all.collect::<Result<_, _>>()? })
    }
}

impl fmt::Display for Selector {
    /// In the API's notation; the same text is the same selection.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, Requirement { key, condition }) in self.all.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            let list = |values: &BTreeSet<String>| {
                values.iter().map(String::as_str).collect::<Vec<_>>().join(",")
            };
            match condition {
                Condition::There(true) => write!(f, "{comma}{key}")?,
                Condition::There(false) => write!(f, "{comma}!{key}")?,
                Condition::In(values) => write!(f, "{comma}{key} in ({})", list(values))?,
                Condition::NotIn(values) => write!(f, "{comma}{key} notin ({})", list(values))?,
            }
        }
        Ok(())
    }
}

/// The parts between commas that stand in no parentheses.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0_usize, 0, Vec::new());
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

fn requirement(part: &str) -> Option<Requirement> {
    let one = |value: &str| [value.to_owned()].into();
    let (key, condition) = if let Some(key) = part.strip_prefix('!') {
        (key, Condition::There(false))
    } else if let Some((key, value)) = part.split_once("!=") {
        (key, Condition::NotIn(one(is_value(value.trim())?)))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (key, Condition::In(one(is_value(value.trim())?)))
    } else if let Some((head, values)) = part.split_once('(') {
        let values = values.strip_suffix(')')?.split(',').map(str::trim);
        let values =
            values.map(|value| is_value(value).map(str::to_owned)).collect::<Option<_>>()?;
        let (key, word) = head.trim().rsplit_once(char::is_whitespace)?;
        match word {
            "in" => (key, Condition::In(values)),
            "notin" => (key, Condition::NotIn(values)),
            _ => return None,
        }
    } else {
        (part, Condition::There(true))
    };
    let key = key.trim();
    let is_key = !key.is_empty() && key.chars().all(|letter| is_letter(letter) || letter == '/');
    is_key.then(|| Requirement { key: key.to_owned(), condition })
}

fn is_value(text: &str) -> Option<&str> {
    text.chars().all(is_letter).then_some(text)
}

fn is_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[(&str, &str)]) -> Labels {
        all.iter().copied().collect()
    }

    #[test]
    fn labels_have_their_values() {
        let all = labels(&[("app", "web"), ("example.org/tier", ""), ("a\nb", "x"), ("c", "=")]);
        assert_eq!((all.get("app"), all.get("example.org/tier")), (Some("web"), Some("")));
        assert_eq!((all.get("ap"), all.get("a\nb"), all.get("c")), (None, None, None));
        assert_eq!(Labels::default().get(""), None);
    }

    #[test]
    fn selections_are_the_api_s() {
        let web = labels(&[("tier", "web"), ("env", "prod")]);
        for (text, selected) in [
            ("tier=web", true),
            ("tier == web,env=prod", true),
            ("tier=db", false),
            ("other=web", false),
            ("tier!=db", true),
            ("tier!=web", false),
            ("other!=web", true),
            ("tier in (web, db)", true),
            ("env in (test)", false),
            ("other in (web)", false),
            ("env notin (test,stage)", true),
            ("env notin (prod)", false),
            ("other notin (prod)", true),
            ("tier", true),
            ("other", false),
            ("!other", true),
            ("!tier", false),
            ("tier in (web,db), env notin (test), !other", true),
            ("tier,other", false),
            ("tier=", false),
        ] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.selects(&web), selected, "{text}");
            let again: Selector = selector.to_string().parse().unwrap();
            assert_eq!(again.selects(&web), selected, "{text}");
        }
        assert!(Selector::default().selects(&web));
        assert!("tier=".parse::<Selector>().unwrap().selects(&labels(&[("tier", "")])));
    }

    #[test]
    fn what_selects_nothing_is_an_error() {
        for bad in [
            "", ",", "a,", "=b", "a in b", "a in (b", "a of (b)", "a b", "a=b c", "a>1", "in (b)",
            "!", "a=b=c",
        ] {
            let error = bad.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains("is no requirement of labels"), "{bad}: {error}");
        }
    }
}
