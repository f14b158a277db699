//! Kubernetes' protobuf encoding (`application/vnd.kubernetes.protobuf`) to JSON.
//!
//! A body is four magic bytes and a `runtime.Unknown`: the type's name, and the object as bytes.
//! Go writes every field that is no pointer, also when it is empty; what JSON would leave out is
//! left out here as well.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde_json::{Map, Value, json};

use super::{Field, Shape, Type, find, time};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What precedes every body.
const MAGIC: &[u8] = b"k8s\0";

/// A body that is not what it says it is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The first bytes are others.
    #[error("provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}")]
    Prefix,
    /// The server has no such type.
    #[error("no kind {kind:?} is registered for version {version:?}")]
    UnknownKind {
        /// `apiVersion`.
        version: String,
        /// `kind`.
        kind: String,
    },
    /// The bytes are no message of the type.
    #[error("cannot decode the message of type {message}: {reason}")]
    Broken {
        /// The type.
        message: String,
        /// Why.
        reason: String,
    },
}

/// One field as it stands in a message.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(&self) -> Result<&'a [u8], String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err("a number stands where bytes are expected".to_owned()),
        }
    }

    /// The number, in two's complement.
    fn number(&self) -> Result<i64, String> {
        match self {
            Self::Number(number) => Ok(number.cast_signed()),
            Self::Bytes(_) => Err("bytes stand where a number is expected".to_owned()),
        }
    }

    fn text(&self) -> Result<String, String> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|error| error.to_string())
    }
}

/// Decodes a body into the JSON that means the same.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let unknown = body.strip_prefix(MAGIC).ok_or(ProtobufError::Prefix)?;
    let envelope = |reason| ProtobufError::Broken { message: "runtime.Unknown".to_owned(), reason };
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    each(unknown, |number, wire| {
        match number {
            1 => each(wire.bytes()?, |number, wire| {
                match number {
                    1 => version = wire.text()?,
                    2 => kind = wire.text()?,
                    _ => {}
                }
                Ok(())
            })?,
            2 => raw = wire.bytes()?,
            _ => {}
        }
        Ok(())
    })
    .map_err(envelope)?;
    let (group, bare) = version.split_once('/').unwrap_or(("", &version));
    let Some(found) = find(group, bare, &kind) else {
        return Err(ProtobufError::UnknownKind { version, kind });
    };
    let mut object = message(found, raw)
        .map_err(|reason| ProtobufError::Broken { message: found.name.clone(), reason })?;
    object.insert("apiVersion".to_owned(), version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

/// Visits the fields of a message in their order.
fn each<'a>(
    mut rest: &'a [u8],
    mut visit: impl FnMut(u32, Wire<'a>) -> Result<(), String>,
) -> Result<(), String> {
    while !rest.is_empty() {
        let (number, kind) = decode_key(&mut rest).map_err(|error| error.to_string())?;
        match kind {
            WireType::Varint => {
                let value = decode_varint(&mut rest).map_err(|error| error.to_string())?;
                visit(number, Wire::Number(value))?;
            }
            WireType::LengthDelimited => {
                let length = decode_varint(&mut rest).map_err(|error| error.to_string())?;
                let bytes = usize::try_from(length).ok().and_then(|at| rest.split_at_checked(at));
                let (bytes, after) = bytes.ok_or("a field is longer than its message")?;
                rest = after;
                visit(number, Wire::Bytes(bytes))?;
            }
            other => skip_field(other, number, &mut rest, DecodeContext::default())
                .map_err(|error| error.to_string())?,
        }
    }
    Ok(())
}

fn message(of: &Type, bytes: &[u8]) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    each(bytes, |number, wire| {
        if let Some(field) = of.fields.iter().find(|field| field.number == number) {
            return put(field, &wire, &mut object)
                .map_err(|reason| format!("field {}: {reason}", field.name));
        }
        // Numbers that nobody knows are of newer clients.
        if let Some((_, inner)) = of.embedded_types().find(|(own, _)| *own == number) {
            object.extend(message(inner, wire.bytes()?)?);
        }
        Ok(())
    })?;
    Ok(object)
}

