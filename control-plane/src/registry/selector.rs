//! Label and field selectors.

use std::fmt;

use serde_json::{Map, Value};

use super::names;

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    In(Vec<String>),
    /// Also true when there is no such label.
    NotIn(Vec<String>),
    Exists,
    Absent,
    Above(i64),
    Below(i64),
}

/// A label selector: all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<(String, Condition)>);

/// A selector that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text does not follow the grammar.
    #[error("unable to parse requirement: found '{found}', expected: {expected}")]
    Syntax {
        /// The part that is wrong.
        found: String,
        /// What could stand there.
        expected: &'static str,
    },
    /// A key or value is no label key or value.
    #[error("unable to parse requirement: {0}")]
    Label(String),
    /// An operator that does not exist.
    #[error("{0:?} is not a valid label selector operator")]
    Operator(String),
    /// A field that can't be selected by.
    #[error("field label not supported: {0}")]
    Field(String),
}

impl Selector {
    /// Reads the text form, such as `app in (a, b), tier!=db, !old`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parts = Vec::new();
        let mut depth = 0_usize;
        let mut start = 0;
        for (at, letter) in text.char_indices() {
            match letter {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                ',' if depth == 0 => {
                    parts.push(&text[start..at]);
                    start = at + 1;
                }
                _ => {}
            }
        }
        parts.push(&text[start..]);
        if parts.iter().all(|part| part.trim().is_empty()) && parts.len() == 1 {
            return Ok(Self::default());
        }
        parts.into_iter().map(|part| requirement(part.trim())).collect::<Result<_, _>>().map(Self)
    }

    /// Reads a LabelSelector object (`matchLabels`, `matchExpressions`).
    pub fn from_object(object: &Value) -> Result<Self, SelectorError> {
        let mut conditions = Vec::new();
        for (key, value) in object["matchLabels"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            conditions.push(checked(key, Condition::In(vec![value]))?);
        }
        for one in object["matchExpressions"].as_array().into_iter().flatten() {
            let values = one["values"].as_array().into_iter().flatten();
            let values: Vec<String> = values.filter_map(Value::as_str).map(str::to_owned).collect();
            let condition = match one["operator"].as_str().unwrap_or_default() {
                "In" => Condition::In(values),
                "NotIn" => Condition::NotIn(values),
                "Exists" => Condition::Exists,
                "DoesNotExist" => Condition::Absent,
                other => return Err(SelectorError::Operator(other.to_owned())),
            };
            conditions.push(checked(one["key"].as_str().unwrap_or_default(), condition)?);
        }
        Ok(Self(conditions))
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether labels fulfil it.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.0.iter().all(|(key, condition)| {
            let value = labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
            match (condition, value) {
                (Condition::In(values), Some(value)) => values.iter().any(|one| one == value),
                (Condition::NotIn(values), Some(value)) => values.iter().all(|one| one != value),
                (Condition::NotIn(_) | Condition::Absent, None) | (Condition::Exists, Some(_)) => {
                    true
                }
                (Condition::Above(bound), Some(value)) => {
                    value.parse::<i64>().is_ok_and(|value| value > *bound)
                }
                (Condition::Below(bound), Some(value)) => {
                    value.parse::<i64>().is_ok_and(|value| value < *bound)
                }
                _ => false,
            }
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, condition)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match condition {
                Condition::In(values) if values.len() == 1 => {
                    write!(formatter, "{comma}{key}={}", values[0])
                }
                Condition::NotIn(values) if values.len() == 1 => {
                    write!(formatter, "{comma}{key}!={}", values[0])
                }
                Condition::In(values) => {
                    write!(formatter, "{comma}{key} in ({})", values.join(","))
                }
                Condition::NotIn(values) => {
                    write!(formatter, "{comma}{key} notin ({})", values.join(","))
                }
                Condition::Exists => write!(formatter, "{comma}{key}"),
                Condition::Absent => write!(formatter, "{comma}!{key}"),
                Condition::Above(bound) => write!(formatter, "{comma}{key}>{bound}"),
                Condition::Below(bound) => write!(formatter, "{comma}{key}<{bound}"),
            }?;
        }
        Ok(())
    }
}

fn syntax(found: &str, expected: &'static str) -> SelectorError {
    SelectorError::Syntax { found: found.to_owned(), expected }
}

fn checked(key: &str, condition: Condition) -> Result<(String, Condition), SelectorError> {
    if let Some(fault) = names::key_fault(key) {
        return Err(SelectorError::Label(format!("key: Invalid value: {key:?}: {fault}")));
    }
    if let Condition::In(values) | Condition::NotIn(values) = &condition {
        for value in values {
            if let Some(fault) = names::label_value_fault(value) {
                return Err(SelectorError::Label(format!(
                    "values[0][{key}]: Invalid value: {value:?}: {fault}"
                )));
            }
        }
        if values.is_empty() {
            return Err(SelectorError::Label(
                "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty"
                    .to_owned(),
            ));
        }
    }
    Ok((key.to_owned(), condition))
}

