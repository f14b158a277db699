//! What the agent says about itself: health for load balancers, metrics and readiness for
//! operators, and answers to `mizzen` on a socket that is root's alone.
//!
//! | where | what |
//! |---|---|
//! | `healthzBindAddress` | `/healthz`, `/livez`, of an agent that balances services |
//! | `metricsBindAddress` | `/metrics`, `/metrics/services`, `/metrics/backends`, `/proxyMode`, `/configz`, `/readyz` |
//! | `<stateDir>/agent.sock` | `/v1/status`, `/v1/live`, `/v1/services`, `/v1/backends`, `/v1/traffic`, `/v1/diff`, `/v1/why`, `/v1/flows`, `/v1/flows/follow`, `/v1/check`, `/v1/dns`, `/v1/log`, `/v1/config`, `/v1/metrics`, `/v1/process`, `/v1/programs`, and the hand-over to the next agent |
//! | each `healthCheckNodePort` | whether this node has ready endpoints of the service |

pub mod check;
pub mod explain;
pub mod follow;
pub mod health;
pub(crate) mod http;
mod insight;
pub mod ledger;
pub mod listen;
pub mod names;
pub mod pod_network;
pub mod ports;
pub mod rows;
mod service_health;
pub mod wire;

use std::{fmt::Write as _, future::Future, pin::Pin, sync::Arc};

use hyper::StatusCode;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    desired::{NodeFacts, Settings},
    handover::{self, GivenPorts, OpenSockets},
    log::Log,
    metrics::{Metrics, ProgramCounters, traffic},
    model::snapshot::Snapshot,
    reconcile::Query,
    status::{Board, State},
    supervisor::Tasks,
    traffic::accounts::PortTraffic,
};
use check::Checker;
use explain::Explainer;
use follow::Followers;
use health::Health;
use http::{Answer, Asked};
use ledger::Ledger;
use listen::Listeners;
use names::Names;
use pod_network::PodNetwork;
use ports::Ports;

/// What the answers are made of.
pub struct Facts {
    /// Name of the node.
    pub node: String,
    /// How the parts are.
    pub board: Arc<Board>,
    /// The agent's counters.
    pub metrics: Arc<Metrics>,
    /// What health checks are told.
    pub health: Health,
    /// The programs' counters, where there are programs.
    pub programs: Option<Arc<dyn ProgramCounters>>,
    /// The configuration in force, as a file.
    pub config: String,
    /// The agent's log; none in tests.
    pub log: Option<Arc<Log>>,
    /// Questions to the loop; `None` where the services role is off.
    pub queries: Option<mpsc::Sender<Query>>,
    /// Answers to questions about the live tables; `None` likewise.
    pub explainer: Option<Explainer>,
    /// Lets others follow what becomes of connections; `None` likewise.
    pub followers: Option<Followers>,
    /// Looks at the datapath; `None` likewise.
    pub checker: Option<Checker>,
    /// What services were sent; `None` likewise.
    pub ledger: Option<Ledger>,
    /// Explains names; `None` where the DNS role is off.
    pub names: Option<Names>,
    /// Looks at the pod network; `None` where the CNI role is off.
    pub pods: Option<PodNetwork>,
}

/// Answers a path.
type Route = fn(Arc<Facts>, Asked) -> Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Starts a server on each listener; on a port that another program has, when that lets go of it.
/// Agents that ask for this one's place go to `successors`; what they are given is in `open`.
pub fn start(
    listeners: Listeners,
    facts: Facts,
    successors: mpsc::Sender<handover::Asking>,
    open: Arc<OpenSockets>,
    tasks: &mut Tasks,
) {
    let facts = Arc::new(facts);
    let route = |answer: Route| {
        let facts = Arc::clone(&facts);
        move |asked: Asked| answer(Arc::clone(&facts), asked)
    };
    let Listeners { health, metrics, admin, leaving } = listeners;
    let mut ports = Ports::new(leaving, Arc::clone(&facts.board), open);
    let token = tasks.token();
    if let Some(health) = health {
        let routes = route(|facts, asked| Box::pin(async move { facts.health(&asked.path) }));
        let waiting = health.is_given().then(|| facts.health.clone());
        let (listener, stop) = (ports.listener(health), token.clone());
        tasks.spawn("serve health", async move {
            if let Some(health) = waiting {
                // The agent before said yes to the last moment.
                health.until_serving(&stop).await;
            }
            ports::serve(listener, routes, stop).await
        });
    }
    let metrics_routes =
        route(|facts, asked| Box::pin(async move { facts.metrics(&asked.path).await }));
    let metrics = ports::serve(ports.listener(metrics), metrics_routes, token.clone());
    tasks.spawn("serve metrics", metrics);
    tasks.spawn("ports", ports.run(token.clone()));
    let admin_routes = route(|facts, asked| Box::pin(async move { facts.admin(&asked).await }));
    let switch = http::Switch::new(handover::PATH, handover::PROTOCOL, successors);
    tasks.spawn("serve agent.sock", http::serve_unix(admin, admin_routes, switch, token));
}

