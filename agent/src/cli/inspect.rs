//! `mizzen`: asks the agent of this node by its socket, and prints the answer.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::serve::{listen::SOCKET, wire};

/// How long the agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  mizzen status                    how the agent's parts are
  mizzen services -o json          every service port, for scripts
  mizzen --state-dir /run/x diff   what the kernel's tables lack

Exit codes: 0 ok, 1 failure, 2 usage, 3 degraded (status: not ready; diff: there are differences;
backends: the tables are at fault)";

/// Looks into the Mizzen agent of this node.
#[derive(Debug, Parser)]
#[command(name = "mizzen", version, about, after_help = EXAMPLES, max_term_width = 100)]
pub struct Mizzen {
    /// The agent's state folder, where its socket is
    #[arg(long, global = true, env = "MIZZEN_STATE_DIR", default_value = "/run/mizzen")]
    state_dir: PathBuf,
    /// How to print
    #[arg(short, long, global = true, default_value = "text")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Columns for people
    Text,
    /// JSON for scripts
    Json,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// How the agent and its parts are
    Status,
    /// The services' ports, what clients dial, and how many backends take it
    Services,
    /// What each frontend leads to, as the kernel's tables have it
    Backends,
    /// What would be written if the kernel's tables were compared with what they should be
    Diff,
    /// Completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Ok,
    /// The question was answered, and the answer is that something is not as it should be.
    Degraded,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ok => Self::SUCCESS,
            Outcome::Degraded => Self::from(3),
        }
    }
}

/// Turns an answer's body into text.
type Print = fn(&str) -> anyhow::Result<(String, Outcome)>;

impl Mizzen {
    /// Does what the command line says.
    pub fn execute(self) -> anyhow::Result<Outcome> {
        let (path, print): (_, Print) = match self.command {
            Command::Status => ("/v1/status", status),
            Command::Services => ("/v1/services", services),
            Command::Backends => ("/v1/backends", backends),
            Command::Diff => ("/v1/diff", diff),
            Command::Completions { shell } => {
                clap_complete::generate(
                    shell,
                    &mut Self::command(),
                    "mizzen",
                    &mut std::io::stdout(),
                );
                return Ok(Outcome::Ok);
            }
        };
        let body = get(&self.state_dir, path)?;
        let (text, outcome) = print(&body)?;
        let text = if self.output == Format::Json { body + "\n" } else { text };
        // A reader that has seen enough, such as `head`, is no failure.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(outcome)
    }
}

/// The body of the agent's answer.
fn get(state_dir: &Path, path: &str) -> anyhow::Result<String> {
    let socket = state_dir.join(SOCKET);
    let mut stream = UnixStream::connect(&socket).with_context(|| {
        format!(
            "can't reach the agent at {}: it must run on this node, --state-dir or \
             MIZZEN_STATE_DIR must name its state folder, and you must be root",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the agent did not answer in time")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the agent's answer is cut off")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("the agent answers: {}", body.trim());
    }
    Ok(body.to_owned())
}

fn status(body: &str) -> anyhow::Result<(String, Outcome)> {
    let status: wire::Status = serde_json::from_str(body)?;
    let state = if status.ready { "ready" } else { "not ready" };
    let mut text = format!("mizzen-agent {} on {}: {state}\n", status.version, status.node);
    let rows = status.parts.into_iter().map(|part| vec![part.name, part.state, part.reason]);
    text.push_str(&columns(&["PART", "STATE", "REASON"], rows.collect()));
    for warning in status.warnings {
        text.push_str("warning: ");
        text.push_str(&warning);
        text.push('\n');
    }
    Ok((text, if status.ready { Outcome::Ok } else { Outcome::Degraded }))
}

fn services(body: &str) -> anyhow::Result<(String, Outcome)> {
    let services: Vec<wire::Service> = serde_json::from_str(body)?;
    let row = |service: wire::Service| {
        vec![
            service.namespace,
            service.name,
            if service.port.is_empty() { "-".to_owned() } else { service.port },
            service.family,
            service.internal.to_string(),
            service.external.to_string(),
            service.frontends.join(","),
        ]
    };
    let heads = ["NAMESPACE", "NAME", "PORT", "FAMILY", "INTERNAL", "EXTERNAL", "FRONTENDS"];
    Ok((columns(&heads, services.into_iter().map(row).collect()), Outcome::Ok))
}

fn backends(body: &str) -> anyhow::Result<(String, Outcome)> {
    let frontends: Vec<wire::Frontend> = serde_json::from_str(body)?;
    let sound = frontends.iter().all(|frontend| frontend.fault.is_empty());
    let row = |frontend: wire::Frontend| {
        let names = |names: Vec<String>| {
            if names.is_empty() { "-".to_owned() } else { names.join(",") }
        };
        let internal = names(frontend.internal);
        let backends = if frontend.fault.is_empty() { internal } else { frontend.fault };
        let service = if frontend.service.is_empty() { "-".to_owned() } else { frontend.service };
        vec![frontend.frontend, service, backends]
    };
    let text =
        columns(&["FRONTEND", "SERVICE", "BACKENDS"], frontends.into_iter().map(row).collect());
    Ok((text, if sound { Outcome::Ok } else { Outcome::Degraded }))
}

fn diff(body: &str) -> anyhow::Result<(String, Outcome)> {
    let diff: wire::Diff = serde_json::from_str(body)?;
    if diff.steps.is_empty() {
        return Ok(("the tables are as they should be\n".to_owned(), Outcome::Ok));
    }
    Ok((diff.steps.join("\n") + "\n", Outcome::Degraded))
}

/// Left-aligned columns; the last is not padded.
fn columns(heads: &[&str], mut rows: Vec<Vec<String>>) -> String {
    rows.insert(0, heads.iter().map(|&head| head.to_owned()).collect());
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..heads.len()).map(|n| width(n).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Mizzen::command().debug_assert();
        super::super::Agent::command().debug_assert();
    }

    #[test]
    fn a_status_that_is_not_ready_is_degraded_and_says_why() {
        let part = |name: &str, state: &str, reason: &str| wire::Part {
            name: name.into(),
            state: state.into(),
            reason: reason.into(),
        };
        let status_of = |ready, parts| wire::Status {
            version: "1".into(),
            node: "n".into(),
            ready,
            parts,
            warnings: vec!["service a/b: x".into()],
        };
        let parts = vec![part("cni", "waiting", "no podCIDRs"), part("dns", "ready", "")];
        let body = serde_json::to_string(&status_of(false, parts)).unwrap();
        let (text, outcome) = status(&body).unwrap();
        assert_eq!(outcome, Outcome::Degraded);
        assert!(text.contains("cni   waiting  no podCIDRs\n"), "{text}");
        assert!(text.ends_with("warning: service a/b: x\n"), "{text}");
    }

    #[test]
    fn an_unreachable_agent_is_a_failure_with_the_remedy() {
        let error = get(Path::new("/nonexistent"), "/v1/status").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/agent.sock"), "{error}");
        assert!(error.contains("--state-dir") && error.contains("root"), "{error}");
    }
}
