//! Reads a KubeProxyConfiguration by the [table](super::table). The reader of YAML adds the place to
//! an error that is raised where it reads: each is, and names what was expected there.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};

use super::{
    API_VERSION, KIND, Value, Values, listen_address,
    table::{FIELDS, Field, Form},
};
use crate::kube::convert::{parse_cidr, parse_ip};

/// The values of a file.
pub(super) fn read(text: &str) -> Result<Values, serde_yaml_ng::Error> {
    let mut values = Values::default();
    let section = Section { path: String::new(), values: &mut values };
    section.deserialize(serde_yaml_ng::Deserializer::from_str(text))?;
    for (path, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        if !values.0.contains_key(path) {
            return Err(Error::custom(format!("{path} is missing, and must be {expected:?}")));
        }
    }
    // What another mode needs is asked for only there.
    for (mode, path) in [
        ("BridgeInterface", "detectLocal.bridgeInterface"),
        ("InterfaceNamePrefix", "detectLocal.interfaceNamePrefix"),
    ] {
        if values.text("detectLocalMode") == Some(mode) && values.text(path).is_none() {
            return Err(Error::custom(format!("detectLocalMode {mode} needs {path}")));
        }
    }
    Ok(values)
}

/// The fields of which this is the path, or the beginning of it.
fn below(path: &str) -> impl Iterator<Item = &'static Field> {
    FIELDS.iter().filter(move |field| {
        let rest = field.path.strip_prefix(path);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// The names that may stand in the section `path`, which is empty for the file itself.
fn names(path: &str) -> Vec<&'static str> {
    let start = if path.is_empty() { 0 } else { path.len() + 1 };
    let fields =
        FIELDS.iter().filter(|field| start == 0 || below(path).any(|it| it.path == field.path));
    let mut names: Vec<_> =
        fields.filter_map(|field| field.path.get(start..)?.split('.').next()).collect();
    names.dedup();
    names
}

/// A part of the file with named values.
struct Section<'a> {
    path: String,
    values: &'a mut Values,
}

impl<'de> DeserializeSeed<'de> for Section<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Section<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "named values: {}", names(&self.path).join(", "))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    /// A file of nothing but comments.
    fn visit_none<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = Vec::new();
        while let Some(path) = map.next_key_seed(Name { section: &self.path, seen: &seen })? {
            if let Some(field) = FIELDS.iter().find(|field| field.path == path) {
                if let Some(value) = map.next_value_seed(Leaf(field))? {
                    self.values.0.insert(field.path, value);
                }
            } else {
                map.next_value_seed(Section { path: path.clone(), values: &mut *self.values })?;
            }
            seen.push(path);
        }
        Ok(())
    }
}

/// A name in a section; becomes the path.
struct Name<'a> {
    section: &'a str,
    seen: &'a [String],
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<String, E> {
        let names = names(self.section);
        if !names.contains(&name) {
            let names = names.join(", ");
            return Err(E::custom(format!("unknown field `{name}`, expected one of: {names}")));
        }
        let path = match self.section {
            "" => name.to_owned(),
            section => format!("{section}.{name}"),
        };
        if self.seen.contains(&path) {
            return Err(E::custom(format!("the field `{name}` is there twice")));
        }
        Ok(path)
    }
}

