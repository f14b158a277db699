//! Query parameters and paths: a request's address as data.

use std::collections::HashMap;
use std::num::IntErrorKind;

use super::status::{Failure, Result};
use crate::registry::{Kind, Registry};

/// Query parameters of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Params(HashMap<String, String>);

impl Params {
    /// Reads `application/x-www-form-urlencoded` text. The first value of a name counts.
    pub(super) fn parse(query: &str) -> Self {
        let mut params = HashMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            params.entry(decode(name, true)).or_insert_with(|| decode(value, true));
        }
        Self(params)
    }

    /// A parameter, empty if it is not there.
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Whether a boolean parameter is there and true. As apimachinery reads them, all that is
    /// neither `0` nor `false` (in whichever case) is true, nothing at all (`?watch`) included.
    pub(super) fn flag(&self, name: &str) -> bool {
        let value = self.0.get(name);
        value.is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    /// Whether a parameter is there, be it empty.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// An integer parameter. The API's integers have 64 bits, and one that is there and empty is
    /// none. The words are Go's, as an API server passes them on.
    pub(super) fn integer(&self, name: &str) -> Result<Option<i64>> {
        let Some(text) = self.0.get(name) else { return Ok(None) };
        text.parse::<i64>().map(Some).map_err(|error| {
            let fault = match error.kind() {
                IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
                _ => "invalid syntax",
            };
            Failure::bad_request(format!("strconv.ParseInt: parsing {text:?}: {fault}"))
        })
    }

    /// An integer parameter that is not negative.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>> {
        let Some(integer) = self.integer(name)? else { return Ok(None) };
        u64::try_from(integer).map(Some).map_err(|_| {
            Failure::bad_request(format!(
                "invalid value {integer:?} for parameter {name}: not a non-negative integer"
            ))
        })
    }

    /// Whether nothing shall be stored.
    pub(super) fn dry_run(&self) -> Result<bool> {
        match self.text("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(Failure::bad_request(format!(
                "Invalid value: {other:?}: dryRun: Unsupported value: supported values: \"All\""
            ))),
        }
    }
}

/// Decodes percent escapes, and `+` as a blank where that applies.
pub(super) fn decode(text: &str, plus: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let digit = |at: usize| tail.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (byte, digit(0).zip(digit(1))) {
            (b'%', Some((high, low))) => {
                bytes.extend(u8::try_from(high * 16 + low));
                rest = &tail[2..];
            }
            (b'+', _) if plus => bytes.push(b' '),
            (other, _) => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The object or collection that a path names.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The kind.
    pub(super) kind: &'static Kind,
    /// The namespace; empty for cluster-scoped kinds and for lists over all namespaces.
    pub(super) namespace: String,
    /// The object's name; empty for collections.
    pub(super) name: String,
    /// The subresource; empty for the object itself.
    pub(super) subresource: String,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.qualified_plural())
    }
}

impl Target {
    /// Reads a path below `/api/v1` or `/apis/GROUP/VERSION`. `None` if it names no kind we have.
    pub(super) fn parse(path: &str, registry: &Registry) -> Option<Self> {
        let mut segments: Vec<String> =
            path.trim_matches('/').split('/').map(|part| decode(part, false)).collect();
        let skip = match segments.first().map(String::as_str) {
            Some("api") => 2,
            Some("apis") => 3,
            _ => return None,
        };
        if segments.len() <= skip || segments.iter().any(String::is_empty) {
            return None;
        }
        let rest = segments.split_off(skip);
        let (group, version) = if skip == 2 {
            ("", segments[1].as_str())
        } else {
            (segments[1].as_str(), segments[2].as_str())
        };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        let (namespace, rest) = match rest.as_slice() {
            ["namespaces", _, "status" | "finalize"] => ("", rest.as_slice()),
            ["namespaces", namespace, _, ..] => (*namespace, &rest[2..]),
            _ => ("", rest.as_slice()),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, "", ""),
            [plural, name] => (*plural, *name, ""),
            [plural, name, subresource] => (*plural, *name, *subresource),
            _ => return None,
        };
        let kind = registry.resource(group, version, plural)?;
        let fits = match (kind.is_namespaced(), namespace.is_empty()) {
            (true, true) => name.is_empty(),
            (true, false) | (false, true) => true,
            (false, false) => false,
        };
        fits.then(|| Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
            subresource: subresource.into(),
        })
    }

    /// The same place among the objects that are stored, for a kind that shows another's.
    pub(super) fn stored(&self, registry: &Registry) -> Self {
        Self { kind: self.kind.stored(registry), ..self.clone() }
    }

    /// Key of the object in the store.
    pub(super) fn key(&self) -> String {
        self.kind.key(&self.namespace, &self.name)
    }

    /// Prefix of the collection's keys in the store.
    pub(super) fn prefix(&self) -> String {
        self.kind.prefix((!self.namespace.is_empty()).then_some(self.namespace.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &str) -> Option<(&'static str, String, String, String)> {
        let target = Target::parse(path, &Registry::default())?;
        Some((target.kind.plural, target.namespace, target.name, target.subresource))
    }

    #[test]
    fn inv_08_paths() {
        let own = |a: &'static str, b: &str, c: &str, d: &str| {
            Some((a, b.to_owned(), c.to_owned(), d.to_owned()))
        };
        assert_eq!(parts("/api/v1/pods"), own("pods", "", "", ""));
        assert_eq!(
            parts("/api/v1/namespaces/default/pods/my-pod"),
            own("pods", "default", "my-pod", "")
        );
        assert_eq!(
            parts("/api/v1/namespaces/default/pods/p/binding"),
            own("pods", "default", "p", "binding")
        );
        assert_eq!(parts("/api/v1/namespaces/x"), own("namespaces", "", "x", ""));
        assert_eq!(parts("/api/v1/namespaces/x/status"), own("namespaces", "", "x", "status"));
        assert_eq!(
            parts("/apis/apps/v1/namespaces/x/deployments"),
            own("deployments", "x", "", "")
        );
        assert_eq!(parts("/api/v1/nodes/n%31"), own("nodes", "", "n1", ""));
        for path in [
            "/api/v1",
            "/api/v1/nothing",
            "/api/v1/pods/x",
            "/api/v1/namespaces/a/nodes/b",
            "/apis/apps/v1beta1/deployments",
            "/x",
            "/api/v1//pods",
        ] {
            assert_eq!(parts(path), None, "{path}");
        }
    }

    #[test]
    fn parameters_are_decoded() {
        let params =
            Params::parse("labelSelector=app+in+%28a%2Cb%29&watch=1&limit=500&x=%zz&limit=7");
        assert_eq!(params.text("labelSelector"), "app in (a,b)");
        assert!(params.flag("watch"));
        assert_eq!(params.number("limit").unwrap(), Some(500));
        assert_eq!(params.text("x"), "%zz");
        assert!(Params::parse("seconds=-1").number("seconds").is_err());
        assert_eq!(Params::parse("grace=-1").integer("grace").unwrap(), Some(-1));
        assert_eq!(Params::parse("x=1").integer("grace").unwrap(), None);
    }

    #[test]
    fn all_that_is_not_said_to_be_false_is_true() {
        for (query, expected) in [
            ("", false),
            ("watch=0", false),
            ("watch=false", false),
            ("watch=False", false),
            ("watch", true),
            ("watch=", true),
            ("watch=1", true),
            ("watch=True", true),
            ("watch=yes", true),
        ] {
            assert_eq!(Params::parse(query).flag("watch"), expected, "{query}");
        }
    }
}
