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

use super::{
    bugreport::BugReport, check, flows::Flows, log::Log, man, migrate::Migrate, names, pod_network,
    status, traffic, why,
};
use crate::{
    serve::{listen::SOCKET, wire},
    why::question::{Destination, Source, object_key},
};

/// How long the agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stream of its may be silent, in which it says something all the time.
const SILENCE: Duration = Duration::from_mins(1);
/// Octets of the head of an answer.
const HEAD_MAX: usize = 16 * 1024;

const EXAMPLES: &str = "\
Examples:
  mizzen status                    whether the node is healthy, else what is wrong and what to do
  mizzen check                     what is wrong with the datapath, and what to do
  mizzen services -o json          every service port, for scripts
  mizzen backends kube-system/kube-dns
  mizzen backends --traffic default            who was sent how much, former backends summed up
  mizzen why default/client default/web:80     where a connection goes, and why
  mizzen why 192.0.2.7 192.0.2.1:30080/udp     the same for a client outside
  mizzen flows --follow --verdict dropped      what is dropped from now on, and why
  mizzen flows --follow --service default/web  where each new connection of a service goes
  mizzen log set debug             log more, until `mizzen log reset`
  mizzen bugreport                 what a maintainer needs, in one file
  mizzen routes                    how other nodes' pods are reached: directly or by a tunnel
  mizzen dns web --from default/client         what a pod gets for a name, step by step, and why
  mizzen dns www.example.org --type AAAA       the same for a full name
  mizzen migrate plan              what of kube-proxy is left on this node, and what to do about it
  mizzen --state-dir /run/x diff   what the kernel's tables lack

Exit codes: 0 ok, 1 failure, 2 usage, 3 degraded (status: not ready, or something fails; check: something fails; diff:
there are differences; pods, routes: something is damaged or missing; backends: the tables are at fault; why: the connection is refused or dropped;
dns: there is no such name or record)";

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
pub(super) enum Format {
    /// Columns for people
    Text,
    /// JSON for scripts
    Json,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Whether this node is healthy; what is wrong, and what to do, where it is not
    Status,
    /// The services' ports, their policies, what clients dial, and their endpoints
    Services(Filter),
    /// What each frontend leads to, as the kernel's tables have it
    Backends {
        #[command(flatten)]
        filter: Filter,
        /// What each backend was sent by this node, instead
        #[arg(long)]
        traffic: bool,
    },
    /// Where a connection goes and why, by the code and the tables that decide it
    Why {
        /// Who dials: `node`, namespace/name of a pod, an address, or address:port of a connection
        #[arg(value_name = "SRC")]
        source: Source,
        /// What is dialled: namespace/name of a service or an address
        #[arg(value_name = "DST[:PORT][/PROTO]")]
        destination: Destination,
    },
    /// The packet path's connections; with --follow, what becomes of connections from now on
    Flows(Flows),
    /// How this node's resolver answers a name, and why
    Dns {
        /// The name, or an address for its name
        name: String,
        /// The pod that asks, whose search list is gone through; else the name is a full one
        #[arg(long, value_name = "[NAMESPACE/]POD")]
        from: Option<String>,
        /// The type of record [default: A, of an address PTR]
        #[arg(long = "type", value_name = "TYPE", value_parser = names::record_type)]
        kind: Option<String>,
    },
    /// The pods that this node's agent connected, and how their links are
    Pods(Filter),
    /// How the pods of each other node are reached, and why so
    Routes,
    /// Whether this node's datapath and pod network are healthy, and what to do where they are not
    Check,
    /// What would be written if the kernel's tables were compared with what they should be
    Diff,
    /// From kube-proxy to Mizzen on this node, and back
    Migrate(Migrate),
    /// What the agent logs: show it, or change it while the agent runs
    Log(Log),
    /// Pack what a maintainer needs into one file, with secrets removed
    Bugreport(BugReport),
    /// Write the manual pages of mizzen and mizzen-agent into a folder
    Man {
        /// The folder
        folder: PathBuf,
    },
    /// Completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Which services.
#[derive(Clone, Debug, clap::Args)]
struct Filter {
    /// Only those of a namespace, or the one with this namespace/name
    #[arg(value_name = "NAMESPACE[/NAME]", value_parser = namespace_or_name)]
    service: Option<String>,
}

/// A namespace, or the name of something in one; that of a pod's host ports is `NAMESPACE/pod/NAME`.
fn namespace_or_name(text: &str) -> Result<String, String> {
    let (namespace, name) = text.split_once('/').unwrap_or((text, "any"));
    let name = name.strip_prefix("pod/").unwrap_or(name);
    match object_key(namespace, name) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("{text:?} is neither a namespace nor namespace/name")),
    }
}

impl Filter {
    /// As parameters of the question.
    fn parameters(&self) -> Vec<(&'static str, String)> {
        let Some(service) = &self.service else { return Vec::new() };
        match service.split_once('/') {
            Some((namespace, name)) => {
                vec![("namespace", namespace.to_owned()), ("name", name.to_owned())]
            }
            None => vec![("namespace", service.clone())],
        }
    }
}

