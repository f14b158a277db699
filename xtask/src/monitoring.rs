//! The dashboard and the alert rules in `deploy/monitoring`: which metrics they need, and whether each
//! alert has a runbook.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The alert rules, below the checkout.
const ALERTS: &str = "deploy/monitoring/alerts.yaml";
/// The dashboard.
const DASHBOARD: &str = "deploy/monitoring/grafana.json";
/// Where the runbooks are.
const RUNBOOKS: &str = "docs/operations.md";
/// What a runbook has.
const RUNBOOK: [&str; 3] = ["**Symptom**", "**Command**", "**Remedy**"];

/// What the metrics' names begin with; any other word of an expression is PromQL's.
const PREFIXES: [&str; 4] = ["mizzen_", "kubeproxy_", "coredns_", "process_"];

fn read(root: &Path, file: &str) -> Result<String> {
    fs::read_to_string(root.join(file)).with_context(|| format!("can't read {file}"))
}

fn alerts(root: &Path) -> Result<Vec<Value>> {
    let rules: Value = serde_yaml_ng::from_str(&read(root, ALERTS)?).context(ALERTS)?;
    let groups = rules["groups"].as_array().into_iter().flatten();
    Ok(groups.flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect())
}

/// Every expression of the rules and of the dashboard.
fn expressions(root: &Path) -> Result<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut all: Vec<String> =
        alerts(root)?.iter().filter_map(|alert| text(&alert["expr"])).collect();
    let board: Value = serde_json::from_str(&read(root, DASHBOARD)?).context(DASHBOARD)?;
    let panels = board["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    all.extend(targets.filter_map(|target| text(&target["expr"])));
    let variables = board["templating"]["list"].as_array().into_iter().flatten();
    all.extend(variables.filter_map(|variable| text(&variable["query"]["query"])));
    Ok(all)
}

/// The metrics that an expression names.
fn named(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)))
}

/// Every metric that the dashboard or an alert rule of the checkout at `root` names.
pub fn metrics(root: &Path) -> Result<BTreeSet<String>> {
    let expressions = expressions(root)?;
    Ok(expressions.iter().flat_map(|text| named(text)).map(str::to_owned).collect())
}

/// What is wrong with the alert rules: without a summary, or without a runbook that says symptom,
/// command and remedy.
pub fn complaints(root: &Path) -> Result<Vec<String>> {
    let page = read(root, RUNBOOKS)?;
    let alerts = alerts(root)?;
    let mut complaints: Vec<String> =
        alerts.iter().filter_map(|alert| complaint(alert, &page)).collect();
    if alerts.is_empty() {
        complaints.push(format!("{ALERTS} has no alerts"));
    }
    for expression in expressions(root)? {
        if named(&expression).next().is_none() && !expression.contains("up{") {
            complaints.push(format!("{DASHBOARD} or {ALERTS}: {expression} names no metric"));
        }
    }
    Ok(complaints)
}

fn complaint(alert: &Value, page: &str) -> Option<String> {
    let name = alert["alert"].as_str().unwrap_or_default();
    let notes = &alert["annotations"];
    if notes["summary"].as_str().is_none_or(str::is_empty) {
        return Some(format!("{ALERTS}: {name} has no summary"));
    }
    let anchor = format!("{RUNBOOKS}#{}", name.to_lowercase());
    if notes["runbook"] != anchor {
        return Some(format!("{ALERTS}: the runbook of {name} is not {anchor}"));
    }
    let heading = format!("\n#### {name}\n");
    let Some((_, text)) = page.split_once(&heading) else {
        return Some(format!("{RUNBOOKS} has no runbook (####) for the alert {name}"));
    };
    let text = text.split("\n#").next().unwrap_or_default();
    let missing = RUNBOOK.into_iter().find(|part| !text.contains(part))?;
    Some(format!("{RUNBOOKS}: the runbook of {name} has no {missing}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_alert_without_a_whole_runbook_is_complained_of() {
        let alert = |runbook: &str| {
            json!({"alert": "Down", "expr": "mizzen_x > 1",
                   "annotations": {"summary": "it is down", "runbook": runbook}})
        };
        let good = "\n#### Down\n\n**Symptom** a **Command** b **Remedy** c\n\n#### Next\n";
        let anchor = "docs/operations.md#down";
        assert_eq!(complaint(&alert(anchor), good), None);
        assert!(complaint(&alert("elsewhere"), good).is_some());
        assert!(complaint(&alert(anchor), "\n#### Other\n").is_some());
        let half = "\n#### Down\n\n**Symptom** a\n\n#### Next\n\n**Command** **Remedy**\n";
        assert!(complaint(&alert(anchor), half).is_some_and(|it| it.contains("Command")));
        assert!(complaint(&json!({"alert": "Down", "annotations": {}}), good).is_some());
    }

    #[test]
    fn metrics_are_told_from_words_of_promql() {
        let expression = "sum by (mizzen) (rate(mizzen_a_total{x=\"y\"}[5m])) / kubeproxy_b > up";
        assert_eq!(named(expression).collect::<Vec<_>>(), ["mizzen_a_total", "kubeproxy_b"]);
    }
}
