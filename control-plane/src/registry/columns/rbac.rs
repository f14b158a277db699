//! Columns of roles, bindings and priority classes.

use serde_json::Value;

use super::{AGE, Column, NAME, Object, number, text, wide};

/// Roles.
pub const ROLE: &[Column] =
    &[NAME, text("Created At", |role, _| role.text("/metadata/creationTimestamp").into())];

/// Role bindings.
pub const ROLE_BINDING: &[Column] = &[
    NAME,
    text("Role", |binding, _| {
        format!("{}/{}", binding.text("/roleRef/kind"), binding.text("/roleRef/name")).into()
    }),
    AGE,
    wide("Users", |binding, _| subjects(binding, "User")),
    wide("Groups", |binding, _| subjects(binding, "Group")),
    wide("ServiceAccounts", |binding, _| subjects(binding, "ServiceAccount")),
];

fn subjects(binding: &Object, kind: &str) -> Value {
    let of_kind = binding.list("/subjects").iter().filter(|subject| subject["kind"] == kind);
    let name = |subject: &Value| {
        let name = subject["name"].as_str().unwrap_or_default();
        match subject["namespace"].as_str() {
            Some(namespace) if kind == "ServiceAccount" => format!("{namespace}/{name}"),
            _ => name.to_owned(),
        }
    };
    of_kind.map(name).collect::<Vec<_>>().join(", ").into()
}

/// Priority classes.
pub const PRIORITY_CLASS: &[Column] = &[
    NAME,
    number("Value", |class, _| class.integer("/value").unwrap_or(0).into()),
    Column {
        kind: "boolean",
        ..text("Global-Default", |class, _| class.flag("/globalDefault").into())
    },
    AGE,
    text("PreemptionPolicy", |class, _| class.text("/preemptionPolicy").into()),
];
