//! The types of Kubernetes' API as tables: which fields an object has, how JSON and protobuf write
//! them, and how lists merge. Decoding, field validation and strategic merge patches read them.
//!
//! The tables are `types/PACKAGE.txt`, made by `cargo xtask schemas`. A type is a line with its
//! name and a line for each field: JSON name (`+` for an embedded type), number in protobuf, type,
//! and how it merges.

pub mod check;
pub mod protobuf;
pub mod quantity;
mod time;

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::registry::Kind;

/// The tables.
const TABLES: &[(&str, &str)] = &[
    ("apps.v1", include_str!("types/apps.v1.txt")),
    ("authentication.v1", include_str!("types/authentication.v1.txt")),
    ("authorization.v1", include_str!("types/authorization.v1.txt")),
    ("autoscaling.v1", include_str!("types/autoscaling.v1.txt")),
    ("autoscaling.v2", include_str!("types/autoscaling.v2.txt")),
    ("batch.v1", include_str!("types/batch.v1.txt")),
    ("certificates.v1", include_str!("types/certificates.v1.txt")),
    ("coordination.v1", include_str!("types/coordination.v1.txt")),
    ("core.v1", include_str!("types/core.v1.txt")),
    ("discovery.v1", include_str!("types/discovery.v1.txt")),
    ("events.v1", include_str!("types/events.v1.txt")),
    ("meta.v1", include_str!("types/meta.v1.txt")),
    ("networking.v1", include_str!("types/networking.v1.txt")),
    ("node.v1", include_str!("types/node.v1.txt")),
    ("policy.v1", include_str!("types/policy.v1.txt")),
    ("rbac.v1", include_str!("types/rbac.v1.txt")),
    ("scheduling.v1", include_str!("types/scheduling.v1.txt")),
    ("storage.v1", include_str!("types/storage.v1.txt")),
];

static SCHEMA: LazyLock<HashMap<String, Type>> = LazyLock::new(read);

/// A type with fields.
#[derive(Debug, PartialEq, Eq)]
pub struct Type {
    /// Name, such as `core.v1.Pod`.
    pub name: String,
    /// Its own fields.
    fields: Vec<Field>,
    /// Types whose fields are the type's own in JSON, and their numbers in protobuf.
    embedded: Vec<(u32, Shape)>,
}

/// A field of a type.
#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    /// Name in JSON.
    pub name: &'static str,
    /// Number in protobuf; 0 if it is not written there.
    pub number: u32,
    /// What it holds.
    pub shape: Shape,
    /// Whether "empty" and "not set" are two things: no empty value is dropped.
    pub keeps_empty: bool,
    /// How patches merge it.
    pub merge: Merge,
}

/// What a field holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Shape {
    /// Text.
    String,
    /// `true` or `false`.
    Bool,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// Bytes, base64 in JSON.
    Bytes,
    /// Any JSON.
    Raw,
    /// `resource.Quantity`.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// A time of seconds.
    Time,
    /// A time of microseconds.
    MicroTime,
    /// A duration.
    Duration,
    /// An object of a type, by name.
    Object(&'static str),
    /// A list.
    List(Box<Shape>),
    /// A list that protobuf wraps in a message.
    Wrapped(Box<Shape>),
    /// A map from texts.
    Map(Box<Shape>),
}

/// How a strategic merge patch treats a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Maps and objects are merged, lists and the rest are replaced.
    Plain,
    /// As [`Merge::Plain`], of which `$retainKeys` keeps some keys.
    Retain,
    /// A list of plain values as a set.
    Set,
    /// A list of objects that are the same when this field is.
    Key(&'static str),
    /// As [`Merge::Key`], and items obey `$retainKeys`.
    KeyRetain(&'static str),
}

impl Type {
    /// The field of this name, embedded types' fields included.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .iter()
            .find(|field| field.name == name)
            .or_else(|| self.embedded_types().find_map(|(_, inner)| inner.field(name)))
    }

    /// The embedded types and their numbers in protobuf.
    fn embedded_types(&self) -> impl Iterator<Item = (u32, &'static Self)> {
        self.embedded.iter().filter_map(|(number, shape)| Some((*number, shape.object()?)))
    }

    /// The name without its package.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

impl Shape {
    /// The type of the object, if it is one.
    pub fn object(&self) -> Option<&'static Type> {
        match self {
            Self::Object(name) => named(name),
            _ => None,
        }
    }

    /// The type of the object or of the list's items.
    pub fn innermost(&self) -> Option<&'static Type> {
        match self {
            Self::List(item) => item.innermost(),
            other => other.object(),
        }
    }

    fn parse(text: &'static str) -> Self {
        if let Some(item) = text.strip_prefix("[]") {
            return Self::List(Box::new(Self::parse(item)));
        }
        if let Some(item) = text.strip_prefix("()") {
            return Self::Wrapped(Box::new(Self::parse(item)));
        }
        if let Some(item) = text.strip_prefix("{}") {
            return Self::Map(Box::new(Self::parse(item)));
        }
        match text {
            "string" => Self::String,
            "bool" => Self::Bool,
            "int32" => Self::Int32,
            "int64" => Self::Int64,
            "bytes" => Self::Bytes,
            "raw" => Self::Raw,
            "quantity" => Self::Quantity,
            "intorstring" => Self::IntOrString,
            "time" => Self::Time,
            "microtime" => Self::MicroTime,
            "duration" => Self::Duration,
            name => Self::Object(name),
        }
    }
}

