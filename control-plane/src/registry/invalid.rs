//! Field errors with Kubernetes' wording.

use std::fmt;

use serde_json::{Value, json};

/// What Kubernetes says of a field that may not change.
pub const IMMUTABLE: &str = "field is immutable";

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// It must be there.
    Required(String),
    /// Its value is not allowed, and why.
    Invalid(Value, String),
    /// It is not allowed as it is, and why: the value says nothing more.
    Wrong(String),
    /// Its value is none of these.
    NotSupported(Value, Vec<String>),
    /// It must not be there, and why.
    Forbidden(String),
    /// Its value occurs twice.
    Duplicate(Value),
    /// It has more than so many bytes.
    TooLong(usize),
    /// It names what is not there.
    NotFound(Value),
    /// It has so many items, and may have so many.
    TooMany(usize, usize),
}

/// A field and what is wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Path as users write it: `spec.ports[0].port`.
    pub field: String,
    /// What is wrong.
    pub fault: Fault,
}

impl FieldError {
    /// `reason` of the cause in a Status.
    pub fn reason(&self) -> &'static str {
        match self.fault {
            Fault::Required(_) => "FieldValueRequired",
            Fault::Invalid(..) | Fault::Wrong(_) => "FieldValueInvalid",
            Fault::NotSupported(..) => "FieldValueNotSupported",
            Fault::Forbidden(_) => "FieldValueForbidden",
            Fault::Duplicate(_) => "FieldValueDuplicate",
            Fault::TooLong(_) => "FieldValueTooLong",
            Fault::NotFound(_) => "FieldValueNotFound",
            Fault::TooMany(..) => "FieldValueTooMany",
        }
    }

    /// The message without the field.
    pub fn body(&self) -> String {
        match &self.fault {
            Fault::Required(detail) if detail.is_empty() => "Required value".to_owned(),
            Fault::Required(detail) => format!("Required value: {detail}"),
            Fault::Invalid(value, detail) => format!("Invalid value: {value}: {detail}"),
            Fault::Wrong(detail) => format!("Invalid value: {detail}"),
            Fault::NotSupported(value, allowed) => {
                let allowed: Vec<String> = allowed.iter().map(|one| format!("{one:?}")).collect();
                format!("Unsupported value: {value}: supported values: {}", allowed.join(", "))
            }
            Fault::Forbidden(detail) => format!("Forbidden: {detail}"),
            Fault::Duplicate(value) => format!("Duplicate value: {value}"),
            Fault::TooLong(most) => format!("Too long: may not be more than {most} bytes"),
            Fault::NotFound(value) => format!("Not found: {value}"),
            Fault::TooMany(found, most) => {
                format!("Too many: {found}: must have at most {most} items")
            }
        }
    }

    /// The cause as it stands in a Status.
    pub fn cause(&self) -> Value {
        json!({"reason": self.reason(), "message": self.body(), "field": self.field})
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.field, self.body())
    }
}

/// The errors of one object, in the order found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    fn push(&mut self, field: impl Into<String>, fault: Fault) {
        self.0.push(FieldError { field: field.into(), fault });
    }

    /// A field that must be there.
    pub fn required(&mut self, field: impl Into<String>, detail: &str) {
        self.push(field, Fault::Required(detail.to_owned()));
    }

    /// A value that is not allowed.
    pub fn invalid(
        &mut self,
        field: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) {
        self.push(field, Fault::Invalid(value.into(), detail.into()));
    }

    /// A field that is not allowed as it is; its value is not shown.
    pub fn wrong(&mut self, field: impl Into<String>, detail: &str) {
        self.push(field, Fault::Wrong(detail.to_owned()));
    }

    /// A value outside an enumeration.
    pub fn not_supported(
        &mut self,
        field: impl Into<String>,
        value: impl Into<Value>,
        allowed: &[&str],
    ) {
        let allowed = allowed.iter().map(|&one| one.to_owned()).collect();
        self.push(field, Fault::NotSupported(value.into(), allowed));
    }

    /// A field that must not be there, or not so.
    pub fn forbidden(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.push(field, Fault::Forbidden(detail.into()));
    }

    /// A value that occurs twice.
    pub fn duplicate(&mut self, field: impl Into<String>, value: impl Into<Value>) {
        self.push(field, Fault::Duplicate(value.into()));
    }

    /// A value that is too long.
    pub fn too_long(&mut self, field: impl Into<String>, most: usize) {
        self.push(field, Fault::TooLong(most));
    }

    /// A value that names what is not there.
    pub fn not_found(&mut self, field: impl Into<String>, value: impl Into<Value>) {
        self.push(field, Fault::NotFound(value.into()));
    }

    /// A list that is too long.
    pub fn too_many(&mut self, field: impl Into<String>, found: usize, most: usize) {
        self.push(field, Fault::TooMany(found, most));
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Errors {
    /// What is found twice is said once.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut texts: Vec<String> = Vec::new();
        for text in self.0.iter().map(ToString::to_string) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        match texts.as_slice() {
            [one] => write!(formatter, "{one}"),
            many => write!(formatter, "[{}]", many.join(", ")),
        }
    }
}

/// A JSON pointer as users write a field: `/spec/clusterIP` is `spec.clusterIP`.
pub fn field_of(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}