fn requirement(text: &str) -> Result<(String, Condition), SelectorError> {
    if let Some(key) = text.strip_prefix('!') {
        return checked(key.trim(), Condition::Absent);
    }
    let end = text
        .find(|letter: char| letter.is_whitespace() || "=!<>(".contains(letter))
        .unwrap_or(text.len());
    let (key, rest) = text.split_at(end);
    let rest = rest.trim();
    if key.is_empty() {
        return Err(syntax(rest, "!, identifier, or 'end of string'"));
    }
    let number = |bound: &str| {
        bound.trim().parse().map_err(|_| {
            SelectorError::Label(
                "for 'Gt', 'Lt' operators, the value must be an integer".to_owned(),
            )
        })
    };
    let condition = if rest.is_empty() {
        Condition::Exists
    } else if let Some(value) = rest.strip_prefix("!=") {
        Condition::NotIn(vec![value.trim().to_owned()])
    } else if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
        Condition::In(vec![value.trim().to_owned()])
    } else if let Some(bound) = rest.strip_prefix('>') {
        Condition::Above(number(bound)?)
    } else if let Some(bound) = rest.strip_prefix('<') {
        Condition::Below(number(bound)?)
    } else if let Some(values) = rest.strip_prefix("notin") {
        Condition::NotIn(set(values)?)
    } else if let Some(values) = rest.strip_prefix("in") {
        Condition::In(set(values)?)
    } else {
        return Err(syntax(rest, "in, notin, =, ==, !=, gt, lt"));
    };
    checked(key, condition)
}

fn set(text: &str) -> Result<Vec<String>, SelectorError> {
    let inner = text.trim().strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    let inner = inner.ok_or_else(|| syntax(text.trim(), "'('"))?;
    Ok(inner.split(',').map(|value| value.trim().to_owned()).collect())
}

/// A field selector: label, whether it must be equal, value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, bool, String)>);

impl Fields {
    /// Reads the text form, such as `spec.nodeName=a,status.phase!=Failed`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut conditions = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let at = part.find('=').ok_or_else(|| syntax(&part, "=, ==, !="))?;
            let (key, value) = (&part[..at], &part[at + 1..]);
            let (key, equal) = match key.strip_suffix('!') {
                Some(key) => (key, false),
                None => (key, true),
            };
            let value = if equal { value.strip_prefix('=').unwrap_or(value) } else { value };
            conditions.push((key.to_owned(), equal, unescape(value)));
        }
        Ok(Self(conditions))
    }

    /// The value that the selector demands of a field, if it demands one.
    pub fn exact(&self, label: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, equal, _)| *equal && key == label)
            .map(|(_, _, value)| value.as_str())
    }
}

/// Splits at commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for letter in text.chars() {
        if letter == ',' && !escaped {
            parts.push(String::new());
            continue;
        }
        if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
        escaped = letter == '\\' && !escaped;
    }
    parts
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        out.extend(if letter == '\\' { letters.next() } else { Some(letter) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn condition() -> impl Strategy<Value = Condition> {
        let values = prop::collection::vec("[a-z0-9]([a-z0-9_.-]{0,8}[a-z0-9])?", 1..4);
        prop_oneof![
            values.clone().prop_map(Condition::In),
            values.prop_map(Condition::NotIn),
            Just(Condition::Exists),
            Just(Condition::Absent),
            any::<i64>().prop_map(Condition::Above),
            any::<i64>().prop_map(Condition::Below),
        ]
    }

    proptest! {
        /// The text form says everything: reading it gives the selector back.
        #[test]
        fn text_and_back(conditions in prop::collection::vec(("([a-z]{1,5}\\.io/)?[a-z]([a-z_.-]{0,8}[a-z])?", condition()), 0..5)) {
            let selector = Selector(conditions);
            prop_assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
        }

        /// No text makes the parser fail in another way than by an error.
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = Selector::parse(&text);
            let _ = Fields::parse(&text);
        }
    }

    fn matches(selector: &str, labels: &Value) -> bool {
        Selector::parse(selector).unwrap().matches(labels.as_object())
    }

    #[test]
    fn inv_55_every_operator() {
        let labels = json!({"app": "web", "tier": "front", "n": "5", "x.io/y": ""});
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app = db", false),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("other notin (a)", true),
            ("other!=a", true),
            ("other=a", false),
            ("app", true),
            ("!app", false),
            ("!other,x.io/y", true),
            ("x.io/y=", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("app in (web),tier in (front,back)", true),
        ] {
            assert_eq!(matches(selector, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn bad_selectors_are_refused() {
        for text in ["app in web", "app in ()x", "a=b,,c", "=x", "a b", "app=b@d", "-a", "n>x"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn inv_57_labels_and_expressions() {
        let selector = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "NotIn", "values": ["db"]},
                {"key": "gone", "operator": "DoesNotExist"},
            ],
        });
        let selector = Selector::from_object(&selector).unwrap();
        assert!(selector.matches(json!({"app": "web", "more": "yes"}).as_object()));
        assert!(!selector.matches(json!({"app": "web", "tier": "db"}).as_object()));
        assert!(!selector.matches(None));
    }

    #[test]
    fn field_selectors() {
        let fields = Fields::parse("metadata.name=a,spec.nodeName!=b,x==c\\,d\\=e").unwrap();
        let expected =
            [("metadata.name", true, "a"), ("spec.nodeName", false, "b"), ("x", true, "c,d=e")];
        let found: Vec<_> = fields
            .0
            .iter()
            .map(|(key, equal, value)| (key.as_str(), *equal, value.as_str()))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(fields.exact("spec.nodeName"), None);
        assert!(Fields::parse("nonsense").is_err());
    }
}
