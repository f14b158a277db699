//! `/v1/why` and `/v1/flows`: questions to the live tables, with names from the snapshot and from
//! the loop that writes the tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper::StatusCode;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::spawn_blocking,
};

use super::{
    http::{Answer, Asked},
    wire,
};
use crate::{
    datapath::{ReadError, TableReaders},
    desired::SetKey,
    follow::filter::{Filter, address_of},
    model::{ObjectKey, snapshot::Snapshot},
    podnet,
    reconcile::Query,
    why::{
        Explanation,
        answer::{self, Answers},
        explain,
        question::{Destination, Source},
        resolve::{self, Case, Names, ResolveError},
    },
};

/// Questions that are worked on at once: each maps the tables, and some go through all flows.
const QUESTIONS_MAX: usize = 2;
/// Flows that are shown where nothing is said.
const FLOWS_DEFAULT: usize = 1_000;
/// Flows that are shown at most.
const FLOWS_MAX: usize = 100_000;

/// Answers questions.
#[derive(Debug)]
pub struct Explainer {
    node: String,
    state_dir: PathBuf,
    readers: TableReaders,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    queries: mpsc::Sender<Query>,
    questions: Semaphore,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum ExplainError {
    #[error("the question is cut off: {0} is missing")]
    Missing(&'static str),
    #[error(transparent)]
    Question(#[from] crate::why::question::ParseError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("the tables can't be read")]
    Tables(#[from] ReadError),
    #[error("the cluster is not known yet, see `mizzen status`")]
    Unknown,
    #[error("the agent is stopping")]
    Stopping,
}

impl ExplainError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Missing(_) | Self::Question(_) => StatusCode::BAD_REQUEST,
            Self::Resolve(_) => StatusCode::NOT_FOUND,
            Self::Tables(_) | Self::Unknown | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// What was learned of one case from the tables.
struct Learned {
    case: Case,
    explanation: Explanation,
    flows: Vec<(u32, answer::Flow)>,
}

impl Explainer {
    /// An explainer for the node whose agent keeps its state in `state_dir`.
    pub fn new(
        node: String,
        state_dir: PathBuf,
        readers: TableReaders,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        queries: mpsc::Sender<Query>,
    ) -> Self {
        let questions = Semaphore::new(QUESTIONS_MAX);
        Self { node, state_dir, readers, snapshots, queries, questions }
    }

    /// `/v1/why?source=SRC&destination=DST`.
    pub(super) async fn why(&self, asked: &Asked) -> Answer {
        reply(self.explain(asked).await)
    }

    /// `/v1/flows?limit=N&pod=NS/NAME&service=NS[/NAME]`.
    pub(super) async fn flows(&self, asked: &Asked) -> Answer {
        let filter = match super::follow::filter(asked) {
            Ok(filter) => filter,
            Err(why) => return Answer::text(why).with(StatusCode::BAD_REQUEST),
        };
        let limit = asked.parameter("limit").and_then(|limit| limit.parse().ok());
        reply(self.list(limit.unwrap_or(FLOWS_DEFAULT).min(FLOWS_MAX), filter).await)
    }

    async fn explain(&self, asked: &Asked) -> Result<Answers, ExplainError> {
        let parameter = |name| asked.parameter(name).ok_or(ExplainError::Missing(name));
        let source: Source = parameter("source")?.parse()?;
        let destination: Destination = parameter("destination")?.parse()?;
        let _permit = self.questions.acquire().await.map_err(|_| ExplainError::Stopping)?;
        let snapshot = Arc::clone(&self.snapshots.borrow());
        if !snapshot.synced.all() {
            return Err(ExplainError::Unknown);
        }
        let (readers, node, state_dir) =
            (self.readers.clone(), self.node.clone(), self.state_dir.clone());
        let known = Arc::clone(&snapshot);
        let (learned, pods) = spawn_blocking(move || {
            let pods = podnet::pods_in(&state_dir);
            let names = Names { node: &node, snapshot: &known, pods: &pods };
            learn(&readers, &names, &source, &destination).map(|learned| (learned, pods))
        })
        .await
        .map_err(|_| ExplainError::Stopping)??;
        let owners = self.owners(learned.iter().flat_map(Learned::sets).collect()).await?;
        let names = Names { node: &self.node, snapshot: &snapshot, pods: &pods };
        let answers = learned.into_iter().map(|learned| learned.answer(&names, &owners)).collect();
        Ok(Answers { node: self.node.clone(), answers })
    }

    async fn list(&self, limit: usize, filter: Filter) -> Result<wire::Flows, ExplainError> {
        let _permit = self.questions.acquire().await.map_err(|_| ExplainError::Stopping)?;
        let (readers, state_dir) = (self.readers.clone(), self.state_dir.clone());
        let snapshot = Arc::clone(&self.snapshots.borrow());
        // Services have their names only afterwards.
        let first = if filter.service.is_some() { FLOWS_MAX } else { limit };
        let pod = filter.pod.clone();
        let (flows, mut more) = spawn_blocking(move || {
            let addresses = pod.map(|pod| addresses_of(&pod, &state_dir, &snapshot));
            list(&readers, first, addresses.as_ref())
        })
        .await
        .map_err(|_| ExplainError::Stopping)??;
        let owners = self.owners(flows.iter().map(|(set, _)| *set).collect()).await?;
        let mut flows: Vec<_> = flows
            .into_iter()
            .map(|(set, flow)| named(set, flow, &owners))
            .filter(|flow| filter.admits_service(&flow.service))
            .collect();
        more |= flows.len() > limit;
        flows.truncate(limit);
        Ok(wire::Flows { flows, more })
    }

    /// Whose sets these are.
    async fn owners(&self, sets: BTreeSet<u32>) -> Result<BTreeMap<u32, SetKey>, ExplainError> {
        let (reply, owners) = oneshot::channel();
        self.queries.send(Query::Owners(sets, reply)).await.map_err(|_| ExplainError::Stopping)?;
        owners.await.map_err(|_| ExplainError::Stopping)
    }
}

impl Learned {
    /// The sets that need a name.
    fn sets(&self) -> impl Iterator<Item = u32> {
        self.explanation.set.into_iter().chain(self.flows.iter().map(|(set, _)| *set))
    }

    fn answer(self, names: &Names<'_>, owners: &BTreeMap<u32, SetKey>) -> answer::Answer {
        let owner = self.explanation.set.and_then(|set| owners.get(&set));
        let flows = self.flows.into_iter().map(|(set, flow)| named(set, flow, owners)).collect();
        resolve::answer(names, &self.case, self.explanation, owner, flows)
    }
}

fn learn(
    readers: &TableReaders,
    names: &Names<'_>,
    source: &Source,
    destination: &Destination,
) -> Result<Vec<Learned>, ExplainError> {
    let learned = readers.ask(|live| {
        let cases = resolve::cases(live, names, source, destination)?;
        let learn = |case: Case| Learned {
            explanation: explain(live, &case.client, &case.dialled),
            flows: resolve::flows(live, &case.client, &case.dialled),
            case,
        };
        Ok::<_, ResolveError>(cases.into_iter().map(learn).collect())
    })?;
    Ok(learned?)
}

/// The addresses of a pod: of one that this node's agent connected, else of one behind a service.
fn addresses_of(pod: &str, state_dir: &Path, snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let Some((namespace, name)) = pod.split_once('/') else { return BTreeSet::new() };
    let key = ObjectKey::new(namespace, name);
    match podnet::pods_in(state_dir).remove(&key) {
        Some(addresses) => addresses.into_iter().collect(),
        None => snapshot.addresses_of(&key).collect(),
    }
}

/// The live flows, those of some addresses where any are named, with the set of each, and whether there
/// are more than `limit`.
fn list(
    readers: &TableReaders,
    limit: usize,
    of: Option<&BTreeSet<IpAddr>>,
) -> Result<(Vec<(u32, answer::Flow)>, bool), ReadError> {
    use crate::why::live::Live as _;
    readers.ask(|live| {
        let (mut flows, mut more) = (Vec::new(), false);
        live.each_flow(&mut |key, flow| {
            let Some(shown) = resolve::shown_flow(live, key, flow) else {
                return ControlFlow::Continue(());
            };
            let is = |text: &str| {
                of.is_none_or(|of| address_of(text).is_some_and(|address| of.contains(&address)))
            };
            if !is(&shown.source) && !is(&shown.backend) {
                return ControlFlow::Continue(());
            }
            if flows.len() == limit {
                more = true;
                return ControlFlow::Break(());
            }
            flows.push((flow.set, shown));
            ControlFlow::Continue(())
        });
        (flows, more)
    })
}

fn named(set: u32, flow: answer::Flow, owners: &BTreeMap<u32, SetKey>) -> answer::Flow {
    let service = owners.get(&set).map(|owner| owner.service.to_string()).unwrap_or_default();
    answer::Flow { service, ..flow }
}

fn reply<T: serde::Serialize>(answer: Result<T, ExplainError>) -> Answer {
    match answer {
        Ok(value) => Answer::json(&value),
        Err(error) => {
            let mut text = error.to_string();
            let mut next = std::error::Error::source(&error);
            while let Some(cause) = next {
                text = format!("{text}: {cause}");
                next = cause.source();
            }
            Answer::text(text).with(error.status())
        }
    }
}
