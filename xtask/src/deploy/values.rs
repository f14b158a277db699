//! The chart's values: their defaults, and what they may be.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{HEAD, objects::values};

/// The values with what the plain manifests have in files of their own.
pub(super) fn all() -> Value {
    let mut all = values();
    all["metrics"] = json!({"enabled": false});
    all
}

/// values.yaml.
pub(super) fn text() -> Result<String> {
    const COMMENTS: [(&str, &str); 4] = [
        (
            "bpffs:",
            "Where nodes have their bpf file system; mount: true has a privileged init container mount\n\
             # it where nothing else does, as systemd would. config.bpffs is a folder in it.",
        ),
        (
            "config:",
            "The agent's configuration (docs/configuration.md). While services are on, apiServer has to\n\
             # name the API servers' own addresses, as https://192.0.2.1:6443, or kubeProxyConfig a file\n\
             # of kube-proxy's that does.",
        ),
        (
            "metrics:",
            "A Service and a ServiceMonitor for Prometheus' operator; set config.metricsBindAddress to\n\
             # \"[::]:10249\" with it.",
        ),
        ("resources:", "The packet path's tables count too; a limit would keep them from growing."),
    ];
    let mut text = serde_yaml_ng::to_string(&all())?;
    for (key, comment) in COMMENTS {
        text = text.replace(&format!("\n{key}"), &format!("\n# {comment}\n{key}"));
        if let Some(rest) = text.strip_prefix(key) {
            text = format!("# {comment}\n{key}{rest}");
        }
    }
    Ok(format!("{HEAD}{text}"))
}

/// values.schema.json, by which Helm judges what it is given, with the schema of the agent's
/// configuration in it.
pub(super) fn schema(of_config: &Value) -> Result<String> {
    let text = || json!({"type": "string", "minLength": 1});
    let flag = || json!({"type": "boolean"});
    let object = |properties: Value| json!({"type": "object", "additionalProperties": false, "properties": properties});
    let mut of_config = of_config.clone();
    // One name of a node would be all pods': each is told its own (NODE_NAME).
    if let Some(properties) = of_config.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove("nodeName");
    }
    let mut schema = object(json!({
        "bpffs": object(json!({"path": text(), "mount": flag()})),
        "config": of_config,
        // Of a chart that has this one in it.
        "global": {"type": "object"},
        "image": object(json!({
            "repository": text(),
            "tag": text(),
            "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
        })),
        "metrics": object(json!({"enabled": flag()})),
        "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}},
        "priorityClassName": {"type": "string"},
        "resources": {"type": "object"},
        "tolerations": {"type": "array", "items": {"type": "object"}},
    }));
    schema["$schema"] = "http://json-schema.org/draft-07/schema#".into();
    if let Some(unknown) = unknown(&all(), &schema) {
        ensure!(false, "the schema of the chart's values has no {unknown}");
    }
    Ok(format!("{schema:#}\n"))
}

/// The first field that a schema does not know.
fn unknown(value: &Value, schema: &Value) -> Option<String> {
    let properties = schema.get("properties")?;
    value.as_object()?.iter().find_map(|(name, value)| match properties.get(name) {
        Some(schema) => unknown(value, schema).map(|below| format!("{name}.{below}")),
        None => Some(name.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_schema() {
        let fields = ["apiVersion", "kind", "apiServer", "services", "cni", "dns"];
        let properties: serde_json::Map<_, _> =
            fields.map(|field| (field.to_owned(), json!({}))).into_iter().collect();
        let config = json!({"properties": properties});
        assert!(schema(&config).is_ok());
        let error = schema(&json!({"properties": {"apiVersion": {}}})).expect_err("a field more");
        assert!(error.to_string().contains("config.apiServer"), "{error}");
    }

    #[test]
    fn one_name_for_all_nodes_is_no_value() {
        let fields = ["apiVersion", "kind", "apiServer", "services", "cni", "dns", "nodeName"];
        let properties: serde_json::Map<_, _> =
            fields.map(|field| (field.to_owned(), json!({}))).into_iter().collect();
        let text = schema(&json!({"properties": properties})).expect("a schema");
        let schema: Value = serde_json::from_str(&text).expect("JSON");
        let config = schema["properties"]["config"]["properties"].as_object().expect("fields");
        assert!(config.contains_key("services") && !config.contains_key("nodeName"), "{config:?}");
    }
}
