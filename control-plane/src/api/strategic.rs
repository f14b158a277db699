//! Strategic merge patch: a merge patch that knows which lists are sets of named things.
//!
//! Which lists these are, says the [`schema`](crate::schema). Directives in the patch:
//! `$patch: replace|delete` for a map or an item, `$retainKeys`, `$deleteFromPrimitiveList/FIELD`
//! and `$setElementOrder/FIELD`.

use serde_json::{Map, Value};

use crate::schema::{Merge, Type};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// A patch that can't be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StrategicError {
    /// `$patch` with a value that means nothing.
    #[error("unknown patch type found: {0}")]
    Directive(String),
    /// An item of a keyed list without its key.
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoKey {
        /// The item.
        item: String,
        /// The key that it should have.
        key: &'static str,
    },
    /// `$retainKeys` that leaves out what the patch itself sets.
    #[error(
        "invalid patch format of retainKeys: the patch sets {0:?}, which the list does not name"
    )]
    Retain(String),
    /// `$setElementOrder` that leaves out what the patch itself holds, or is no list.
    #[error(
        "invalid patch format of setElementOrder list for {0:?}: it must name every item of the patch"
    )]
    Order(String),
}

/// Applies a patch to an object.
pub(super) fn apply(
    object: &mut Value,
    patch: &Value,
    of: Option<&'static Type>,
) -> Result<(), StrategicError> {
    let (Some(object), Some(patch)) = (object.as_object_mut(), patch.as_object()) else {
        return Ok(());
    };
    merge_maps(object, patch, of)
}

fn merge_maps(
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    of: Option<&'static Type>,
) -> Result<(), StrategicError> {
    match patch.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
        None => {}
        Some("replace") => {
            *original = plain_map(patch);
            return Ok(());
        }
        Some("delete") => {
            original.clear();
            return Ok(());
        }
        Some(other) => return Err(StrategicError::Directive(other.to_owned())),
    }
    if let Some(kept) = patch.get(RETAIN_KEYS) {
        retain(original, patch, kept.as_array().map_or(&[], Vec::as_slice))?;
    }
    // Orders are relative to what the server had.
    let ordered = patch.keys().filter_map(|name| name.strip_prefix(SET_ORDER));
    let had = |name: &str| Some((name.to_owned(), original.get(name)?.clone()));
    let before: Map<String, Value> = ordered.filter_map(had).collect();
    for (name, value) in patch {
        if name.starts_with('$') {
            continue;
        }
        let field = of.and_then(|of| of.field(name));
        let inner = field.and_then(|field| field.shape.innermost());
        let rule = field.map_or(Merge::Plain, |field| field.merge);
        match (original.get_mut(name), value) {
            (_, Value::Null) => drop(original.remove(name)),
            (Some(Value::Object(old)), Value::Object(new)) => {
                merge_maps(old, new, inner)?;
            }
            (Some(Value::Array(old)), Value::Array(new)) => merge_lists(old, new, rule, inner)?,
            // A list that is not there yet may still have items that say what they are not.
            (None, Value::Array(new)) => {
                let mut list = Vec::new();
                merge_lists(&mut list, new, rule, inner)?;
                original.insert(name.clone(), Value::Array(list));
            }
            _ => drop(original.insert(name.clone(), plain(value))),
        }
    }
    for (name, value) in patch {
        if let Some(field) = name.strip_prefix(DELETE_FROM)
            && let (Some(Value::Array(old)), Value::Array(gone)) = (original.get_mut(field), value)
        {
            old.retain(|item| !gone.contains(item));
        }
    }
    set_orders(original, &before, patch, of)
}

/// Keeps only the fields that the list names.
fn retain(
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    kept: &[Value],
) -> Result<(), StrategicError> {
    let keeps = |name: &str| kept.iter().any(|one| one == name);
    let set = |(name, value): (&String, &Value)| {
        (!name.starts_with('$') && !value.is_null()).then(|| name.clone())
    };
    if let Some(forgotten) = patch.iter().filter_map(set).find(|name| !keeps(name)) {
        return Err(StrategicError::Retain(forgotten));
    }
    original.retain(|name, _| keeps(name));
    Ok(())
}

/// Merges a list of a patch into a list, by the field's rule.
fn merge_lists(
    original: &mut Vec<Value>,
    patch: &[Value],
    rule: Merge,
    inner: Option<&'static Type>,
) -> Result<(), StrategicError> {
    match rule {
        Merge::Key(key) | Merge::KeyRetain(key) => merge_items(original, patch, key, inner),
        Merge::Set => {
            let before = original.clone();
            original.extend(patch.iter().filter(|item| !before.contains(item)).cloned());
            let place = |item: &Value, order: &[Value]| order.iter().position(|one| one == item);
            order(original, &before, |item| place(item, patch), |item| place(item, &before));
            Ok(())
        }
        Merge::Plain | Merge::Retain => {
            *original = patch.iter().map(plain).collect();
            Ok(())
        }
    }
}