/// Adds what one occurrence of a field says.
fn put(field: &Field, wire: &Wire<'_>, object: &mut Map<String, Value>) -> Result<(), String> {
    match &field.shape {
        Shape::List(item) => {
            let list = object.entry(field.name).or_insert_with(|| json!([]));
            if let (Value::Array(list), Some(value)) = (list, value(item, wire)?) {
                list.push(value);
            }
        }
        Shape::Map(item) => {
            let (mut key, mut held) = (String::new(), None);
            each(wire.bytes()?, |number, wire| {
                match number {
                    1 => key = wire.text()?,
                    2 => held = value(item, &wire)?,
                    _ => {}
                }
                Ok(())
            })?;
            let map = object.entry(field.name).or_insert_with(|| json!({}));
            map[key] = held.unwrap_or_else(|| empty(item));
        }
        shape => {
            if let Some(value) = value(shape, wire)?
                && (field.keeps_empty || !is_empty(&value))
            {
                object.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// What a map holds at a key without a value.
fn empty(shape: &Shape) -> Value {
    match shape {
        Shape::List(_) | Shape::Wrapped(_) => json!([]),
        Shape::Object(_) | Shape::Map(_) => json!({}),
        Shape::Bool => false.into(),
        Shape::Int32 | Shape::Int64 => 0.into(),
        _ => "".into(),
    }
}

/// Whether JSON leaves the value out of a field that need not be there.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Object(_) => false,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
    }
}

/// A value in JSON; `None` if it says "not set".
fn value(shape: &Shape, wire: &Wire<'_>) -> Result<Option<Value>, String> {
    Ok(Some(match shape {
        Shape::String => wire.text()?.into(),
        Shape::Bool => (wire.number()? != 0).into(),
        Shape::Int32 | Shape::Int64 => wire.number()?.into(),
        Shape::Bytes => STANDARD.encode(wire.bytes()?).into(),
        Shape::Object(_) => {
            let of = shape.object().ok_or("the type is not known")?;
            Value::Object(message(of, wire.bytes()?)?)
        }
        Shape::Quantity => parts(wire)?.text.into(),
        Shape::IntOrString => {
            let parts = parts(wire)?;
            if parts.numbers[1] == 0 { parts.numbers[2].into() } else { parts.text.into() }
        }
        Shape::Raw => match parts(wire)?.text {
            text if text.is_empty() => return Ok(None),
            text => serde_json::from_str(&text).map_err(|error| error.to_string())?,
        },
        Shape::Time | Shape::MicroTime => {
            let [_, seconds, nanos, _] = parts(wire)?.numbers;
            // The zero time of Go is written as no fields, or as the year 1.
            if seconds <= 0 && nanos == 0 {
                return Ok(None);
            }
            let nanos = i32::try_from(nanos).unwrap_or_default();
            let text = time::text(seconds, nanos, *shape == Shape::MicroTime);
            text.ok_or("the time is out of range")?.into()
        }
        Shape::Duration => time::duration(parts(wire)?.numbers[1]).into(),
        Shape::Wrapped(item) => {
            let mut list = Vec::new();
            each(wire.bytes()?, |_, wire| {
                list.extend(value(item, &wire)?);
                Ok(())
            })?;
            Value::Array(list)
        }
        Shape::List(_) | Shape::Map(_) => return Err("a list or map holds a list or map".into()),
    }))
}

/// What the small messages of special types hold.
#[derive(Default)]
struct Parts {
    /// Numbers by their field's number, up to 3.
    numbers: [i64; 4],
    /// The last text.
    text: String,
}

fn parts(wire: &Wire<'_>) -> Result<Parts, String> {
    let mut parts = Parts::default();
    each(wire.bytes()?, |number, wire| {
        match wire {
            Wire::Bytes(_) => parts.text = wire.text()?,
            Wire::Number(_) => {
                let slot = usize::try_from(number).ok().and_then(|at| parts.numbers.get_mut(at));
                if let Some(slot) = slot {
                    *slot = wire.number()?;
                }
            }
        }
        Ok(())
    })?;
    Ok(parts)
}

#[cfg(test)]
mod tests;
