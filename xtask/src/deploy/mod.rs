//! The manifests in `deploy/`, made of one description: plain ones, a Helm chart and a systemd unit.
//!
//! [`privileges`] says which rights the agent has and why, [`objects`] what the objects are, with
//! the places that somebody may want otherwise left open; [`chart`] fills these with the words of
//! Helm's templates ([`render`] knows what they mean), and the plain manifests with the chart's own
//! defaults. `cargo xtask lint`
//! compares what is in the tree (`--fix` writes it), has every object read by the types of the
//! Kubernetes API, and renders the chart: with its defaults it is the plain manifests.

mod chart;
mod objects;
pub mod privileges;
mod render;
mod schema;
mod unit;
mod values;

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

use objects::Open;

/// A file that is made.
struct File {
    /// Below the checkout.
    path: String,
    text: String,
}

/// Above each file that is made.
const HEAD: &str = "# Made by `cargo xtask lint --fix` from xtask/src/deploy; don't edit it.\n";

/// Every file.
fn files() -> Result<Vec<File>> {
    let file = |path: &str, text: String| File { path: path.to_owned(), text };
    let plain = |documents: &[Value]| -> Result<String> {
        Ok(privileges::annotated(&objects::yaml(documents)?))
    };
    let mut files = vec![
        file(
            "deploy/mizzen.yaml",
            format!("{HEAD}{}{}", objects::NOTE, plain(&objects::agent(Open::Plain))?),
        ),
        file(
            "deploy/metrics.yaml",
            format!("{HEAD}{}{}", objects::METRICS_NOTE, plain(&objects::metrics(Open::Plain))?),
        ),
        file(
            "deploy/cluster-dns.yaml",
            format!("{HEAD}{}{}", objects::CLUSTER_DNS_NOTE, plain(&[objects::cluster_dns()])?),
        ),
        file("deploy/mizzen-agent.service", unit::text()),
        file("docs/privileges.md", privileges::page()),
    ];
    files.extend(
        chart::files()?.into_iter().map(|(path, text)| file(&format!("deploy/chart/{path}"), text)),
    );
    Ok(files)
}

/// Writes every file of the checkout at `root`.
pub fn write(root: &Path) -> Result<()> {
    for file in files()? {
        let path = root.join(&file.path);
        let folder = path.parent().unwrap_or(root);
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        fs::write(&path, file.text).with_context(|| format!("can't write {}", file.path))?;
    }
    Ok(())
}

/// What is wrong with the files of the checkout at `root`.
pub fn complaints(root: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for file in files()? {
        if fs::read_to_string(root.join(&file.path)).ok().as_ref() != Some(&file.text) {
            complaints.push(format!("{}: `cargo xtask lint --fix` makes another one", file.path));
        }
    }
    let plain = [objects::agent(Open::Plain), objects::metrics(Open::Plain)].concat();
    for document in plain.iter().chain([&objects::cluster_dns()]) {
        complaints.extend(schema::complaint(document));
    }
    complaints.extend(chart::complaint(&plain)?);
    complaints.extend(chart::unfollowed()?);
    Ok(complaints)
}

/// The file `deploy/chart/values.schema.json`, by a schema of the agent's configuration.
pub fn values_schema(of_config: &Value) -> Result<String> {
    values::schema(of_config)
}

/// The objects of `deploy/mizzen.yaml`.
pub fn agent_objects() -> Vec<Value> {
    objects::agent(Open::Plain)
}

/// The object of `deploy/cluster-dns.yaml`.
pub fn cluster_dns() -> Value {
    objects::cluster_dns()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_are_what_the_kubernetes_api_knows() {
        let plain = [objects::agent(Open::Plain), objects::metrics(Open::Plain)].concat();
        let complaints: Vec<_> = plain.iter().filter_map(schema::complaint).collect();
        assert!(complaints.is_empty(), "{complaints:?}");
        let mut wrong = plain[4].clone();
        wrong["spec"]["updateStrategy"]["rollingUpdates"] = 1.into();
        assert!(schema::complaint(&wrong).is_some_and(|it| it.contains("rollingUpdates")));
    }

    #[test]
    fn the_chart_with_its_defaults_is_the_plain_manifests() {
        let plain = [objects::agent(Open::Plain), objects::metrics(Open::Plain)].concat();
        let complaint = chart::complaint(&plain).expect("a chart");
        assert_eq!(complaint, None);
        assert!(chart::complaint(&plain[1..]).expect("a chart").is_some());
    }

    #[test]
    fn folders_of_the_configuration_are_those_of_the_chart_s_pod() {
        assert_eq!(chart::unfollowed().expect("a chart"), None);
    }
}
