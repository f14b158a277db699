//! The text of `mizzen why`.

use std::fmt::Write as _;

use super::inspect::{Outcome, columns};
use crate::why::answer::{self, Answer, Answers, Candidate, Path, PathName};

/// Candidates that the text lists; `-o json` has all.
const CANDIDATES_SHOWN: usize = 20;

/// The answers as text, one after another.
pub(super) fn print(body: &str) -> anyhow::Result<(String, Outcome)> {
    let Answers { answers, .. } = serde_json::from_str(body)?;
    let text = answers.iter().map(answer).collect::<Vec<_>>().join("\n");
    let fails = answers.iter().any(|answer| answer.outcome.fails());
    Ok((text, if fails { Outcome::Degraded } else { Outcome::Ok }))
}

fn answer(answer: &Answer) -> String {
    let mut text = format!(
        "{} -> {}/{}\n",
        who(answer),
        answer.destination.address,
        answer.destination.protocol
    );
    if let Some(service) = &answer.service {
        line(&mut text, "service", &service_text(service));
    }
    let [socket, packet] = &answer.paths[..] else { return text };
    let (decides, other) = match answer.decides {
        PathName::Socket => (socket, packet),
        PathName::Packet => (packet, socket),
    };
    path(&mut text, decides, true);
    let same = other.outcome == decides.outcome && other.candidates == decides.candidates;
    if same
        && other.pinned.as_ref().map(|p| &p.address) == decides.pinned.as_ref().map(|p| &p.address)
    {
        let says = source(other).map_or_else(String::new, |source| format!("; source {source}"));
        line(&mut text, heading(other.path), &format!("would do the same{says}"));
    } else {
        path(&mut text, other, false);
    }
    for flow in &answer.flows {
        let text_of = format!(
            "{} -> {} ({}, idle {} s)",
            flow.source, flow.backend, flow.state, flow.idle_seconds
        );
        line(&mut text, "flow", &text_of);
    }
    text
}

fn who(answer: &Answer) -> String {
    let source = &answer.source;
    let name = match (source.kind.as_str(), source.pod.as_str()) {
        ("pod", "") => "a pod",
        ("pod", name) => name,
        ("node", _) => "this node",
        _ => "a client outside",
    };
    format!("{name} ({})", source.address)
}

fn service_text(service: &answer::Service) -> String {
    let mut text = format!("{}/{}", service.namespace, service.name);
    if !service.port.is_empty() {
        let _ = write!(text, " port {}", service.port);
    }
    let _ = write!(
        text,
        ", {}; internal policy {}, external {}",
        service.kind, service.internal_traffic_policy, service.external_traffic_policy
    );
    match service.session_affinity_seconds {
        0 => text.push_str("; no session affinity"),
        seconds => {
            let _ = write!(text, "; session affinity {seconds} s");
        }
    }
    if service.source_ranges {
        text.push_str("; source ranges");
    }
    text
}

fn heading(path: PathName) -> &'static str {
    match path {
        PathName::Socket => "socket path",
        PathName::Packet => "packet path",
    }
}

fn path(text: &mut String, path: &Path, decides: bool) {
    let window = path.window.map_or_else(String::new, |window| {
        let name = serde_json::to_value(window).unwrap_or_default();
        format!(" ({} window)", name.as_str().unwrap_or_default())
    });
    let outcome = serde_json::to_value(path.outcome).unwrap_or_default();
    let outcome = outcome.as_str().unwrap_or_default();
    line(text, heading(path.path), &format!("{outcome}{window}: {}", path.reason));
    if let Some(pinned) = &path.pinned {
        let pod = pinned.pod.as_ref().map_or_else(String::new, |pod| format!(" {pod}"));
        line(text, "", &format!("{}{pod}: {}", pinned.address, pinned.reason));
    }
    if decides || path.pinned.is_none() {
        candidates(text, &path.candidates);
    }
    if let Some(source) = source(path) {
        line(text, "", &format!("source {source}"));
    }
    for exception in path.masquerade.iter().flat_map(|masquerade| &masquerade.exceptions) {
        let seen = seen(&exception.address);
        line(text, "", &format!("source {seen} at {}: {}", exception.candidate, exception.reason));
    }
}

fn candidates(text: &mut String, candidates: &[Candidate]) {
    let row = |candidate: &Candidate| {
        let mut marks = Vec::new();
        if candidate.local {
            marks.push("local");
        }
        if candidate.terminating {
            marks.push("terminating");
        }
        vec![
            format!("{:>6.2} %", candidate.probability * 100.0),
            candidate.address.clone(),
            candidate.pod.clone().unwrap_or_default(),
            marks.join(", "),
        ]
    };
    let rows = candidates.iter().take(CANDIDATES_SHOWN).map(row).collect();
    // The first line holds the heads, which there are none of.
    for row in columns(&["", "", "", ""], rows).lines().skip(1) {
        line(text, "", row);
    }
    if candidates.len() > CANDIDATES_SHOWN {
        let more = candidates.len() - CANDIDATES_SHOWN;
        line(text, "", &format!("and {more} more with as much each"));
    }
}

/// What becomes of the source, and why.
fn source(path: &Path) -> Option<String> {
    let masquerade = path.masquerade.as_ref()?;
    Some(format!("{}: {}", seen(&masquerade.address), masquerade.reason))
}

fn seen(address: &str) -> String {
    if address.is_empty() { "kept".to_owned() } else { format!("rewritten to {address}") }
}

/// A line with what it is about at its left.
fn line(text: &mut String, about: &str, what: &str) {
    let padded = format!("  {about:<12} {what}");
    text.push_str(padded.trim_end());
    text.push('\n');
}
