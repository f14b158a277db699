//! `mizzen status`: one screen that says that the node is healthy, or what is wrong and what to do.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    check,
    inspect::{Format, Outcome, columns, get},
};
use crate::{
    check::{Finding, Report, Verdict},
    serve::wire,
};

/// What is to be printed, and how it is.
pub(super) fn ask(state_dir: &Path, format: Format) -> anyhow::Result<(String, Outcome)> {
    let status = get(state_dir, "/v1/status")?;
    // An agent that says how its parts are is worth hearing, whatever else it can't say.
    let checked = get(state_dir, "/v1/check").map_err(|error| error.to_string());
    answer(&status, checked.as_deref().map_err(String::as_str), format)
}

fn answer(
    status: &str,
    checked: Result<&str, &str>,
    format: Format,
) -> anyhow::Result<(String, Outcome)> {
    let parsed: wire::Status = serde_json::from_str(status)?;
    let findings = match checked {
        Ok(report) => serde_json::from_str::<Report>(report)?.findings,
        Err(why) => vec![Finding {
            check: "check".into(),
            verdict: Verdict::Fail,
            said: format!("it can't be told how the node is: {why}"),
            remedy: "see the agent's log, and `mizzen check`".into(),
        }],
    };
    // That a part is not ready is said with the parts.
    let of_parts = |finding: &Finding| finding.check == "agent" && !parsed.ready;
    let wrong: Vec<Finding> = findings
        .into_iter()
        .filter(|finding| finding.verdict != Verdict::Ok && !of_parts(finding))
        .collect();
    let healthy = parsed.ready && wrong.iter().all(|finding| finding.verdict != Verdict::Fail);
    let outcome = if healthy { Outcome::Ok } else { Outcome::Degraded };
    if format == Format::Json {
        let mut all: Value = serde_json::from_str(status)?;
        all["healthy"] = json!(healthy);
        all["findings"] = serde_json::to_value(&wrong)?;
        return Ok((format!("{all}\n"), outcome));
    }
    Ok((screen(parsed, &wrong, healthy), outcome))
}

fn screen(status: wire::Status, wrong: &[Finding], healthy: bool) -> String {
    let state = match (status.ready, healthy) {
        (_, true) => "healthy",
        (true, false) => "not healthy",
        (false, false) => "not ready",
    };
    let mut text = format!("mizzen-agent {} on {}: {state}\n", status.version, status.node);
    let rows = status.parts.into_iter().map(|part| vec![part.name, part.state, part.reason]);
    text.push_str(&columns(&["PART", "STATE", "REASON"], rows.collect()));
    let width = wrong.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    text.extend(wrong.iter().map(|finding| check::line(finding, width)));
    for warning in status.warnings {
        text.push_str("warning: ");
        text.push_str(&warning);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(ready: bool, parts: &[(&str, &str, &str)]) -> String {
        let part = |(name, state, reason): &(&str, &str, &str)| wire::Part {
            name: (*name).into(),
            state: (*state).into(),
            reason: (*reason).into(),
        };
        let status = wire::Status {
            version: "1".into(),
            node: "n".into(),
            ready,
            parts: parts.iter().map(part).collect(),
            warnings: vec!["service a/b: x".into()],
        };
        serde_json::to_string(&status).unwrap()
    }

    fn report(findings: &[(&str, Verdict)]) -> String {
        let finding = |(check, verdict): &(&str, Verdict)| Finding {
            check: (*check).into(),
            verdict: *verdict,
            said: "seen".into(),
            remedy: if *verdict == Verdict::Ok { String::new() } else { "mend it".into() },
        };
        let findings: Vec<Finding> = findings.iter().map(finding).collect();
        let healthy = findings.iter().all(|finding| finding.verdict != Verdict::Fail);
        serde_json::to_string(&Report { node: "n".into(), healthy, findings }).unwrap()
    }

    fn text(status: &str, checked: Result<&str, &str>) -> (String, Outcome) {
        answer(status, checked, Format::Text).unwrap()
    }

    #[test]
    fn a_status_that_is_not_ready_is_degraded_and_says_why() {
        let status = status_of(false, &[("cni", "waiting", "no podCIDRs"), ("dns", "ready", "")]);
        let (text, outcome) = text(&status, Ok(&report(&[("agent", Verdict::Fail)])));
        assert_eq!(outcome, Outcome::Degraded);
        assert!(text.starts_with("mizzen-agent 1 on n: not ready\n"), "{text}");
        assert!(text.contains("cni   waiting  no podCIDRs\n"), "{text}");
        assert!(text.ends_with("warning: service a/b: x\n"), "{text}");
        assert!(!text.contains("FAIL"), "the part says it: {text}");
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let ready = status_of(true, &[("dns", "ready", "")]);
        let (said, outcome) = text(&ready, Ok(&report(&[("settings", Verdict::Fail)])));
        assert_eq!(outcome, Outcome::Degraded);
        assert!(said.starts_with("mizzen-agent 1 on n: not healthy\n"), "{said}");
        assert!(said.contains("FAIL  settings  seen\n"), "{said}");
        assert!(said.contains("do: mend it\n"), "{said}");
        let (said, outcome) = text(&ready, Err("no answer"));
        assert_eq!(outcome, Outcome::Degraded);
        assert!(said.contains("no answer"), "{said}");
    }

    #[test]
    fn a_healthy_node_is_healthy_with_warnings_too() {
        let ready = status_of(true, &[("dns", "ready", "")]);
        let found = report(&[("ports", Verdict::Ok), ("kernel", Verdict::Warn)]);
        let (said, outcome) = text(&ready, Ok(&found));
        assert_eq!(outcome, Outcome::Ok);
        assert!(said.starts_with("mizzen-agent 1 on n: healthy\n"), "{said}");
        assert!(said.contains("warn  kernel  seen\n") && !said.contains("ports"), "{said}");
        let (said, _) = answer(&ready, Ok(&found), Format::Json).unwrap();
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&said["healthy"], &said["ready"]), (&json!(true), &json!(true)));
        assert_eq!(said["findings"][0]["check"], "kernel");
    }
}
