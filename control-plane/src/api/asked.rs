//! What a request asks for, read from its method, path and query alone: what authorization and the
//! audit log go by. Independent of which kinds there are, so that nobody learns from an answer what
//! they may not ask.

use http::Method;

use super::query::{self, Params};
use crate::authz::Attributes;
use crate::registry::selector::Fields;

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// `get`, `list`, `create`, …; of a path the method in lower case.
    pub(super) verb: String,
    /// The API group, empty for the core group.
    pub(super) group: String,
    /// The version.
    pub(super) version: String,
    /// The resource; empty where a path is asked for.
    pub(super) resource: String,
    /// The subresource.
    pub(super) subresource: String,
    /// The namespace; that of itself for a namespace.
    pub(super) namespace: String,
    /// The object's name.
    pub(super) name: String,
    /// The path.
    pub(super) path: String,
    /// What the field selector demands to be equal.
    pub(super) fields: Vec<(String, String)>,
}

impl Asked {
    /// Reads a request.
    pub(super) fn of(method: &Method, path: &str, params: &Params) -> Self {
        let mut asked =
            Self { verb: method.as_str().to_lowercase(), path: path.to_owned(), ..Self::default() };
        let segments: Vec<String> =
            path.trim_matches('/').split('/').map(|part| query::decode(part, false)).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let rest = match segments.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                (*version).clone_into(&mut asked.version);
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                (*group).clone_into(&mut asked.group);
                (*version).clone_into(&mut asked.version);
                rest
            }
            _ => return asked,
        };
        asked.read_resource(rest);
        asked.read_verb(method, params);
        asked
    }

    fn read_resource(&mut self, mut rest: &[&str]) {
        if let ["namespaces", namespace, more @ ..] = rest {
            (*namespace).clone_into(&mut self.namespace);
            if !matches!(more, [] | ["status" | "finalize", ..]) {
                rest = more;
            }
        }
        let at = |index: usize| rest.get(index).map(|part| (*part).to_owned()).unwrap_or_default();
        self.resource = at(0);
        self.name = at(1);
        self.subresource = at(2);
    }

    fn read_verb(&mut self, method: &Method, params: &Params) {
        let of_one = !self.name.is_empty();
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if of_one => "delete",
            Method::DELETE => "deletecollection",
            Method::GET | Method::HEAD if of_one => "get",
            Method::GET | Method::HEAD if params.flag("watch") => "watch",
            Method::GET | Method::HEAD => "list",
            _ => return,
        };
        verb.clone_into(&mut self.verb);
        if matches!(verb, "list" | "watch" | "deletecollection") {
            self.read_fields(params);
        }
    }

    fn read_fields(&mut self, params: &Params) {
        let Ok(fields) = Fields::parse(params.text("fieldSelector")) else { return };
        let equal = fields.0.into_iter().filter(|(_, equal, _)| *equal);
        self.fields = equal.map(|(field, _, value)| (field, value)).collect();
        // A selection of one name is a request for one object.
        if let Some((_, name)) = self.fields.iter().find(|(field, _)| field == "metadata.name") {
            self.name.clone_from(name);
        }
    }

    /// The same as attributes to decide about.
    pub(super) fn attributes(&self) -> Attributes<'_> {
        Attributes {
            verb: &self.verb,
            group: &self.group,
            version: &self.version,
            resource: &self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            path: &self.path,
            fields: &self.fields,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &Method, path: &str, query: &str) -> String {
        let Asked { verb, group, version, resource, subresource, namespace, name, .. } =
            Asked::of(method, path, &Params::parse(query));
        [verb, group, version, resource, subresource, namespace, name].join(" ")
    }

    #[test]
    fn methods_and_paths_are_verbs_and_resources() {
        let get = Method::GET;
        for (method, path, query, expected) in [
            (&get, "/api/v1/pods", "", "list  v1 pods   "),
            (&get, "/api/v1/pods", "watch=1", "watch  v1 pods   "),
            (&get, "/api/v1/namespaces/a/pods/p", "watch=1", "get  v1 pods  a p"),
            (&Method::HEAD, "/api/v1/namespaces/a/pods/p", "", "get  v1 pods  a p"),
            (&get, "/api/v1/namespaces/a/pods/p/log", "", "get  v1 pods log a p"),
            (&get, "/api/v1/namespaces/a", "", "get  v1 namespaces  a a"),
            (&get, "/api/v1/namespaces", "", "list  v1 namespaces   "),
            (&Method::PUT, "/api/v1/namespaces/a/status", "", "update  v1 namespaces status a a"),
            (
                &Method::PUT,
                "/api/v1/namespaces/a/finalize",
                "",
                "update  v1 namespaces finalize a a",
            ),
            (
                &Method::POST,
                "/apis/apps/v1/namespaces/a/deployments",
                "",
                "create apps v1 deployments  a ",
            ),
            (
                &Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "",
                "patch apps v1 deployments scale a d",
            ),
            (&Method::DELETE, "/api/v1/nodes/n%31", "", "delete  v1 nodes   n1"),
            (&Method::DELETE, "/api/v1/nodes", "", "deletecollection  v1 nodes   "),
            (&get, "/api/v1/pods", "fieldSelector=metadata.name%3Dx", "list  v1 pods   x"),
            (&get, "/api/v1/pods", "fieldSelector=metadata.name!%3Dx", "list  v1 pods   "),
            (&get, "/api/v1", "", "get      "),
            (&get, "/apis/apps/v1", "", "get      "),
            (&get, "/apis", "", "get      "),
            (&get, "/", "", "get      "),
            (&get, "/metrics", "", "get      "),
            (&Method::POST, "/apis/none.example/v1/things", "", "create none.example v1 things   "),
        ] {
            assert_eq!(asked(method, path, query), expected, "{method} {path} {query}");
        }
    }
}
