//! What a binary is made of, as a CycloneDX 1.5 document, from `cargo metadata`: the crates that are
//! linked into it, with their licences. Without times and serial numbers: the same lock file gives
//! the same document.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The document of what the packages `roots` are linked from, by the output of `cargo metadata`.
pub(super) fn document(metadata: &Value, roots: &[&str], version: &str) -> Result<Value> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let packages: BTreeMap<&str, &Value> =
        packages.iter().filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo metadata has no graph")?;
    let graph: BTreeMap<&str, BTreeSet<&str>> =
        nodes.iter().filter_map(|node| Some((node["id"].as_str()?, linked(node)))).collect();
    let named = |id: &str| packages.get(id).is_some_and(|package| is_one_of(package, roots));
    let mut pending: Vec<&str> = packages.keys().copied().filter(|id| named(id)).collect();
    let mut reached = BTreeSet::new();
    while let Some(id) = pending.pop() {
        if reached.insert(id) {
            pending.extend(graph.get(id).into_iter().flatten());
        }
    }
    let linked: Vec<_> = packages
        .iter()
        .filter(|(id, _)| reached.contains(**id))
        .map(|(id, it)| (*id, *it))
        .collect();
    let components: Vec<Value> = linked.iter().map(|(_, package)| component(package)).collect();
    let dependencies = linked.iter().map(|(id, package)| {
        let on = graph.get(id).into_iter().flatten().filter_map(|id| packages.get(id));
        let on: Vec<_> = on.map(|on| reference(on)).collect();
        json!({"ref": reference(package), "dependsOn": on})
    });
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {
            "type": "container", "bom-ref": "mizzen-agent-image", "name": "mizzen-agent", "version": version,
        }},
        "dependencies": dependencies.collect::<Vec<_>>(),
        "components": components,
    }))
}

fn is_one_of(package: &Value, names: &[&str]) -> bool {
    package["name"].as_str().is_some_and(|name| names.contains(&name))
}

/// The packages that a node of the graph is linked with: neither for its build nor for its tests.
fn linked(node: &Value) -> BTreeSet<&str> {
    let normal = |dependency: &&Value| {
        let kinds = dependency["dep_kinds"].as_array();
        kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
    };
    let dependencies = node["deps"].as_array().into_iter().flatten().filter(normal);
    dependencies.filter_map(|dependency| dependency["pkg"].as_str()).collect()
}

/// A package's URL (purl), which is its identity too.
fn reference(package: &Value) -> String {
    let field = |name: &str| package[name].as_str().unwrap_or_default().to_owned();
    format!("pkg:cargo/{}@{}", field("name"), field("version"))
}

fn component(package: &Value) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "purl": reference(package),
    });
    if let Some(licence) = package["license"].as_str() {
        // An older spelling of OR, which SPDX does not know.
        component["licenses"] = json!([{"expression": licence.replace('/', " OR ")}]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str) -> Value {
        json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0"})
    }

    #[test]
    fn what_is_linked_is_listed_and_what_builds_and_tests_is_not() {
        let kind = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let packages = ["agent", "linked", "deep", "build", "dev", "other"].map(package);
        let metadata = json!({
            "packages": packages,
            "resolve": {"nodes": [
                {"id": "agent", "deps": [
                    kind("linked", Value::Null), kind("build", "build".into()), kind("dev", "dev".into()),
                ]},
                {"id": "linked", "deps": [kind("deep", Value::Null)]},
                {"id": "deep", "deps": []},
                {"id": "other", "deps": []},
            ]},
        });
        let document = document(&metadata, &["agent"], "1").expect("a document");
        let components = document["components"].as_array().expect("components");
        let names: Vec<_> = components.iter().filter_map(|one| one["name"].as_str()).collect();
        assert_eq!(names, ["agent", "deep", "linked"]);
        assert_eq!(components[0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        let on = document["dependencies"][0]["dependsOn"].as_array().expect("dependencies");
        assert_eq!(on, &[Value::from("pkg:cargo/linked@1.0.0")]);
    }
}