/// Whether a row of this namespace and name is asked for.
fn named(asked: &Asked, namespace: &str, name: &str) -> bool {
    let is = |parameter, value| asked.parameter(parameter).is_none_or(|wanted| wanted == value);
    is("namespace", namespace) && is("name", name)
}

fn only<T>(mut rows: Vec<T>, wanted: impl Fn(&T) -> bool) -> Vec<T> {
    rows.retain(wanted);
    rows
}

/// The rows that are asked for. That a name is nobody's is said, with `why` that may be: an empty
/// answer would leave open whether it was mistyped.
fn found<T: serde::Serialize>(
    asked: &Asked,
    rows: Vec<T>,
    wanted: impl Fn(&T) -> bool,
    why: &str,
) -> Answer {
    let rows = only(rows, wanted);
    match (asked.parameter("namespace"), asked.parameter("name")) {
        (Some(namespace), Some(name)) if rows.is_empty() => {
            Answer::text(format!("{namespace}/{name}: {why}")).with(StatusCode::NOT_FOUND)
        }
        _ => Answer::json(&rows),
    }
}

/// Why a name has no row among services and frontends.
const NO_SERVICE: &str = "there is no such service, or none with ports on this node, as those are \
                          that are headless, names of others (ExternalName), or another proxy's";

/// Opens and closes the ports of `healthCheckNodePort` as services ask for them: takes those that were
/// `given`, and notes those that are open.
pub fn start_service_health(
    health: Health,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    facts: watch::Receiver<Option<Arc<NodeFacts>>>,
    settings: Settings,
    (given, open): (GivenPorts, Arc<OpenSockets>),
    tasks: &mut Tasks,
) {
    let ports = (given, open);
    let task = service_health::run(health, snapshots, facts, settings, ports, tasks.token());
    tasks.spawn("serve health check node ports", task);
}

impl Facts {
    fn health(&self, path: &str) -> Answer {
        match path {
            "/livez" => self.health.livez(),
            "/healthz" => self.health.healthz(),
            _ => Answer::not_found(&["/healthz", "/livez"]),
        }
    }

    async fn metrics(&self, path: &str) -> Answer {
        match path {
            "/metrics" => Answer::text(self.metrics.render(self.programs.as_deref())),
            "/metrics/services" => self.traffic_metrics(traffic::services).await,
            "/metrics/backends" => self.traffic_metrics(traffic::backends).await,
            "/proxyMode" => Answer::text("ebpf"),
            "/configz" => Answer::text(self.config.clone()),
            "/readyz" => self.readiness(),
            _ => Answer::not_found(&[
                "/metrics",
                "/metrics/services",
                "/metrics/backends",
                "/proxyMode",
                "/configz",
                "/readyz",
            ]),
        }
    }

    /// What services were sent, as `text` says it.
    async fn traffic_metrics(&self, text: fn(&[PortTraffic]) -> String) -> Answer {
        match self.traffic().await {
            Some(Ok(ports)) => Answer::text(text(&ports)),
            other => Self::reply::<()>(other.map(|ports| ports.map(drop))),
        }
    }

    async fn traffic(&self) -> Option<Result<Vec<PortTraffic>, String>> {
        Some(self.ledger.as_ref()?.read().await)
    }