/// The type of this name, such as `core.v1.Pod`.
pub fn named(name: &str) -> Option<&'static Type> {
    SCHEMA.get(name)
}

/// The type of a kind's objects.
pub fn of(kind: &Kind) -> Option<&'static Type> {
    find(kind.group, kind.version, kind.kind)
}

/// The type of a group's, version's and kind's objects.
pub fn find(group: &str, version: &str, kind: &str) -> Option<&'static Type> {
    let package = match group.split('.').next() {
        None | Some("") => "core",
        Some(first) => first,
    };
    named(&format!("{package}.{version}.{kind}"))
        // Options and answers are sent in the version of whatever they are about.
        .or_else(|| named(&format!("meta.v1.{kind}")))
}

fn read() -> HashMap<String, Type> {
    let mut types = HashMap::with_capacity(700);
    for (package, table) in TABLES {
        let paragraphs = table.split("\n\n").skip(1);
        types.extend(paragraphs.map(|paragraph| {
            let of_one = one(package, paragraph);
            (of_one.name.clone(), of_one)
        }));
    }
    types
}

/// Reads a type's paragraph.
fn one(package: &str, paragraph: &'static str) -> Type {
    let mut lines = paragraph.lines();
    let name = format!("{package}.{}", lines.next().unwrap_or_default());
    let (mut fields, mut embedded) = (Vec::new(), Vec::new());
    for line in lines {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let number = words.next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let shape = words.next().unwrap_or_default();
        if name == "+" {
            embedded.push((number, Shape::parse(shape)));
            continue;
        }
        let (mut merge, mut retain, mut always) = (Merge::Plain, false, false);
        for word in words {
            match (word, word.strip_prefix("key=")) {
                (_, Some(key)) => merge = Merge::Key(key),
                ("set", _) => merge = Merge::Set,
                ("retain", _) => retain = true,
                ("always", _) => always = true,
                _ => {}
            }
        }
        let merge = match (merge, retain) {
            (Merge::Plain, true) => Merge::Retain,
            (Merge::Key(key), true) => Merge::KeyRetain(key),
            (merge, _) => merge,
        };
        let (pointer, shape) = match shape.strip_prefix('*') {
            Some(inner) => (true, inner),
            None => (false, shape),
        };
        let shape = Shape::parse(shape);
        fields.push(Field { name, number, shape, keeps_empty: pointer || always, merge });
    }
    Type { name, fields, embedded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn references(shape: &Shape) -> Option<&'static str> {
        match shape {
            Shape::Object(name) => Some(name),
            Shape::List(item) | Shape::Map(item) | Shape::Wrapped(item) => references(item),
            _ => None,
        }
    }

    #[test]
    fn every_type_that_is_named_is_there() {
        assert!(SCHEMA.len() > 400, "{}", SCHEMA.len());
        for one in SCHEMA.values() {
            let shapes = one.fields.iter().map(|field| &field.shape);
            for shape in shapes.chain(one.embedded.iter().map(|(_, shape)| shape)) {
                assert!(
                    references(shape).is_none_or(|name| named(name).is_some()),
                    "{shape:?} in {}",
                    one.name
                );
            }
        }
    }

    #[test]
    fn every_kind_has_a_type_with_metadata() {
        for kind in Registry::default().kinds() {
            let found = of(kind).unwrap_or_else(|| panic!("{kind:?} has no type"));
            let metadata = found.field("metadata").and_then(|field| field.shape.object());
            assert_eq!(metadata.map(|one| one.name.as_str()), Some("meta.v1.ObjectMeta"));
        }
    }

    #[test]
    fn fields_merges_and_embedded_types() {
        let volume = named("core.v1.Volume").unwrap();
        assert_eq!(volume.field("emptyDir").unwrap().number, 2);
        let spec = named("core.v1.PodSpec").unwrap();
        assert_eq!(spec.field("containers").unwrap().merge, Merge::Key("name"));
        assert_eq!(spec.field("volumes").unwrap().merge, Merge::KeyRetain("name"));
        let meta = named("meta.v1.ObjectMeta").unwrap();
        assert_eq!(meta.field("finalizers").unwrap().merge, Merge::Set);
        let strategy = named("apps.v1.DeploymentSpec").unwrap().field("strategy").unwrap();
        assert_eq!(strategy.merge, Merge::Retain);
        assert_eq!(named("core.v1.PodSpec").unwrap().field("nothing"), None);
        assert!(find("apps", "v1", "DeleteOptions").is_some());
    }
}
