//! Writes what is to be told: Events of events.k8s.io about the Node, and its condition
//! `MizzenReady`, which is said again every [`HEARTBEAT`], so that an old one tells of an agent that
//! is away.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{core::v1::Node, events::v1::Event},
    jiff::{Timestamp, fmt::temporal::DateTimePrinter},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Condition, Notice, Part, Reason, Watched, notices};
use crate::{
    kube::client::{Clients, limited, may_pass},
    status::{Board, State},
    supervisor::TaskError,
};

/// The part on the board. It is not told of itself.
pub const PART: &str = "notices";
/// The condition's type.
pub const CONDITION: &str = "MizzenReady";
/// Where events about what has no namespace are.
const NAMESPACE: &str = "default";
/// Who tells.
const CONTROLLER: &str = "mizzen.dev/agent";
/// How often the condition is said though it is the same.
const HEARTBEAT: Duration = Duration::from_mins(5);
/// How long changes of the board are collected.
const SETTLE: Duration = Duration::from_secs(1);
/// The pause after a failure; twice that after each further one, up to a bound.
const RETRY: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_mins(1);
/// Notices that wait for the API server; the oldest go.
const WAITING_MAX: usize = 32;
/// Octets of a Node's name in the name of an event, which has some more.
const NAME_MAX: usize = 200;

/// Tells what the board has, until cancelled.
pub async fn run(
    node: String,
    servers: Clients,
    board: Arc<Board>,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    let mut watched = Watched::new(Instant::now());
    let mut teller = Teller::new(node, servers);
    while !cancel.is_cancelled() {
        let mut parts = board.parts();
        parts.remove(PART);
        let looked = notices(&parts, watched, Instant::now());
        watched = looked.watched;
        teller.add(looked.notices, looked.condition);
        let pause = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            pause = teller.tell(&board) => pause,
        };
        let pause = looked.again.map_or(pause, |again| again.min(pause));
        let due = async {
            tokio::time::sleep(SETTLE).await;
            tokio::select! {
                () = board.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = due => {}
        }
    }
    Ok(())
}

/// The one who writes.
struct Teller {
    node: String,
    servers: Clients,
    waiting: VecDeque<Notice>,
    /// The event of each matter, and how often it was told.
    events: BTreeMap<(Part, Reason), (String, u32)>,
    /// What the condition is to say.
    wanted: Option<Condition>,
    /// What it says, since when as far as this agent knows.
    said: Option<(Condition, Instant)>,
    failures: u32,
    /// Nothing is tried before.
    not_before: Option<Instant>,
}

impl Teller {
    fn new(node: String, servers: Clients) -> Self {
        Self {
            node,
            servers,
            waiting: VecDeque::new(),
            events: BTreeMap::new(),
            wanted: None,
            said: None,
            failures: 0,
            not_before: None,
        }
    }

    fn add(&mut self, notices: Vec<Notice>, condition: Option<Condition>) {
        self.waiting.extend(notices);
        let too_many = self.waiting.len().saturating_sub(WAITING_MAX);
        self.waiting.drain(..too_many);
        self.wanted = condition.or(self.wanted.take());
    }

    /// Tells what waits. How long there is nothing more to do.
    async fn tell(&mut self, board: &Board) -> Duration {
        let now = Instant::now();
        if let Some(at) = self.not_before.filter(|at| *at > now) {
            return at - now;
        }
        match self.try_tell().await {
            Ok(()) => {
                (self.failures, self.not_before) = (0, None);
                board.report(PART, State::Ready);
                let heartbeat =
                    self.said.as_ref().map(|(_, at)| HEARTBEAT.saturating_sub(at.elapsed()));
                heartbeat.unwrap_or(HEARTBEAT)
            }
            Err(error) => {
                let pause = RETRY_MAX.min(RETRY * 2_u32.saturating_pow(self.failures.min(8)));
                self.failures += 1;
                self.not_before = Some(Instant::now() + pause);
                self.servers.look_again().await;
                // A Node that is not there yet comes. That no server answers is said by who watches.
                let comes = matches!(&error, kube::Error::Api(status) if status.code == 404);
                if !comes && !may_pass(&error) {
                    board.report(PART, State::Degraded(explain(&self.node, &error)));
                }
                pause
            }
        }
    }