/// The value of a field; none where it is null.
struct Leaf(&'static Field);

impl<'de> DeserializeSeed<'de> for Leaf {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Leaf {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.form {
            Form::Bool => f.write_str("true or false"),
            Form::Integer { least, most } => write!(f, "a number from {least} to {most}"),
            Form::Number => f.write_str("a number"),
            Form::Text => f.write_str("text"),
            Form::Address => f.write_str("an address such as 0.0.0.0 or ::"),
            Form::Word(words) => write!(f, "one of {}, or nothing", words.join(", ")),
            Form::Duration => f.write_str("a duration such as 30s or 1h30m"),
            Form::DurationOrNumber => f.write_str("a duration such as 5s, or nanoseconds"),
            Form::ListenAddress(port) => write!(f, "an address such as 0.0.0.0:{port}"),
            Form::Ranges => f.write_str("ranges such as 10.244.0.0/16, with a comma between them"),
            Form::NodePortAddresses => f.write_str(
                "a list of ranges such as 192.0.2.0/24, `localhost` or `all`, or `primary` alone",
            ),
            Form::Texts => f.write_str("a list of texts"),
            Form::Gates => f.write_str("names with true or false"),
            Form::Anything => f.write_str("any value"),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        match self.0.form {
            Form::Bool => Ok(Some(Value::Bool(value))),
            Form::Anything => Ok(Some(Value::Other(value))),
            _ => Err(E::invalid_type(Unexpected::Bool(value), &self)),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        match self.0.form {
            Form::Integer { least, most } if (least..=most).contains(&value) => {
                Ok(Some(Value::Integer(value)))
            }
            Form::Integer { .. } => Err(E::invalid_value(Unexpected::Signed(value), &self)),
            Form::Number | Form::DurationOrNumber | Form::Anything => {
                Ok(Some(Value::Integer(value)))
            }
            _ => Err(E::invalid_type(Unexpected::Signed(value), &self)),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => Err(E::invalid_value(Unexpected::Unsigned(value), &self)),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        match self.0.form {
            Form::Number | Form::Anything => Ok(Some(Value::Other(value != 0.0))),
            _ => Err(E::invalid_type(Unexpected::Float(value), &self)),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let unexpected = Unexpected::Str(text);
        let holds = |right: bool| {
            let value = Some(Value::Text(text.to_owned()));
            if right { Ok(value) } else { Err(E::invalid_value(unexpected, &self)) }
        };
        match self.0.form {
            Form::Text => match header(self.0.path) {
                Some(expected) if text != expected => {
                    let path = self.0.path;
                    Err(E::custom(format!("{path} is {text:?}, and must be {expected:?}")))
                }
                _ => holds(true),
            },
            Form::Address => holds(text.is_empty() || parse_ip(text).is_some()),
            Form::Word(words) => holds(text.is_empty() || words.contains(&text)),
            Form::Duration | Form::DurationOrNumber => match duration(text) {
                Some(some) => Ok(Some(Value::Other(some))),
                None => holds(false),
            },
            Form::ListenAddress(port) => {
                holds(text.is_empty() || listen_address(text, port).is_some())
            }
            Form::Ranges => holds(text.is_empty() || text.split(',').all(is_range)),
            Form::Anything => Ok(Some(Value::Other(!text.is_empty() && text != "0"))),
            _ => Err(E::invalid_type(unexpected, &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut texts: Vec<String> = Vec::new();
        match self.0.form {
            Form::Texts => {
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
            }
            Form::NodePortAddresses => {
                while let Some(text) = list.next_element_seed(NodePortAddress)? {
                    texts.push(text);
                }
                if texts.len() > 1 && texts.iter().any(|text| text == "primary") {
                    return Err(A::Error::invalid_value(Unexpected::Seq, &self));
                }
            }
            Form::Anything => {
                let first: Option<IgnoredAny> = list.next_element()?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(Some(Value::Other(first.is_some())));
            }
            _ => return Err(A::Error::invalid_type(Unexpected::Seq, &self)),
        }
        Ok(Some(Value::Texts(texts)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut any = false;
        match self.0.form {
            Form::Gates => {
                while map.next_entry::<String, bool>()?.is_some() {
                    any = true;
                }
            }
            Form::Anything => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    any = true;
                }
            }
            _ => return Err(A::Error::invalid_type(Unexpected::Map, &self)),
        }
        Ok(Some(Value::Other(any)))
    }
}

/// What the fields that say what the file is have to say.
fn header(path: &str) -> Option<&'static str> {
    match path {
        "apiVersion" => Some(API_VERSION),
        "kind" => Some(KIND),
        _ => None,
    }
}

fn is_range(text: &str) -> bool {
    parse_cidr(text.trim()).is_some()
}

/// One of the addresses that take node ports.
struct NodePortAddress;

impl<'de> DeserializeSeed<'de> for NodePortAddress {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NodePortAddress {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a range such as 192.0.2.0/24, `primary`, `localhost` or `all`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        if ["primary", "localhost", "all"].contains(&text) || is_range(text) {
            Ok(text.to_owned())
        } else {
            Err(E::invalid_value(Unexpected::Str(text), &self))
        }
    }
}

/// Whether a duration as Go writes it is another than zero; none where it is no duration.
fn duration(text: &str) -> Option<bool> {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    if text == "0" {
        return Some(false);
    }
    let (mut rest, mut some) = (text, None);
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(number_end);
        let number: f64 = number.parse().ok()?;
        let unit_end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit_end);
        ["ns", "us", "µs", "ms", "s", "m", "h"].contains(&unit).then_some(())?;
        some = Some(some.unwrap_or(false) || number != 0.0);
        rest = behind;
    }
    some
}
