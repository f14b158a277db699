//! Checks an object against its type, as a typed decoder would: fields that the type does not have
//! are dropped and named, values of another type are an error, and what is empty is left out
//! where that means the same.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::protobuf::is_empty;
use super::{Shape, Type, quantity, time};

/// A value that its field can't hold. The text is what Kubernetes' decoder says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Mismatch(String);

/// Brings an object into its type's form. Returns the fields that the type does not have, as
/// users write them.
pub fn conform(of: &Type, object: &mut Value) -> Result<Vec<String>, Mismatch> {
    let mut walk = Walk { unknown: Vec::new(), path: Vec::new() };
    if let Value::Object(fields) = object {
        walk.object(of, fields)?;
    }
    Ok(walk.unknown)
}

/// A step on the way to a field.
enum Step {
    Field(String),
    Key(String),
    Index(usize),
}

struct Walk {
    unknown: Vec<String>,
    path: Vec<Step>,
}

impl Walk {
    /// `spec.containers[0].name`.
    fn place(&self, last: &str) -> String {
        let mut place = String::new();
        let separate = |place: &mut String| {
            if !place.is_empty() {
                place.push('.');
            }
        };
        for step in &self.path {
            match step {
                Step::Field(name) | Step::Key(name) => {
                    separate(&mut place);
                    place.push_str(name);
                }
                Step::Index(index) => drop(write!(place, "[{index}]")),
            }
        }
        separate(&mut place);
        place + last
    }

    fn object(&mut self, of: &Type, fields: &mut Map<String, Value>) -> Result<(), Mismatch> {
        let names: Vec<String> = fields.keys().cloned().collect();
        for name in names {
            let Some(field) = of.field(&name) else {
                self.unknown.push(self.place(&name));
                fields.remove(&name);
                continue;
            };
            let Some(value) = fields.get_mut(&name) else { continue };
            self.path.push(Step::Field(name.clone()));
            self.value(&field.shape, value, of)?;
            self.path.pop();
            let droppable = is_empty(value) || value.as_object().is_some_and(Map::is_empty);
            let stays = field.keeps_empty || matches!(field.shape, Shape::Object(_));
            if value.is_null() || (droppable && !stays) {
                fields.remove(&name);
            }
        }
        Ok(())
    }

    fn value(&mut self, shape: &Shape, value: &mut Value, of: &Type) -> Result<(), Mismatch> {
        match (shape, &mut *value) {
            (_, Value::Null) | (Shape::Raw, _) => {}
            (Shape::Object(_), Value::Object(fields)) => {
                if let Some(inner) = shape.object() {
                    self.object(inner, fields)?;
                }
            }
            (Shape::List(item) | Shape::Wrapped(item), Value::Array(items)) => {
                for (index, held) in items.iter_mut().enumerate() {
                    self.path.push(Step::Index(index));
                    self.value(item, held, of)?;
                    fill(item, held);
                    self.path.pop();
                }
            }
            (Shape::Map(item), Value::Object(fields)) => {
                for (key, held) in fields.iter_mut() {
                    self.path.push(Step::Key(key.clone()));
                    let checked = self.value(item, held, of);
                    self.path.pop();
                    checked?;
                    fill(item, held);
                }
            }
            _ => self.scalar(shape, value, of)?,
        }
        Ok(())
    }

    /// Checks a value that holds no others.
    fn scalar(&self, shape: &Shape, value: &mut Value, of: &Type) -> Result<(), Mismatch> {
        let fits = match (shape, &*value) {
            (Shape::String | Shape::Duration | Shape::IntOrString, Value::String(_))
            | (Shape::Bool, Value::Bool(_)) => true,
            (Shape::Int32 | Shape::IntOrString, Value::Number(number)) => {
                number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
            }
            (Shape::Int64, Value::Number(number)) => number.as_i64().is_some(),
            (Shape::Time | Shape::MicroTime, Value::String(text)) => {
                if !text.is_empty() && !time::is_time(text) {
                    let layout = if *shape == Shape::Time {
                        "2006-01-02T15:04:05Z07:00"
                    } else {
                        "2006-01-02T15:04:05.000000Z07:00"
                    };
                    return Err(Mismatch(format!(
                        "parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""
                    )));
                }
                true
            }
            (Shape::Bytes, Value::String(text)) => {
                let text: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
                if STANDARD.decode(&text).is_err() {
                    let at = text
                        .bytes()
                        .position(|byte| !byte.is_ascii_alphanumeric() && !b"+/=".contains(&byte))
                        .unwrap_or(text.len() / 4 * 4);
                    return Err(Mismatch(format!("illegal base64 data at input byte {at}")));
                }
                true
            }
            (Shape::Quantity, Value::String(_) | Value::Number(_)) => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let text = if text.is_empty() { "0" } else { &text };
                let canonical =
                    quantity::canonical(text).map_err(|error| Mismatch(error.to_string()))?;
                *value = canonical.into();
                true
            }
            _ => false,
        };
        if fits { Ok(()) } else { Err(self.mismatch(shape, value, of)) }
    }

    fn mismatch(&self, shape: &Shape, value: &Value, of: &Type) -> Mismatch {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) if matches!(shape, Shape::Int32 | Shape::Int64) => {
                format!("number {number}")
            }
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        let names = self.path.iter().filter_map(|step| match step {
            Step::Field(name) => Some(name.as_str()),
            Step::Key(_) | Step::Index(_) => None,
        });
        let names = names.collect::<Vec<_>>().join(".");
        Mismatch(format!(
            "json: cannot unmarshal {found} into Go struct field {}.{names} of type {}",
            of.short_name(),
            go(shape)
        ))
    }
}