/// A path with parameters.
pub(super) fn question(path: &str, parameters: &[(&'static str, String)]) -> String {
    if parameters.is_empty() {
        return path.to_owned();
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(parameters);
    format!("{path}?{}", query.finish())
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
            Command::Status => {
                let (text, outcome) = status::ask(&self.state_dir, self.output)?;
                // A reader that has seen enough, such as `head`, is no failure.
                let _ = std::io::stdout().write_all(text.as_bytes());
                return Ok(outcome);
            }
            Command::Services(filter) => (question("/v1/services", &filter.parameters()), services),
            Command::Backends { filter, traffic: false } => {
                (question("/v1/backends", &filter.parameters()), backends)
            }
            Command::Backends { filter, traffic: true } => {
                (question("/v1/traffic", &filter.parameters()), traffic::print)
            }
            Command::Diff => ("/v1/diff".to_owned(), diff),
            Command::Dns { name, from, kind } => {
                let given = [("name", Some(name)), ("from", from), ("type", kind)];
                let given = given.into_iter().filter_map(|(key, value)| Some((key, value?)));
                (question("/v1/dns", &given.collect::<Vec<_>>()), names::print)
            }
            Command::Pods(filter) => {
                (question("/v1/pods", &filter.parameters()), pod_network::pods)
            }
            Command::Routes => ("/v1/routes".to_owned(), pod_network::routes),
            Command::Check => ("/v1/check".to_owned(), check::print),
            Command::Why { source, destination } => {
                let parameters =
                    [("source", source.to_string()), ("destination", destination.to_string())];
                (question("/v1/why", &parameters), why::print)
            }
            Command::Flows(flows) => return flows.execute(&self.state_dir, self.output),
            Command::Log(log) => return log.execute(&self.state_dir, self.output),
            Command::Bugreport(report) => return report.execute(&self.state_dir),
            Command::Man { folder } => {
                man::write(&folder)?;
                return Ok(Outcome::Ok);
            }
            Command::Migrate(migrate) => return migrate.execute(&self.state_dir, self.output),
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
        let body = get(&self.state_dir, &path)?;
        let (text, outcome) = print(&body)?;
        let text = if self.output == Format::Json { body + "\n" } else { text };
        // A reader that has seen enough, such as `head`, is no failure.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(outcome)
    }
}

/// The body of the agent's answer.
pub(super) fn get(state_dir: &Path, path: &str) -> anyhow::Result<String> {
    ask(state_dir, "GET", path)
}

/// The same, by another method.
pub(super) fn ask(state_dir: &Path, method: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = connect(state_dir)?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the agent did not answer in time")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the agent's answer is cut off")?;
    if !is_ok(head) {
        bail!("the agent answers: {}", body.trim());
    }
    Ok(body.to_owned())
}

/// An answer that goes on until one of both ends it. By HTTP/1.0, it has no form of its own.
pub(super) fn open(state_dir: &Path, path: &str) -> anyhow::Result<UnixStream> {
    let mut stream = connect(state_dir)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: agent\r\n\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        stream.read_exact(&mut octet).context("the agent did not answer in time")?;
        head.push(octet[0]);
        anyhow::ensure!(head.len() < HEAD_MAX, "the agent's answer has no end of its head");
    }
    if !is_ok(&String::from_utf8_lossy(&head)) {
        let mut body = String::new();
        stream.read_to_string(&mut body).context("the agent's answer is cut off")?;
        bail!("the agent answers: {}", body.trim());
    }
    stream.set_read_timeout(Some(SILENCE))?;
    Ok(stream)
}

fn is_ok(head: &str) -> bool {
    head.split_whitespace().nth(1) == Some("200")
}

