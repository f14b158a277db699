//! `mizzen flows`: the packet path's connections, and, with `--follow`, what becomes of connections.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
};

use super::inspect::{Format, Outcome, columns, get, open, question};
use crate::{
    follow::{Event, Line, Verdict},
    serve::wire,
    why::answer::Flow,
};

/// Which, and for how long.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Flows {
    /// Follow what becomes of connections from now on: of sockets and packets, refusals and drops
    /// with their reason
    #[arg(short, long)]
    follow: bool,
    /// Only those of this pod, which dials or is dialled
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod)]
    pod: Option<String>,
    /// Only those of this service, or of the services of a namespace
    #[arg(long, value_name = "NAMESPACE[/NAME]")]
    service: Option<String>,
    /// Only those of which this became (repeatable)
    #[arg(long, value_enum, requires = "follow")]
    verdict: Vec<Verdict>,
    /// How many at most; followed without end where nothing is said
    #[arg(long)]
    limit: Option<usize>,
}

/// How many connections are listed where nothing is said.
const LISTED: usize = 1_000;

fn pod(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(text.to_owned()),
        _ => Err("a pod has a namespace and a name, as default/web-0".to_owned()),
    }
}

impl Flows {
    fn parameters(&self) -> Vec<(&'static str, String)> {
        let named = [("pod", self.pod.clone()), ("service", self.service.clone())];
        named.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Lists or follows.
    pub(super) fn execute(&self, state_dir: &Path, format: Format) -> anyhow::Result<Outcome> {
        if self.follow {
            return self.stream(state_dir, format);
        }
        let mut parameters = vec![("limit", self.limit.unwrap_or(LISTED).to_string())];
        parameters.extend(self.parameters());
        let body = get(state_dir, &question("/v1/flows", &parameters))?;
        let text = if format == Format::Json { body + "\n" } else { list(&body)? };
        // A reader that has seen enough, such as `head`, is no failure.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(Outcome::Ok)
    }

    fn stream(&self, state_dir: &Path, format: Format) -> anyhow::Result<Outcome> {
        let mut parameters = self.parameters();
        if !self.verdict.is_empty() {
            let verdicts: Vec<_> = self.verdict.iter().map(|verdict| verdict.name()).collect();
            parameters.push(("verdict", verdicts.join(",")));
        }
        let stream = open(state_dir, &question("/v1/flows/follow", &parameters))?;
        let mut out = std::io::stdout();
        if format == Format::Text && print(&mut out, &heads()).is_none() {
            return Ok(Outcome::Ok);
        }
        let mut told = 0;
        for line in BufReader::new(stream).lines() {
            let line = line?;
            if line.is_empty() {
                continue; // nothing happened for a while
            }
            let parsed: Line = serde_json::from_str(&line)?;
            let text = if format == Format::Json { line } else { row(&parsed) };
            told += usize::from(matches!(parsed, Line::Event(_)));
            if print(&mut out, &text).is_none() || self.limit.is_some_and(|limit| told >= limit) {
                return Ok(Outcome::Ok);
            }
        }
        anyhow::bail!("the agent has ended")
    }
}

/// Prints a line at once; none where nobody reads any more.
fn print(out: &mut impl std::io::Write, line: &str) -> Option<()> {
    writeln!(out, "{line}").and_then(|()| out.flush()).ok()
}

const WIDTHS: [usize; 6] = [12, 10, 5, 40, 40, 30];

fn padded(cells: [&str; 6], last: &str) -> String {
    let mut line = String::new();
    for (cell, width) in cells.into_iter().zip(WIDTHS) {
        // Writing to a String can't fail.
        let _ = write!(line, "{cell:width$}  ");
    }
    line.push_str(last);
    line.trim_end().to_owned()
}

fn heads() -> String {
    padded(["TIME", "VERDICT", "PROTO", "SOURCE", "DIALLED", "BACKEND"], "REASON")
}

fn row(line: &Line) -> String {
    match line {
        Line::Lost { lost } => format!("({lost} events are missing here: too much happened)"),
        Line::Event(event) => event_row(event),
    }
}

fn event_row(event: &Event) -> String {
    let named = |name: &str, at: &str| match (name, at) {
        ("", "") => "-".to_owned(),
        ("", at) => at.to_owned(),
        (name, at) => format!("{name} ({at})"),
    };
    let time = event.time.split_once('T').map_or(&*event.time, |(_, time)| time);
    let time: String = time.trim_end_matches('Z').chars().take(12).collect();
    let mut reason = format!("{} ({})", event.reason, event.path);
    if !event.masqueraded.is_empty() {
        let _ = write!(reason, ", seen as {}", event.masqueraded);
    }
    padded(
        [
            &time,
            event.verdict.name(),
            &event.protocol,
            &named(&event.source_pod, &event.source),
            &named(&event.service, &event.destination),
            &named(&event.backend_pod, &event.backend),
        ],
        &reason,
    )
}

/// The connections as columns.
fn list(body: &str) -> anyhow::Result<String> {
    let wire::Flows { flows, more } = serde_json::from_str(body)?;
    let row = |flow: Flow| {
        let or = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        vec![
            flow.protocol,
            flow.source,
            flow.destination,
            or(flow.service),
            flow.backend,
            or(flow.masqueraded),
            flow.state,
            format!("{}s", flow.idle_seconds),
        ]
    };
    let heads =
        ["PROTO", "SOURCE", "DIALLED", "SERVICE", "BACKEND", "MASQUERADED", "STATE", "IDLE"];
    let mut text = columns(&heads, flows.into_iter().map(row).collect());
    if more {
        text.push_str("there are more than these: see --limit\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_what_and_why() {
        let event = Event {
            time: "2026-11-30T06:25:01.123456789Z".into(),
            verdict: Verdict::Dropped,
            reason: "drop_source_range".into(),
            path: "packet".into(),
            protocol: "TCP".into(),
            source: "192.0.2.7:4000".into(),
            destination: "203.0.113.1:80".into(),
            service: "default/web".into(),
            masqueraded: "172.30.0.11:10000".into(),
            ..Event::default()
        };
        let line = row(&Line::Event(Box::new(event)));
        let words = [
            "06:25:01.123  dropped ",
            "192.0.2.7:4000",
            "default/web (203.0.113.1:80)",
            "drop_source_range (packet), seen as 172.30.0.11:10000",
        ];
        for word in words {
            assert!(line.contains(word), "{word:?} is not in {line}");
        }
        assert!(row(&Line::Lost { lost: 12 }).contains("12 events are missing"));
        assert!(pod("web").is_err() && pod("default/web-0").is_ok());
    }
}