/// A null among the items of a list or map is an empty item.
fn fill(shape: &Shape, value: &mut Value) {
    if value.is_null() {
        *value = match shape {
            Shape::Object(_) | Shape::Map(_) => json!({}),
            Shape::List(_) | Shape::Wrapped(_) => json!([]),
            Shape::Bool => false.into(),
            Shape::Int32 | Shape::Int64 => 0.into(),
            Shape::Quantity => "0".into(),
            Shape::Raw => return,
            _ => "".into(),
        };
    }
}

/// The type as the decoder's messages name it.
fn go(shape: &Shape) -> String {
    match shape {
        Shape::String => "string".to_owned(),
        Shape::Bool => "bool".to_owned(),
        Shape::Int32 => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Raw => "runtime.RawExtension".to_owned(),
        Shape::Quantity => "resource.Quantity".to_owned(),
        Shape::IntOrString => "intstr.IntOrString".to_owned(),
        Shape::Time => "v1.Time".to_owned(),
        Shape::MicroTime => "v1.MicroTime".to_owned(),
        Shape::Duration => "v1.Duration".to_owned(),
        Shape::Object(name) => {
            let mut parts = name.rsplitn(3, '.');
            let short = parts.next().unwrap_or_default();
            format!("{}.{short}", parts.next().unwrap_or_default())
        }
        Shape::List(item) | Shape::Wrapped(item) => format!("[]{}", go(item)),
        Shape::Map(item) => format!("map[string]{}", go(item)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::named;
    use super::*;

    fn conformed(name: &str, object: Value) -> Result<(Value, Vec<String>), String> {
        let mut object = object;
        let unknown = conform(named(name).unwrap(), &mut object).map_err(|error| error.0)?;
        Ok((object, unknown))
    }

    #[test]
    fn unknown_fields_are_named_and_dropped() {
        let pod = json!({"metadata": {"name": "a", "lables": {"a": "b"}}, "spec": {
            "containers": [{"name": "a", "imagee": "x", "env": [{"name": "A", "Value": "b"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]}, "extra": 1});
        let (pod, unknown) = conformed("core.v1.Pod", pod).unwrap();
        let mut unknown = unknown;
        unknown.sort();
        assert_eq!(
            unknown,
            [
                "extra",
                "metadata.lables",
                "spec.containers[0].env[0].Value",
                "spec.containers[0].imagee"
            ]
        );
        assert_eq!(
            pod,
            json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "env": [{"name": "A"}]}],
                "volumes": [{"name": "v", "emptyDir": {}}]}})
        );
    }

    #[test]
    fn values_of_other_types_are_refused_in_the_decoders_words() {
        let replicas = |value: Value| json!({"spec": {"replicas": value}});
        for (name, object, message) in [
            (
                "apps.v1.Deployment",
                replicas("two".into()),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "apps.v1.Deployment",
                replicas(3_000_000_000_i64.into()),
                "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "core.v1.ConfigMap",
                json!({"data": {"a": 1}}),
                "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
            ),
            (
                "core.v1.Pod",
                json!({"spec": {"containers": {}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            ("core.v1.Secret", json!({"data": {"a": "!"}}), "illegal base64 data at input byte 0"),
        ] {
            assert_eq!(conformed(name, object).unwrap_err(), message);
        }
        let quantity = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "x"}}}]}});
        assert!(
            conformed("core.v1.Pod", quantity).unwrap_err().starts_with("quantities must match")
        );
    }

    #[test]
    fn what_is_empty_is_left_out_where_that_means_the_same() {
        let (deployment, _) = conformed(
            "apps.v1.Deployment",
            json!({"metadata": {"labels": {}, "creationTimestamp": null}, "status": {},
                "spec": {"replicas": 0, "paused": false, "minReadySeconds": 0, "strategy": {}, "template": {"spec": {
                    "containers": [{"name": "", "resources": {"limits": {"cpu": 1, "memory": "1024Mi"}}}], "volumes": []}}}}),
        )
        .unwrap();
        assert_eq!(
            deployment,
            json!({"metadata": {}, "status": {}, "spec": {"replicas": 0, "strategy": {}, "template": {"spec": {
                "containers": [{"name": "", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}}}})
        );
    }
}