    /// The rows of services, with what they were sent.
    async fn services(&self) -> Option<Result<Vec<wire::Service>, String>> {
        let rows = self.ask(Query::Services).await?;
        let ports = self.traffic().await?;
        Some(ports.map(|ports| rows::with_traffic(rows, &ports)))
    }

    /// A line for each part; 503 unless all are ready.
    fn readiness(&self) -> Answer {
        let mut text = String::new();
        for part in self.parts() {
            let mark = if part.state == "ready" { "+" } else { "-" };
            let reason = if part.reason.is_empty() { "ok" } else { &part.reason };
            // Writing to a String can't fail.
            let _ = writeln!(text, "[{mark}]{} {reason}", part.name);
        }
        let ready = self.board.ready();
        text.push_str(if ready { "ready\n" } else { "not ready\n" });
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Answer::text(text).with(status)
    }

    fn parts(&self) -> Vec<wire::Part> {
        let part = |(name, state): (&'static str, State)| {
            let (state, reason) = match state {
                State::Ready => ("ready", String::new()),
                State::Waiting(reason) => ("waiting", reason),
                State::Degraded(reason) => ("degraded", reason),
            };
            wire::Part { name: name.to_owned(), state: state.to_owned(), reason }
        };
        self.board.parts().into_iter().map(part).collect()
    }

    async fn admin(&self, asked: &Asked) -> Answer {
        if asked.changes && asked.path != "/v1/log" {
            return Answer::text("GET only\n").with(StatusCode::METHOD_NOT_ALLOWED);
        }
        match asked.path.as_str() {
            "/v1/status" => Answer::json(&self.status().await),
            "/v1/live" => self.health.livez(),
            "/v1/services" | "/v1/traffic" | "/v1/backends" => self.rows(asked).await,
            "/v1/diff" => Self::reply(self.ask(Query::Diff).await),
            "/v1/why" => match &self.explainer {
                Some(explainer) => explainer.why(asked).await,
                None => Self::reply::<()>(None),
            },
            "/v1/flows" => match &self.explainer {
                Some(explainer) => explainer.flows(asked).await,
                None => Self::reply::<()>(None),
            },
            "/v1/flows/follow" => match &self.followers {
                Some(followers) => followers.follow(asked).await,
                None => Self::reply::<()>(None),
            },
            "/v1/pods" | "/v1/routes" => match &self.pods {
                Some(pods) if asked.path == "/v1/pods" => pods.pods(asked).await,
                Some(pods) => pods.routes().await,
                None => Answer::text("the CNI role is off in this agent (--cni=false)")
                    .with(StatusCode::SERVICE_UNAVAILABLE),
            },
            "/v1/check" => check::check(self).await,
            "/v1/dns" => match &self.names {
                Some(names) => names.dns(asked).await,
                None => Answer::text("the DNS role is off in this agent (--dns=false)")
                    .with(StatusCode::SERVICE_UNAVAILABLE),
            },
            path if insight::PATHS.contains(&path) => self.insight(asked),
            _ => Answer::not_found(&[
                "/v1/status",
                "/v1/live",
                "/v1/services",
                "/v1/backends",
                "/v1/traffic",
                "/v1/diff",
                "/v1/why",
                "/v1/flows",
                "/v1/flows/follow",
                "/v1/pods",
                "/v1/routes",
                "/v1/check",
                "/v1/dns",
                "/v1/log",
            ]),
        }
    }

    /// The rows of what is asked for by the names of services.
    async fn rows(&self, asked: &Asked) -> Answer {
        match asked.path.as_str() {
            "/v1/services" => {
                let wanted = |row: &wire::Service| named(asked, &row.namespace, &row.name);
                match self.services().await {
                    Some(Ok(rows)) => found(asked, rows, wanted, NO_SERVICE),
                    other => Self::reply(other),
                }
            }
            "/v1/traffic" => {
                let wanted = |row: &wire::PortTraffic| named(asked, &row.namespace, &row.name);
                let rows = self.traffic().await;
                Self::reply(rows.map(|rows| rows.map(|rows| only(rows::traffic(&rows), wanted))))
            }
            _ => {
                let wanted = |row: &wire::Frontend| match row.service.split_once('/') {
                    Some((namespace, name)) => named(asked, namespace, name),
                    None => named(asked, "", ""),
                };
                match self.ask(Query::Backends).await {
                    Some(Ok(rows)) => found(asked, rows, wanted, NO_SERVICE),
                    other => Self::reply(other),
                }
            }
        }
    }

