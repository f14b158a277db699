//! The Helm chart: the objects with Helm's words in their open places. To see that it says the same
//! as the plain manifests there is a renderer here for the few words that it uses; where `helm` is
//! in PATH, `cargo xtask lint` asks it too.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};
use serde::Deserialize as _;
use serde_json::Value;

use super::{
    HEAD,
    objects::{self, Open, VERSION, values},
    privileges,
};
use crate::{checkout, invoke};

/// The condition under which the objects for metrics are made.
const METRICS: &str = ".Values.metrics.enabled";

/// The files, by their paths in the chart.
pub(super) fn files() -> Result<Vec<(String, String)>> {
    let chart = format!(
        "{HEAD}apiVersion: v2\nname: mizzen\ndescription: Node networking of a Kubernetes cluster in one agent\n\
         type: application\nversion: {VERSION}\nappVersion: {VERSION}\nkubeVersion: \">= 1.31.0-0\"\n"
    );
    let agent = template(&objects::agent(Open::Chart))?;
    let metrics = template(&objects::metrics(Open::Chart))?;
    Ok(vec![
        ("Chart.yaml".to_owned(), chart),
        ("values.yaml".to_owned(), format!("{HEAD}{}", values_text()?)),
        ("templates/agent.yaml".to_owned(), agent),
        (
            "templates/metrics.yaml".to_owned(),
            format!("{{{{- if {METRICS} }}}}\n{metrics}{{{{- end }}}}\n"),
        ),
    ])
}

/// The values with what the plain manifests have in files of their own.
fn all_values() -> Value {
    let mut all = values();
    all["metrics"] = serde_json::json!({"enabled": false});
    all
}

/// values.yaml.
fn values_text() -> Result<String> {
    const COMMENTS: [(&str, &str); 3] = [
        (
            "config:",
            "The agent's configuration (docs/configuration.md). While services are on, apiServer has to\n\
             # name the API servers' own addresses, as https://192.0.2.1:6443.",
        ),
        (
            "metrics:",
            "A Service and a ServiceMonitor for Prometheus' operator; set config.metricsBindAddress to\n\
             # \"[::]:10249\" with it.",
        ),
        ("resources:", "The packet path's tables count too; a limit would keep them from growing."),
    ];
    let mut text = serde_yaml_ng::to_string(&all_values())?;
    for (key, comment) in COMMENTS {
        text = text.replace(&format!("\n{key}"), &format!("\n# {comment}\n{key}"));
        if let Some(rest) = text.strip_prefix(key) {
            text = format!("# {comment}\n{key}{rest}");
        }
    }
    Ok(text)
}

/// Objects as a template.
fn template(documents: &[Value]) -> Result<String> {
    let mut rest = privileges::annotated(&objects::yaml(documents)?);
    for (word, filter) in
        [("HELMRAW(", ""), ("HELMTEXT(", " | toJson | toJson"), ("HELM(", " | toJson")]
    {
        let mut text = String::new();
        while let Some((before, behind)) = rest.split_once(word) {
            let (path, after) = behind.split_once(')').context("a word has no end")?;
            text.extend([before, "{{ ", path, filter, " }}"]);
            rest = after.to_owned();
        }
        rest = text + &rest;
    }
    Ok(rest)
}

/// What is wrong with the chart, where with metrics it is not the objects `plain`.
pub(super) fn complaint(plain: &[Value]) -> Result<Option<String>> {
    let mut all = all_values();
    all["metrics"]["enabled"] = true.into();
    let mut rendered = Vec::new();
    for (path, text) in files()? {
        if path.starts_with("templates/") {
            rendered.extend(documents(&render(&text, &all)?)?);
        }
    }
    for (at, object) in plain.iter().enumerate() {
        if rendered.get(at).map(comparable) != Some(comparable(object)) {
            return Ok(Some(format!(
                "deploy/chart: {} with its defaults is not the plain manifest's",
                object["kind"]
            )));
        }
    }
    Ok(helm_says())
}

/// What `helm lint` says against the chart in the tree, where there is a helm.
fn helm_says() -> Option<String> {
    let chart = checkout().join("deploy/chart");
    if !invoke::in_path("helm") || !fs::exists(&chart).unwrap_or(false) {
        return None;
    }
    let said = invoke::capture(Command::new("helm").args(["lint", "--strict"]).arg(&chart));
    said.err().map(|error| format!("deploy/chart: {error:#}"))
}

/// An object whose configuration is what it says, not how it is written.
fn comparable(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(text) = object.pointer_mut("/data/agent.yaml")
        && let Some(said) = text.as_str().and_then(|text| serde_yaml_ng::from_str(text).ok())
    {
        *text = said;
    }
    object
}

fn documents(text: &str) -> Result<Vec<Value>> {
    let all = serde_yaml_ng::Deserializer::from_str(text).map(Value::deserialize);
    Ok(all.collect::<Result<Vec<_>, _>>()?.into_iter().filter(|one| !one.is_null()).collect())
}

/// A template with its words replaced as Helm does.
fn render(template: &str, values: &Value) -> Result<String> {
    let mut rendered = String::new();
    let mut shown = vec![true];
    for line in template.lines() {
        if let Some(condition) = line.strip_prefix("{{- if ") {
            let path = condition.strip_suffix(" }}").context("an if has no end")?;
            shown.push(lookup(path, values)?.as_bool() == Some(true));
        } else if line == "{{- end }}" {
            shown.pop();
        } else if shown.iter().all(|shown| *shown) {
            rendered += &render_line(line, values)?;
            rendered.push('\n');
        }
    }
    Ok(rendered)
}

fn render_line(line: &str, values: &Value) -> Result<String> {
    let (mut rendered, mut rest) = (String::new(), line);
    while let Some((before, behind)) = rest.split_once("{{ ") {
        let (expression, after) = behind.split_once(" }}").context("a word has no end")?;
        let mut steps = expression.split(" | ");
        let mut value = lookup(steps.next().unwrap_or_default(), values)?;
        for filter in steps {
            if filter != "toJson" {
                bail!("{filter} is no filter that is known here");
            }
            value = value.to_string().into();
        }
        let text = value.as_str().with_context(|| format!("{expression} is no text"))?;
        rendered.extend([before, text]);
        rest = after;
    }
    Ok(rendered + rest)
}

fn lookup(path: &str, values: &Value) -> Result<Value> {
    if path == ".Release.Namespace" {
        return Ok("kube-system".into());
    }
    let of_values = path.strip_prefix(".Values.").with_context(|| format!("{path} is unknown"))?;
    let found = values.pointer(&format!("/{}", of_values.replace('.', "/")));
    found.cloned().with_context(|| format!("values.yaml has no {of_values}"))
}