fn connect(state_dir: &Path) -> anyhow::Result<UnixStream> {
    let socket = state_dir.join(SOCKET);
    let stream = UnixStream::connect(&socket).with_context(|| {
        format!(
            "can't reach the agent at {}: it must run on this node, --state-dir or \
             MIZZEN_STATE_DIR must name its state folder, and you must be root",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn services(body: &str) -> anyhow::Result<(String, Outcome)> {
    let services: Vec<wire::Service> = serde_json::from_str(body)?;
    let row = |service: wire::Service| {
        let port = if service.port.is_empty() { "-".to_owned() } else { service.port };
        let affinity = match service.session_affinity_seconds {
            0 => "-".to_owned(),
            seconds => format!("{seconds}s"),
        };
        let endpoints = match service.terminating {
            0 => format!("{} ({} local)", service.endpoints, service.local),
            terminating => format!(
                "{} ({} local, {terminating} terminating)",
                service.endpoints, service.local
            ),
        };
        let policies =
            format!("{}/{}", service.internal_traffic_policy, service.external_traffic_policy);
        vec![
            service.namespace,
            service.name,
            port,
            service.kind,
            policies,
            affinity,
            endpoints,
            service.traffic.connections().to_string(),
            traffic::octets(service.traffic.sent_bytes()),
            traffic::octets(service.traffic.received_bytes()),
            service.frontends.join(","),
        ]
    };
    let heads = [
        "NAMESPACE",
        "NAME",
        "PORT",
        "TYPE",
        "INT/EXT",
        "AFFINITY",
        "ENDPOINTS",
        "CONNECTIONS",
        "SENT",
        "RECEIVED",
        "FRONTENDS",
    ];
    Ok((columns(&heads, services.into_iter().map(row).collect()), Outcome::Ok))
}

fn backends(body: &str) -> anyhow::Result<(String, Outcome)> {
    let frontends: Vec<wire::Frontend> = serde_json::from_str(body)?;
    let sound = frontends.iter().all(|frontend| frontend.fault.is_empty());
    let rows = frontends.into_iter().flat_map(frontend_rows).collect();
    let text = columns(&["FRONTEND", "SERVICE", "FROM", "BACKENDS"], rows);
    Ok((text, if sound { Outcome::Ok } else { Outcome::Degraded }))
}

/// A row, or one for each side where clients inside and outside find other backends.
fn frontend_rows(of: wire::Frontend) -> Vec<Vec<String>> {
    let service = if of.service.is_empty() { "-".to_owned() } else { of.service };
    let row = |from: &str, backends: &str| {
        vec![of.frontend.clone(), service.clone(), from.to_owned(), backends.to_owned()]
    };
    let names = |names: &[String]| {
        if names.is_empty() { "-".to_owned() } else { names.join(",") }
    };
    if !of.fault.is_empty() {
        vec![row("all", &of.fault)]
    } else if !of.outside {
        vec![row("all", &names(&of.internal))]
    } else if of.external == of.nearby {
        vec![row("all", &names(&of.external))]
    } else {
        vec![row("outside", &names(&of.external)), row("here", &names(&of.nearby))]
    }
}

fn diff(body: &str) -> anyhow::Result<(String, Outcome)> {
    let diff: wire::Diff = serde_json::from_str(body)?;
    if diff.steps.is_empty() {
        return Ok(("the tables are as they should be\n".to_owned(), Outcome::Ok));
    }
    Ok((diff.steps.join("\n") + "\n", Outcome::Degraded))
}

/// Left-aligned columns; the last is not padded.
pub(super) fn columns(heads: &[&str], mut rows: Vec<Vec<String>>) -> String {
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
    fn an_unreachable_agent_is_a_failure_with_the_remedy() {
        let error = get(Path::new("/nonexistent"), "/v1/status").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/agent.sock"), "{error}");
        assert!(error.contains("--state-dir") && error.contains("root"), "{error}");
    }

    #[test]
    fn questions_are_encoded() {
        let parameters = [("source", "a/b".to_owned()), ("destination", "[fd00::1]:80".to_owned())];
        assert_eq!(
            question("/v1/why", &parameters),
            "/v1/why?source=a%2Fb&destination=%5Bfd00%3A%3A1%5D%3A80"
        );
        assert_eq!(
            question("/v1/services", &Filter { service: None }.parameters()),
            "/v1/services"
        );
        let one = Filter { service: Some("a/b".into()) };
        assert_eq!(question("/v1/services", &one.parameters()), "/v1/services?namespace=a&name=b");
    }

    #[test]
    fn a_malformed_question_is_a_usage_error() {
        for arguments in [
            ["why", "node", "10.0.0.1"],
            ["why", "a b", "default/web"],
            ["dns", "web", "--type=BOGUS"],
        ] {
            let line = std::iter::once("mizzen").chain(arguments);
            assert_eq!(Mizzen::try_parse_from(line).unwrap_err().exit_code(), 2, "{arguments:?}");
        }
    }

    #[test]
    fn a_filter_is_a_namespace_or_a_name_in_one() {
        for command in ["services", "backends", "pods"] {
            let parsed = |filter| Mizzen::try_parse_from(["mizzen", command, filter]);
            for good in ["default", "default/web", "default/pod/web-0", "a/web.example"] {
                assert!(parsed(good).is_ok(), "{command} {good}");
            }
            for bad in ["", "/", "default/", "/web", "a/b/c", "10.96.0.1", "[fd00::1]", "a b"] {
                let error = parsed(bad).unwrap_err();
                assert_eq!(error.exit_code(), 2, "{command} {bad}");
            }
        }
    }

    #[test]
    fn backends_that_differ_by_side_have_a_row_each() {
        let mut row = wire::Frontend {
            frontend: "*:30080/TCP".into(),
            service: "a/b".into(),
            internal: vec![],
            external: vec!["10.0.0.1:80".into()],
            nearby: vec!["10.0.0.1:80".into(), "10.0.0.2:80".into()],
            outside: true,
            any_address: true,
            fault: String::new(),
        };
        let froms = |row: &wire::Frontend| -> Vec<String> {
            frontend_rows(row.clone()).into_iter().map(|row| row[2].clone()).collect()
        };
        assert_eq!(froms(&row), ["outside", "here"]);
        row.external = row.nearby.clone();
        assert_eq!(froms(&row), ["all"]);
    }
}