    async fn status(&self) -> wire::Status {
        wire::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            ready: self.board.ready(),
            parts: self.parts(),
            warnings: self.ask(Query::Warnings).await.unwrap_or_default(),
        }
    }

    /// The loop's answer; `None` where there is no loop.
    async fn ask<T>(&self, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.queries.as_ref()?.send(query(reply)).await.ok()?;
        answer.await.ok()
    }

    fn reply<T: serde::Serialize>(answer: Option<Result<T, String>>) -> Answer {
        match answer {
            Some(Ok(value)) => Answer::json(&value),
            Some(Err(why)) => Answer::text(why).with(StatusCode::SERVICE_UNAVAILABLE),
            None => Answer::text("the services role is off in this agent (--services=false)")
                .with(StatusCode::SERVICE_UNAVAILABLE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let (board, metrics) = (Arc::<Board>::default(), Arc::<Metrics>::default());
        let (_, snapshots) = watch::channel(Arc::default());
        let health = Health {
            node: "n".into(),
            board: board.clone(),
            metrics: metrics.clone(),
            snapshots,
            inherited: false,
        };
        Facts {
            node: "n".into(),
            board,
            metrics,
            health,
            programs: None,
            config: String::new(),
            log: None,
            queries: None,
            explainer: None,
            followers: None,
            checker: None,
            ledger: None,
            names: None,
            pods: None,
        }
    }

    #[tokio::test]
    async fn readiness_names_what_is_missing() {
        let facts = facts();
        assert_eq!(facts.metrics("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
        facts.board.report("dns", State::Ready);
        assert_eq!(facts.metrics("/readyz").await.status, StatusCode::OK);
        facts.board.report("cni", State::Waiting("no podCIDRs".into()));
        let answer = facts.metrics("/readyz").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.body.contains("[-]cni no podCIDRs"), "{}", answer.body);
        assert!(answer.body.contains("[+]dns ok"), "{}", answer.body);
    }

    #[test]
    fn health_has_two_paths() {
        let facts = facts();
        assert_eq!(facts.health("/healthz").status, StatusCode::OK);
        assert_eq!(facts.health("/livez").status, StatusCode::OK);
        assert_eq!(facts.health("/other").status, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn nothing_but_the_log_is_changed() {
        for path in ["/v1/status", "/v1/flows/follow", "/v1/config"] {
            let answer = facts().admin(&Asked::change(path, "")).await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
        let answer = facts().admin(&Asked::change("/v1/log", "filter=debug")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
    }

    #[test]
    fn a_name_that_is_nobodys_is_said_and_an_empty_namespace_is_empty() {
        let answer = |query: &str| {
            let asked = Asked::change("/v1/services", query);
            let wanted = |row: &(&str, &str)| named(&asked, row.0, row.1);
            found(&asked, vec![("a", "web"), ("b", "dns")], wanted, "there is no such service")
        };
        for (query, status, body) in [
            ("", StatusCode::OK, r#"[["a","web"],["b","dns"]]"#),
            ("namespace=a", StatusCode::OK, r#"[["a","web"]]"#),
            ("namespace=c", StatusCode::OK, "[]"),
            ("namespace=b&name=dns", StatusCode::OK, r#"[["b","dns"]]"#),
            ("namespace=b&name=web", StatusCode::NOT_FOUND, "b/web: there is no such service"),
        ] {
            let answer = answer(query);
            assert_eq!((answer.status, answer.body.trim()), (status, body), "{query}");
        }
    }

    #[tokio::test]
    async fn without_the_loop_the_reason_is_said() {
        for path in
            ["/v1/services", "/v1/backends", "/v1/traffic", "/v1/diff", "/v1/why", "/v1/flows"]
        {
            let answer = facts().admin(&Asked::path(path)).await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert!(answer.body.contains("--services=false"), "{}", answer.body);
        }
        for path in ["/v1/status", "/v1/check"] {
            assert_eq!(facts().admin(&Asked::path(path)).await.status, StatusCode::OK, "{path}");
        }
    }
}
