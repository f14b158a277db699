//! Checks and defaults as data: which field, and what must hold or what stands there if nothing
//! does. The row of a kind lists them; what they can't say is in its strategy.
//!
//! Paths are fields as users write them; `[*]` is every item of a list, `{*}` every value of a map.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::NameRule;
use super::invalid::Errors;
use super::names;
use super::selector::Selector;
use super::strategy::address;
use crate::schema::quantity;

/// A field and what must hold for it.
pub struct Rule(pub &'static str, pub Test);

/// What must hold.
pub enum Test {
    /// It is there and not empty; what the message adds.
    Required(&'static str),
    /// It is one of these texts, if it is there.
    OneOf(&'static [&'static str]),
    /// It is a number from the one to the other.
    Between(i64, i64),
    /// It is a number and not negative.
    NotNegative,
    /// It is a number above 0.
    Positive,
    /// It is a name.
    Name(NameRule),
    /// It is a map of labels.
    Labels,
    /// It is a label selector.
    Selector,
    /// Its keys can be names of files.
    Keys,
    /// It is an IP address.
    Address,
    /// It is a range of addresses.
    Cidr,
    /// It is a quantity that is not negative.
    Quantity,
    /// It is a quantity above 0.
    PositiveQuantity,
    /// It is no whole number below 0 and no percentage above 100.
    CountOrPercent,
    /// It is no whole number below 0; percentages may be above 100.
    CountOrAnyPercent,
    /// What is wrong with it, if anything.
    Check(fn(&Value) -> Option<&'static str>),
    /// What is wrong with the text, if anything.
    Text(fn(&str) -> Option<String>),
    /// It is the number of a port.
    Port,
    /// It is the number of a port, or the name of a container's.
    PortOrName,
    /// It is an address that others reach: none of a loopback interface or of one link.
    Reachable,
}

/// Numbers of ports.
const PORTS: Test = Test::Between(1, 65_535);

/// A field and what stands in it if nothing else does.
pub struct Default(pub &'static str, pub Fill);

/// What stands in a field by default.
#[derive(Clone, Copy)]
pub enum Fill {
    /// A text.
    Text(&'static str),
    /// A number.
    Number(i64),
    /// A truth value.
    Flag(bool),
    /// A list of one text.
    One(&'static str),
}

impl Fill {
    fn value(self) -> Value {
        match self {
            Self::Text(text) => text.into(),
            Self::Number(number) => number.into(),
            Self::Flag(flag) => flag.into(),
            Self::One(text) => json!([text]),
        }
    }
}

/// Checks an object by its kind's rules.
pub fn check(rules: &[Rule], object: &Value, errors: &mut Errors) {
    check_at("", rules, object, errors);
}

/// Checks a part of an object, which users write as `place`.
pub fn check_at(place: &str, rules: &[Rule], part: &Value, errors: &mut Errors) {
    for Rule(path, test) in rules {
        walk(part, path, place, false, &mut |field, value| test.apply(field, value, errors));
    }
}

/// Fills in defaults, in their order.
pub fn fill(defaults: &[Default], object: &mut Value) {
    for Default(path, with) in defaults {
        fill_one(object, path, *with);
    }
}

fn fill_one(value: &mut Value, path: &str, with: Fill) {
    let (step, rest) = path.split_once('.').unwrap_or((path, ""));
    if let Some(name) = step.strip_suffix("[*]") {
        for item in value.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten() {
            fill_one(item, rest, with);
        }
        return;
    }
    let Value::Object(fields) = value else { return };
    let slot = fields.entry(step).or_insert(Value::Null);
    if !rest.is_empty() {
        if slot.is_null() {
            *slot = json!({});
        }
        fill_one(slot, rest, with);
    } else if slot.is_null() {
        *slot = with.value();
    }
}

/// Calls `visit` with every field that a path names, as users write it, and with what it holds.
/// What would be in an object that is not there is not there either; but items of lists need not
/// have the object.
pub fn each(value: &Value, path: &str, visit: &mut dyn FnMut(&str, Option<&Value>)) {
    walk(value, path, "", false, visit);
}

fn walk(
    value: &Value,
    path: &str,
    field: &str,
    in_item: bool,
    visit: &mut dyn FnMut(&str, Option<&Value>),
) {
    let (step, rest) = path.split_once('.').unwrap_or((path, ""));
    let join =
        |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
    let mut go = |inner: Option<&Value>, field: &str, in_item: bool| match (inner, rest) {
        (inner, "") => visit(field, inner),
        (Some(inner), rest) => walk(inner, rest, field, in_item, visit),
        (None, _) if in_item => {}
        (None, rest) => walk(&Value::Null, rest, field, false, visit),
    };
    if let Some(name) = step.strip_suffix("[*]") {
        let items = value[name].as_array().into_iter().flatten().enumerate();
        items.for_each(|(index, item)| go(Some(item), &format!("{}[{index}]", join(name)), true));
    } else if let Some(name) = step.strip_suffix("{*}") {
        let items = value[name].as_object().into_iter().flatten();
        items.for_each(|(key, item)| go(Some(item), &format!("{}[{key}]", join(name)), true));
    } else {
        go(value.get(step), &join(step), in_item);
    }
}

impl Test {
    fn apply(&self, field: &str, value: Option<&Value>, errors: &mut Errors) {
        let missing = match value {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(_) => false,
        };
        let Some(value) = value.filter(|_| !missing) else {
            if let Self::Required(detail) = self {
                errors.required(field, detail);
            }
            return;
        };
        let text = value.as_str().unwrap_or_default();
        let fault: Option<String> = match self {
            Self::Required(_) => None,
            Self::OneOf(allowed) => {
                if !allowed.contains(&text) {
                    errors.not_supported(field, value.clone(), allowed);
                }
                None
            }
            Self::Between(least, most) => {
                (!value.as_i64().is_some_and(|number| (*least..=*most).contains(&number)))
                    .then(|| format!("must be between {least} and {most}, inclusive"))
            }
            Self::NotNegative => {
                value.as_i64().is_none_or(|number| number < 0).then(|| NOT_NEGATIVE.to_owned())
            }
            Self::Positive => value
                .as_i64()
                .is_none_or(|number| number <= 0)
                .then(|| "must be greater than 0".to_owned()),
            Self::Name(rule) => names::fault(text, *rule),
            Self::Labels => {
                names::check_labels(Some(value), field, errors);
                None
            }
            Self::Selector => Selector::from_object(value).err().map(|error| error.to_string()),
            Self::Keys => {
                check_keys(value, field, errors);
                None
            }
            Self::Address => address(text).is_none().then(|| NO_ADDRESS.to_owned()),
            Self::Cidr => (!is_cidr(text)).then(|| NO_CIDR.to_owned()),
            Self::Quantity => quantity::nanos(text)
                .is_some_and(|amount| amount < 0)
                .then(|| NOT_NEGATIVE.to_owned()),
            Self::PositiveQuantity => quantity::nanos(text)
                .is_some_and(|amount| amount <= 0)
                .then(|| "must be greater than zero".to_owned()),
            Self::CountOrPercent => count_fault(value, Some(100)),
            Self::CountOrAnyPercent => count_fault(value, None),
            Self::Check(check) => check(value).map(str::to_owned),
            Self::Text(check) => check(text),
            Self::Port => return PORTS.apply(field, Some(value), errors),
            Self::PortOrName => match value.as_str() {
                Some(name) => names::port_fault(name).map(str::to_owned),
                None => return PORTS.apply(field, Some(value), errors),
            },
            Self::Reachable => {
                check_reachable(field, text, errors);
                None
            }
        };
        if let Some(fault) = fault {
            errors.invalid(field, value.clone(), fault);
        }
    }
}

/// What Kubernetes says of a negative number.
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// Checks that an address of an endpoint is one that others reach.
pub fn check_reachable(field: &str, text: &str, errors: &mut Errors) {
    let Some(ip) = address(text) else {
        errors.invalid(field, text, NO_ADDRESS);
        return;
    };
    let (link_local, of_the_link) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => {
            (ip.is_unicast_link_local(), ip.is_multicast() && ip.segments()[0] & 0xf == 2)
        }
    };
    if ip.is_unspecified() {
        errors.invalid(field, text, format!("may not be unspecified ({text})"));
    }
    let faults = [
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (of_the_link, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ];
    for (_, fault) in faults.into_iter().filter(|(found, _)| *found) {
        errors.invalid(field, text, fault);
    }
}

/// What Kubernetes says of a text that is no address.
pub const NO_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
/// What Kubernetes says of a text that is no range of addresses.
pub const NO_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

fn check_keys(map: &Value, field: &str, errors: &mut Errors) {
    for key in map.as_object().into_iter().flatten().map(|(key, _)| key) {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let fault = match key.as_str() {
            "." => Some("must not be '.'".to_owned()),
            ".." => Some("must not be '..'".to_owned()),
            key if key.starts_with("..") => Some("must not start with '..'".to_owned()),
            key if key.len() > names::SUBDOMAIN_MAX => {
                Some(format!("must be no more than {} bytes", names::SUBDOMAIN_MAX))
            }
            key => (key.is_empty() || !key.bytes().all(allowed)).then(|| KEY.to_owned()),
        };
        if let Some(fault) = fault {
            errors.invalid(format!("{field}[{key}]"), key.as_str(), fault);
        }
    }
}

/// What is wrong with a number or a percentage of at most so many.
fn count_fault(value: &Value, most: Option<u32>) -> Option<String> {
    if let Some(number) = value.as_i64() {
        return (number < 0).then(|| NOT_NEGATIVE.to_owned());
    }
    let digits = |number: &&str| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let Some(number) = value.as_str()?.strip_suffix('%').filter(digits) else {
        return Some(
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
                .to_owned(),
        );
    };
    // What is no number any more is above every bound.
    let number = number.parse::<u32>().unwrap_or(u32::MAX);
    let most = most.filter(|most| number > *most);
    most.map(|most| format!("must not be greater than {most}%"))
}

/// Whether `text` is an address with a prefix length.
pub fn is_cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(base, bits)| {
        address(base).is_some_and(|base| {
            let most = if base.is_ipv4() { 32 } else { 128 };
            bits.parse::<u8>().is_ok_and(|bits| bits <= most)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_reach_every_item_and_what_is_missing() {
        let object = json!({"spec": {"ports": [{"port": 0}, {"port": 80, "protocol": "X"}], "max": "200%"},
            "data": {"a b": "", "ok": ""}});
        let rules = [
            Rule("spec.ports[*].port", Test::Between(1, 65535)),
            Rule("spec.ports[*].protocol", Test::OneOf(&["TCP", "UDP"])),
            Rule("spec.class", Test::Required("because")),
            Rule("status.phase", Test::Required("")),
            Rule("spec.max", Test::CountOrPercent),
            Rule("data", Test::Keys),
            Rule("spec.missing", Test::Positive),
            Rule("spec.ports[*].target.name", Test::Required("")),
        ];
        let mut errors = Errors::default();
        check(&rules, &object, &mut errors);
        let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts[0],
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"
        );
        assert_eq!(
            texts[1],
            "spec.ports[1].protocol: Unsupported value: \"X\": supported values: \"TCP\", \"UDP\""
        );
        assert_eq!(texts[2], "spec.class: Required value: because");
        assert_eq!(texts[3], "status.phase: Required value");
        assert!(texts[4].ends_with("must not be greater than 100%"));
        assert!(texts[5].starts_with("data[a b]: Invalid value: \"a b\": a valid config key"));
        assert_eq!(texts.len(), 6);
    }

    #[test]
    fn defaults_fill_what_is_missing_and_nothing_else() {
        let mut object = json!({"spec": {"a": 0, "list": [{}, {"b": "x"}]}});
        let defaults = [
            Default("spec.a", Fill::Number(7)),
            Default("spec.list[*].b", Fill::Text("y")),
            Default("spec.deep.flag", Fill::Flag(true)),
            Default("spec.none[*].x", Fill::One("z")),
        ];
        fill(&defaults, &mut object);
        assert_eq!(
            object,
            json!({"spec": {"a": 0, "list": [{"b": "y"}, {"b": "x"}], "deep": {"flag": true}}})
        );
    }
}
