//! The page docs/configuration.md, made of the tables, and the file's JSON schema: `cargo xtask lint`
//! compares, and writes them with `--fix`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    API_VERSION, Config, KIND, camel_case, fields,
    kube_proxy::{
        self,
        table::{FIELDS, Meaning},
    },
};

/// Stands above the tables.
const INTRODUCTION: &str = "\
# Configuration

Made from the agent's own tables by `cargo xtask lint --fix`; don't edit it.

`mizzen-agent run` takes what follows from flags, from a file (`--config FILE`), from a configuration of kube-proxy (`--kube-proxy-config FILE`) and from its defaults, in this order of precedence.
Two variables of the environment have a say too: `NODE_NAME` names the node where neither a flag nor the file does, before kube-proxy's `hostnameOverride`; `RUST_LOG` goes before all as `logFilter`.
Every field of the file is also a flag; lists are flags that are repeated. Unknown fields are errors, with line and column.

| command | does |
|---|---|
| `mizzen-agent config show [-o json]` | prints the configuration in force with the origin of each value (`flag`, `environment`, `file`, `kube-proxy`, `default`); takes the flags of `run` |
| `mizzen-agent config check FILE` | says whether a file of either kind is valid, which field of it is not and in which line, and what of kube-proxy's has no effect |
| `mizzen-agent config check --config FILE …` | the same for what `run` would take, Corefile included |
";

/// The page.
pub fn page() -> String {
    let mut page = format!(
        "{INTRODUCTION}\n## The file\n\n```yaml\napiVersion: {API_VERSION}\nkind: {KIND}\n\
         services: true\ncni: false\ndns: false\n```\n"
    );
    let mut defaults = fields::values(&Config::default()).into_iter();
    for section in fields::SECTIONS {
        let _infallible = write!(
            page,
            "\n### {}\n\n| field | flag | type | default | |\n|---|---|---|---|---|\n",
            section.title
        );
        for (field, default) in section.fields.iter().zip(&mut defaults) {
            let _infallible = writeln!(
                page,
                "| `{}` | `--{}` | {} | {} | {} |",
                field.key(),
                field.name.replace('_', "-"),
                form(field.form),
                shown(&default),
                cell(&field.help.concat()),
            );
        }
    }
    page.push_str(&kube_proxys());
    page
}

/// The part about kube-proxy's configuration.
fn kube_proxys() -> String {
    let mut part = format!(
        "\n## kube-proxy's configuration\n\n\
         `kubeProxyConfig` names a file with a `{}` of `{}`, as kubeadm keeps it in the ConfigMap \
         `kube-proxy` (key `config.conf`). Every field of it is accepted: it becomes settings of \
         the agent's, or it has no effect, which the agent logs once where the field says \
         something. A file of another version, an unknown field or a value of the wrong form ends \
         the agent with line and column.\n\n\
         | field | becomes | |\n|---|---|---|\n",
        kube_proxy::KIND,
        kube_proxy::API_VERSION
    );
    for field in FIELDS {
        let (becomes, why) = match field.meaning {
            Meaning::Header => continue,
            Meaning::Becomes(settings, how) => {
                let settings = settings.iter().map(|name| format!("`{}`", camel_case(name)));
                (settings.collect::<Vec<_>>().join(", "), how)
            }
            Meaning::NoEffect(why) => ("no effect".to_owned(), why),
        };
        let _infallible = writeln!(part, "| `{}` | {becomes} | {} |", field.path, cell(why));
    }
    part
}

/// The file's JSON schema, as far as it is about names and types.
pub fn schema() -> Value {
    let mut properties = serde_json::Map::new();
    properties.insert("apiVersion".to_owned(), json!({"const": API_VERSION}));
    properties.insert("kind".to_owned(), json!({"const": KIND}));
    let defaults = fields::values(&Config::default());
    for (field, default) in fields::all().zip(&defaults) {
        let mut schema = form_schema(field.form);
        schema["description"] = field.help.concat().trim().into();
        schema["default"] = serde_json::from_str(default).unwrap_or_default();
        properties.insert(field.key(), schema);
    }
    json!({"type": "object", "additionalProperties": false, "properties": properties})
}

/// A type as JSON's schema has it.
fn form_schema(form: &str) -> Value {
    let number = |most: u32| json!({"type": "integer", "minimum": 0, "maximum": most});
    let list = |of: &str| json!({"type": "array", "items": {"type": of}});
    match form {
        "bool" => json!({"type": "boolean"}),
        "u8" => number(u8::MAX.into()),
        "u16" => number(u16::MAX.into()),
        "u32" => number(u32::MAX),
        "Vec<String>" | "Vec<std::net::IpAddr>" => list("string"),
        "crate::dns::native::Blocks" => list("object"),
        _ => json!({"type": "string"}),
    }
}

/// A type as people say it.
fn form(form: &str) -> &'static str {
    match form {
        "bool" => "true or false",
        "u8" | "u16" | "u32" => "number",
        "SocketAddr" => "address:port",
        "PathBuf" => "path",
        "Vec<String>" => "list of texts",
        "Vec<std::net::IpAddr>" => "list of addresses",
        "crate::dns::native::Blocks" => "list of server blocks ([DNS](dns.md))",
        _ => "text",
    }
}

/// A default, from JSON.
fn shown(default: &str) -> String {
    let text = default.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    match text.unwrap_or(default) {
        "" => "empty".to_owned(),
        shown => format!("`{shown}`"),
    }
}

/// Text that fits a table's cell.
fn cell(text: &str) -> String {
    text.trim().replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_a_row() {
        let page = page();
        for field in fields::all() {
            let row = format!("| `{}` | `--{}` |", field.key(), field.name.replace('_', "-"));
            assert_eq!(page.matches(&row).count(), 1, "{row}");
        }
        for field in FIELDS.iter().filter(|field| field.meaning != Meaning::Header) {
            assert_eq!(kube_proxys().matches(&format!("\n| `{}` |", field.path)).count(), 1);
        }
        assert!(page.contains("| `vxlanPort` | `--vxlan-port` | number | `4789` |"), "{page}");
    }

    #[test]
    fn the_schema_admits_every_default_by_its_type() {
        let schema = schema();
        let properties = schema["properties"].as_object().unwrap();
        assert_eq!(properties.len(), 2 + fields::all().count());
        for (name, field) in properties {
            let kind = match &field["default"] {
                Value::Bool(_) => "boolean",
                Value::Number(_) => "integer",
                Value::Array(_) => "array",
                Value::String(_) => "string",
                _ => continue,
            };
            assert_eq!(field["type"], kind, "{name}");
        }
        assert_eq!(properties["vxlanPort"]["maximum"], 65535);
    }

    #[test]
    fn every_type_of_the_table_has_a_name() {
        let known = |field: &fields::Field| field.form == "String" || form(field.form) != "text";
        let unknown: Vec<_> = fields::all().filter(|field| !known(field)).collect();
        assert!(unknown.is_empty(), "{:?}", unknown.iter().map(|it| it.form).collect::<Vec<_>>());
    }
}
