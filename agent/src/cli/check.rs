//! The text of `mizzen check`.

use super::inspect::Outcome;
use crate::check::{Finding, Report, Verdict};

/// The findings as text, a line each, with what to do below it.
pub(super) fn print(body: &str) -> anyhow::Result<(String, Outcome)> {
    let Report { node, healthy, findings } = serde_json::from_str(body)?;
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let lines: String = findings.iter().map(|finding| line(finding, width)).collect();
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (failed, warned) = (count(Verdict::Fail), count(Verdict::Warn));
    let is = if healthy { "is healthy" } else { "is not healthy" };
    let end = match (failed, warned) {
        (0, 0) => String::new(),
        (0, _) => format!("; warnings: {warned}"),
        _ => format!("; failures: {failed}, warnings: {warned}"),
    };
    let text = format!("{lines}{node} {is}{end}\n");
    Ok((text, if healthy { Outcome::Ok } else { Outcome::Degraded }))
}

/// A finding: a line, and what to do below it.
pub(super) fn line(finding: &Finding, width: usize) -> String {
    let verdict = match finding.verdict {
        Verdict::Ok => "ok  ",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
    };
    let line = format!("{verdict}  {:width$}  {}\n", finding.check, finding.said);
    if finding.remedy.is_empty() {
        return line;
    }
    format!("{line}{:indent$}do: {}\n", "", finding.remedy, indent = width + 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verdicts: &[(Verdict, &str)]) -> (String, Outcome) {
        let finding = |(verdict, remedy): &(Verdict, &str)| Finding {
            check: "ports".into(),
            verdict: *verdict,
            said: "seen".into(),
            remedy: (*remedy).into(),
        };
        let findings: Vec<Finding> = verdicts.iter().map(finding).collect();
        let healthy = findings.iter().all(|finding| finding.verdict != Verdict::Fail);
        let report = Report { node: "n".into(), healthy, findings };
        print(&serde_json::to_string(&report).unwrap()).unwrap()
    }

    #[test]
    fn what_fails_is_degraded_and_says_what_to_do() {
        let (text, outcome) = report(&[(Verdict::Ok, ""), (Verdict::Fail, "mend it")]);
        assert_eq!(outcome, Outcome::Degraded);
        let lines = ["ok    ports  seen", "FAIL  ports  seen", "             do: mend it"];
        let end = "n is not healthy; failures: 1, warnings: 0";
        assert_eq!(text.lines().collect::<Vec<_>>(), [&lines[..], &[end]].concat());
    }

    #[test]
    fn warnings_do_not_make_a_node_unhealthy() {
        let (text, outcome) = report(&[(Verdict::Warn, "mend it")]);
        assert_eq!(outcome, Outcome::Ok);
        assert!(text.ends_with("n is healthy; warnings: 1\n"), "{text}");
        assert_eq!(report(&[(Verdict::Ok, "")]).0.lines().last(), Some("n is healthy"));
    }
}
