//! `/v1/flows/follow`: what becomes of connections, a line of JSON for each, as long as who asks listens.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::StatusCode;
use mizzen_ebpf_abi::event::FlowEvent;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::spawn_blocking,
};

use super::http::{Answer, Asked};
use crate::{
    datapath::FlowEvents,
    follow::{
        Line,
        filter::Filter,
        hub::{self, Hub, Told},
        names::{self, Names},
    },
    model::{ObjectKey, snapshot::Snapshot},
    podnet,
    reconcile::Query,
};

/// How many may follow at once.
const FOLLOWERS_MAX: usize = 8;
/// Lines that wait for the connection.
const LINES_MAX: usize = 64;
/// Events that get their names together.
const TOGETHER: usize = 256;
/// How often the node's pods are looked up for clients that have no name.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often an empty line is sent where nothing happens: who listens no more is found out by it.
const BEAT: Duration = Duration::from_secs(5);

/// Lets others follow.
#[derive(Debug)]
pub struct Followers {
    hub: Hub,
    state_dir: PathBuf,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    queries: mpsc::Sender<Query>,
    places: Arc<Semaphore>,
}

/// One who follows.
struct Stream {
    follower: hub::Follower,
    names: Names,
    filter: Filter,
    looked: Option<Instant>,
    state_dir: PathBuf,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    queries: mpsc::Sender<Query>,
    lines: mpsc::Sender<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl Followers {
    /// For the node whose agent keeps its state in `state_dir`.
    pub fn new(
        events: FlowEvents,
        state_dir: PathBuf,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        queries: mpsc::Sender<Query>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(FOLLOWERS_MAX));
        Self { hub: Hub::new(events), state_dir, snapshots, queries, places }
    }

    /// `/v1/flows/follow?pod=NS/NAME&service=NS[/NAME]&verdict=V,…`.
    pub(super) async fn follow(&self, asked: &Asked) -> Answer {
        let filter = match filter(asked) {
            Ok(filter) => filter,
            Err(why) => return Answer::text(why).with(StatusCode::BAD_REQUEST),
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let why = format!("{FOLLOWERS_MAX} follow already: end one of them");
            return Answer::text(why).with(StatusCode::SERVICE_UNAVAILABLE);
        };
        let clock = crate::datapath::now_ns().unwrap_or_default();
        let follower = match self.hub.follow().await {
            Ok(follower) => follower,
            Err(error) => {
                let why = podnet::pods::chain(&error);
                return Answer::text(why).with(StatusCode::SERVICE_UNAVAILABLE);
            }
        };
        let (lines, stream) = mpsc::channel(LINES_MAX);
        let follows = Stream {
            follower,
            names: Names::new(clock),
            filter,
            looked: None,
            state_dir: self.state_dir.clone(),
            snapshots: self.snapshots.clone(),
            queries: self.queries.clone(),
            lines,
            _place: place,
        };
        tokio::spawn(follows.run());
        Answer::stream(stream)
    }
}

/// What is asked for.
pub(super) fn filter(asked: &Asked) -> Result<Filter, String> {
    let verdicts = asked.parameter("verdict").unwrap_or_default();
    let verdicts = verdicts.split(',').filter(|text| !text.is_empty()).map(str::parse);
    Ok(Filter {
        pod: asked.parameter("pod"),
        service: asked.parameter("service"),
        verdicts: verdicts.collect::<Result<_, _>>()?,
    })
}

impl Stream {
    /// Until nobody listens, or the agent stops.
    async fn run(mut self) {
        loop {
            let told = tokio::select! {
                () = self.lines.closed() => return,
                told = tokio::time::timeout(BEAT, self.follower.next()) => told,
            };
            let going_on = match told {
                Err(_silence) => self.lines.send(Bytes::from_static(b"\n")).await.is_ok(),
                Ok(Some(first)) => self.tell(first).await.is_some(),
                Ok(None) => false,
            };
            if !going_on {
                return;
            }
        }
    }

    /// Tells an event, and those that have come behind it.
    async fn tell(&mut self, first: Told) -> Option<()> {
        let mut told = vec![first];
        while told.len() < TOGETHER
            && let Some(next) = self.follower.next_now()
        {
            told.push(next);
        }
        let events = || told.iter().filter_map(event);
        self.learn_pods(events()).await;
        let (reply, owners) = oneshot::channel();
        self.queries.send(Query::Owners(names::sets(events()), reply)).await.ok()?;
        let owners = owners.await.ok()?;
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let mut text = Vec::new();
        for one in &told {
            let line = match one {
                Told::Lost(lost) => Line::Lost { lost: *lost },
                Told::Event(event) => {
                    let event = self.names.event(event, &owners, &snapshot);
                    if !self.filter.admits(&event) {
                        continue;
                    }
                    Line::Event(Box::new(event))
                }
            };
            // Strings and numbers always are JSON.
            let _written = serde_json::to_writer(&mut text, &line);
            text.push(b'\n');
        }
        if text.is_empty() { Some(()) } else { self.lines.send(text.into()).await.ok() }
    }

    /// Looks the node's pods up where a client has no name, and a while after that again.
    async fn learn_pods(&mut self, mut events: impl Iterator<Item = &FlowEvent>) {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_AGAIN)
            || events.all(|event| self.names.knows(&event.client))
        {
            return;
        }
        self.looked = Some(Instant::now());
        let state_dir = self.state_dir.clone();
        if let Ok(pods) = spawn_blocking(move || podnet::pods_in(&state_dir)).await {
            self.names.learn_pods(&pods);
        }
        // Where another plugin connects pods, services tell the addresses of those behind them.
        if let Some(pod) = &self.filter.pod
            && let Some((namespace, name)) = pod.split_once('/')
        {
            let snapshot = Arc::clone(&self.snapshots.borrow());
            let key = ObjectKey::new(namespace, name);
            self.names.learn_pod(pod, snapshot.addresses_of(&key));
        }
    }
}

fn event(told: &Told) -> Option<&FlowEvent> {
    match told {
        Told::Event(event) => Some(event),
        Told::Lost(_) => None,
    }
}