    /// One of the two may be forbidden.
    async fn try_tell(&mut self) -> Result<(), kube::Error> {
        let events = self.tell_events().await;
        self.tell_condition().await.and(events)
    }

    async fn tell_events(&mut self) -> Result<(), kube::Error> {
        while let Some(notice) = self.waiting.front().cloned() {
            self.event(&notice).await?;
            self.waiting.pop_front();
        }
        Ok(())
    }

    async fn tell_condition(&mut self) -> Result<(), kube::Error> {
        let Some(wanted) = self.wanted.clone() else { return Ok(()) };
        let known = self.said.as_ref();
        if known.is_some_and(|(said, at)| *said == wanted && at.elapsed() < HEARTBEAT) {
            return Ok(());
        }
        self.condition(&wanted).await?;
        self.said = Some((wanted, Instant::now()));
        Ok(())
    }

    /// A new event; for a matter that was told before, one more time of that one.
    async fn event(&mut self, notice: &Notice) -> Result<(), kube::Error> {
        let client = self.servers.pick(self.failures as usize).client;
        let events: Api<Event> = Api::namespaced(client, NAMESPACE);
        let matter = (notice.part, notice.reason);
        let now = Timestamp::now();
        if let Some((name, count)) = self.events.get(&matter).cloned() {
            let series = json!({"count": count + 1, "lastObservedTime": micros(now)});
            let patch = Patch::Merge(json!({"note": notice.note, "series": series}));
            match limited(events.patch(&name, &PatchParams::default(), &patch)).await {
                Ok(_) => {
                    self.events.insert(matter, (name, count + 1));
                    return Ok(());
                }
                // Events are kept for an hour, mostly.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let event = event(&self.node, notice, now);
        let event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        let made: Event = limited(events.create(&PostParams::default(), &event)).await?;
        self.events.insert(matter, (made.metadata.name.unwrap_or_default(), 1));
        Ok(())
    }

    async fn condition(&self, wanted: &Condition) -> Result<(), kube::Error> {
        let client = self.servers.pick(self.failures as usize).client;
        let nodes: Api<Node> = Api::all(client);
        let status = word(wanted.ready);
        let before = match &self.said {
            Some((said, _)) => Some(word(said.ready).to_owned()),
            None => of_node(&limited(nodes.get(&self.node)).await?),
        };
        let now = seconds(Timestamp::now());
        let mut condition = json!({
            "type": CONDITION,
            "status": status,
            "reason": wanted.reason,
            "message": wanted.message,
            "lastHeartbeatTime": now,
        });
        if before.as_deref() != Some(status) {
            condition["lastTransitionTime"] = now.into();
        }
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        let params = PatchParams::default();
        limited(nodes.patch_status(&self.node, &params, &patch)).await.map(drop)
    }
}

/// The condition's status.
fn word(ready: bool) -> &'static str {
    if ready { "True" } else { "False" }
}

/// The condition's status as the Node has it.
fn of_node(node: &Node) -> Option<String> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut named = conditions.filter(|condition| condition.type_ == CONDITION);
    named.next().map(|condition| condition.status.clone())
}

/// The object. Its `uid` of the Node is the name, as kubelets have it and `kubectl describe` looks
/// for.
fn event(node: &str, notice: &Notice, now: Timestamp) -> serde_json::Value {
    let short = &node[..node.floor_char_boundary(NAME_MAX)];
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": format!("{short}.{:x}", now.as_nanosecond()),
            "namespace": NAMESPACE,
        },
        "eventTime": micros(now),
        "reportingController": CONTROLLER,
        "reportingInstance": &node[..node.floor_char_boundary(128)],
        "action": "Report",
        "type": notice.reason.kind(),
        "reason": notice.reason.word(),
        "note": notice.note,
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
    })
}

fn micros(at: Timestamp) -> String {
    DateTimePrinter::new().precision(Some(6)).timestamp_to_string(&at)
}

fn seconds(at: Timestamp) -> String {
    DateTimePrinter::new().precision(Some(0)).timestamp_to_string(&at)
}

fn explain(node: &str, error: &kube::Error) -> String {
    let remedy = match error {
        kube::Error::Api(status) if status.code == 403 => {
            "; the agent's role must allow create and patch of events.k8s.io/events, get of nodes and \
             patch of nodes/status"
        }
        _ => "",
    };
    format!(
        "tell by events and by the condition of node {node} how it is: {error}{remedy}; it is tried again"
    )
}