/// The value of an item's key.
fn key_of<'a>(item: &'a Value, key: &'static str) -> Result<&'a Value, StrategicError> {
    item.get(key)
        .filter(|value| !value.is_null())
        .ok_or_else(|| StrategicError::NoKey { item: item.to_string(), key })
}

fn merge_items(
    original: &mut Vec<Value>,
    patch: &[Value],
    key: &'static str,
    of: Option<&'static Type>,
) -> Result<(), StrategicError> {
    let mut wanted = Vec::new();
    let mut replace = false;
    for item in patch {
        match item.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
            None => wanted.push(item),
            Some("replace") => {
                replace = true;
                // An item of the directive alone only empties the list.
                if item.get(key).is_some() {
                    wanted.push(item);
                }
            }
            Some("delete") => {
                let gone = key_of(item, key)?;
                original.retain(|one| one.get(key) != Some(gone));
            }
            Some(other) => return Err(StrategicError::Directive(other.to_owned())),
        }
    }
    if replace {
        *original = wanted.into_iter().map(plain).collect();
        return Ok(());
    }
    let before = original.clone();
    for item in &wanted {
        let wanted_key = key_of(item, key)?;
        match original.iter_mut().find(|one| one.get(key) == Some(wanted_key)) {
            Some(Value::Object(old)) => {
                merge_maps(old, item.as_object().unwrap_or(&Map::new()), of)?;
            }
            Some(_) => {}
            None => {
                let mut fresh = Map::new();
                merge_maps(&mut fresh, item.as_object().unwrap_or(&Map::new()), of)?;
                original.push(Value::Object(fresh));
            }
        }
    }
    let same = |one: &Value, other: &Value| one.get(key) == other.get(key);
    order(
        original,
        &before,
        |item| wanted.iter().position(|one| same(one, item)),
        |item| before.iter().position(|one| same(one, item)),
    );
    Ok(())
}

/// Puts a merged list in order: items that the patch names in the patch's order, the others where
/// they stood among those. What is new comes before what only the server knows.
fn order(
    list: &mut Vec<Value>,
    before: &[Value],
    in_patch: impl Fn(&Value) -> Option<usize>,
    in_before: impl Fn(&Value) -> Option<usize>,
) {
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        std::mem::take(list).into_iter().partition(|item| in_patch(item).is_some());
    named.sort_by_key(&in_patch);
    others.sort_by_key(|item| in_before(item).unwrap_or(before.len()));
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let Some(next) = named.peek() {
        let place = in_before(next);
        let earlier = others
            .peek()
            .and_then(&in_before)
            .zip(place)
            .is_some_and(|(other, named)| other < named);
        list.extend(if earlier { others.next() } else { named.next() });
    }
    list.extend(others);
}

/// Applies the `$setElementOrder` directives of a map.
fn set_orders(
    original: &mut Map<String, Value>,
    before: &Map<String, Value>,
    patch: &Map<String, Value>,
    of: Option<&'static Type>,
) -> Result<(), StrategicError> {
    for (name, wanted) in patch {
        let Some(field) = name.strip_prefix(SET_ORDER) else { continue };
        let key = match of.and_then(|of| of.field(field)).map(|field| field.merge) {
            Some(Merge::Key(key) | Merge::KeyRetain(key)) => Some(key),
            _ => None,
        };
        let bad = || StrategicError::Order(field.to_owned());
        let wanted = wanted.as_array().ok_or_else(bad)?;
        let same = |one: &Value, other: &Value| match key {
            Some(key) => one.get(key) == other.get(key),
            None => one == other,
        };
        let place = |item: &Value| wanted.iter().position(|one| same(one, item));
        let held = patch.get(field).and_then(Value::as_array).into_iter().flatten();
        if held.into_iter().any(|item| item.get(PATCH).is_none() && place(item).is_none()) {
            return Err(bad());
        }
        if let Some(Value::Array(list)) = original.get_mut(field) {
            let before = before.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            order(list, before, place, |item| before.iter().position(|one| same(one, item)));
        }
    }
    Ok(())
}

/// A value of a patch without directives and nulls.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(plain_map(fields)),
        Value::Array(items) => {
            let directive_only =
                |item: &&Value| item.get(PATCH).is_none_or(|directive| directive != "delete");
            Value::Array(items.iter().filter(directive_only).map(plain).collect())
        }
        other => other.clone(),
    }
}

fn plain_map(fields: &Map<String, Value>) -> Map<String, Value> {
    let kept = fields.iter().filter(|(name, value)| !name.starts_with('$') && !value.is_null());
    kept.map(|(name, value)| (name.clone(), plain(value))).collect()
}

#[cfg(test)]
mod tests;
