//! The agent's side: does on its node what the Node's label asks for, and reports in an annotation.
//!
//! An agent whose node went back to kube-proxy has no services: a file in its data folder says so
//! ([`super::gone_back`]), also after a restart without an API server, until the label asks for Mizzen
//! again, or the cluster is another one. Between the two the process ends, and its supervisor (a
//! kubelet, systemd) starts it anew.

use std::{path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use super::{
    REPORT, Report,
    gone_back::{self, GoneBack},
};
use crate::{
    datapath, foreign,
    kube::client::{Clients, limited},
    migrate::{
        carry_out::{carry_out, verify},
        look::{Agent, Seen},
        plan::{Obstacle, Plan, Step},
    },
    model::{node::KubeProxy, snapshot::Snapshot},
    podnet, reconcile,
    status::{Board, State},
    supervisor::TaskError,
};

/// The part on the board.
pub const PART: &str = "kube-proxy";
/// How often it is looked while what is asked for is not so.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is said again that Mizzen serves, or that its services went, while that is asked for.
const AGAIN_S: u64 = super::FRESH_S / 4;
/// And where the node is returned.
const RETURNED_AGAIN_S: u64 = 2 * 60;
/// How often it is looked whether that is still so.
const SERVES: Duration = Duration::from_secs(5);
/// The pause after a report that was not taken.
const RETRY: Duration = Duration::from_secs(5);

/// What it is about.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node that this is.
    pub node_name: String,
    /// Where is kept what outlives a restart.
    pub data_dir: Option<PathBuf>,
    /// Where Mizzen's pins are.
    pub bpffs: PathBuf,
    /// Whether this agent was told to balance services.
    pub services: bool,
    /// What is kept of it, where these went back to kube-proxy.
    pub gone_back: Option<GoneBack>,
    /// Whether this agent connects pods.
    pub cni: bool,
}

/// What an answer to the label's value leads to.
enum Answer {
    /// This is reported.
    Report(Report),
    /// This is reported, and the process ends to be started anew.
    Again(Report),
}

/// Follows the label until cancelled. `stop` tells the process to stop.
pub async fn run(
    config: Config,
    servers: Clients,
    mut snapshots: channel::Receiver<Arc<Snapshot>>,
    board: Arc<Board>,
    stop: fn(),
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    let node = config.node_name.clone();
    let label =
        |snapshot: &Snapshot| snapshot.nodes.get(node.as_str()).and_then(|node| node.kube_proxy);
    let mut follower = Follower::new(config, servers, board);
    loop {
        let asked = label(&snapshots.borrow_and_update());
        let pause = match follower.next(asked).await {
            Next::Rests => None,
            Next::Looks(pause) => Some(pause),
            Next::Ends => {
                tracing::info!("ending, to be started anew with other roles");
                stop();
                cancel.cancelled().await;
                return Ok(());
            }
        };
        let changed = async {
            if snapshots.wait_for(|snapshot| label(snapshot) != asked).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let paused = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = changed => {}
            () = paused => {}
        }
    }
}

/// What follows an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It is as the label asks for.
    Rests,
    /// It is looked again after this time.
    Looks(Duration),
    /// The process ends.
    Ends,
}

impl Next {
    /// What comes first of two.
    fn sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ends, _) | (_, Self::Ends) => Self::Ends,
            (Self::Looks(one), Self::Looks(other)) => Self::Looks(one.min(other)),
            (Self::Looks(pause), Self::Rests) | (Self::Rests, Self::Looks(pause)) => {
                Self::Looks(pause)
            }
            (Self::Rests, Self::Rests) => Self::Rests,
        }
    }
}

/// Which cluster this is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cluster {
    /// Nobody has asked yet.
    Unasked,
    /// The agent's role does not say.
    Hidden,
    /// This one.
    Known(String),
}

impl Cluster {
    fn name(&self) -> Option<&str> {
        if let Self::Known(name) = self { Some(name) } else { None }
    }
}

/// One that answers, and reports.
struct Follower {
    config: Config,
    servers: Clients,
    board: Arc<Board>,
    /// The report that is known to be at the Node.
    told: Option<Report>,
    /// Calls of the API server in a row that failed.
    failures: usize,
    cluster: Cluster,
}

impl Follower {
    fn new(config: Config, servers: Clients, board: Arc<Board>) -> Self {
        Self { config, servers, board, told: None, failures: 0, cluster: Cluster::Unasked }
    }

    /// Does what the label asks for, if anything.
    async fn next(&mut self, asked: Option<KubeProxy>) -> Next {
        let minds = self.mind(asked).await;
        match asked {
            None => {
                self.told = None;
                minds
            }
            Some(_) if minds == Next::Ends => minds,
            Some(phase) => minds.sooner(self.follow(phase).await),
        }
    }

    /// Says that services are kube-proxy's, where they went back to it, and ends that where it was in
    /// another cluster.
    async fn mind(&mut self, asked: Option<KubeProxy>) -> Next {
        let Some(kept) = self.config.gone_back.clone() else { return Next::Rests };
        self.board.report(gone_back::PART, kept.state(asked));
        if !kept.names_cluster() {
            return Next::Rests;
        }
        if let Err(error) = self.ask_cluster().await {
            tracing::debug!(%error, "ask which cluster this is");
            return Next::Looks(RETRY);
        }
        if !self.cluster.name().is_some_and(|cluster| kept.is_of_another(cluster)) {
            return Next::Rests;
        }
        match kept.remove() {
            Ok(()) => {
                tracing::warn!(
                    ?kept,
                    "services went back to kube-proxy in another cluster; here they are Mizzen's"
                );
                Next::Ends
            }
            Err(why) => {
                tracing::warn!(why, "services went back to kube-proxy in another cluster");
                Next::Looks(RETRY)
            }
        }
    }

    /// Asks which cluster this is, once.
    async fn ask_cluster(&mut self) -> Result<(), kube::Error> {
        if self.cluster != Cluster::Unasked {
            return Ok(());
        }
        let client = self.servers.pick(self.failures).client;
        match gone_back::cluster(client).await {
            Ok(name) => self.cluster = Cluster::Known(name),
            Err(kube::Error::Api(status)) if status.code == 403 => self.cluster = Cluster::Hidden,
            Err(error) => {
                self.failures += 1;
                self.servers.look_again().await;
                return Err(error);
            }
        }
        Ok(())
    }

    /// What the label asks for, done as far as it can be now.
    async fn answer(&mut self, phase: KubeProxy) -> Answer {
        // It is remembered for this cluster alone.
        let goes_back = self.config.services && self.config.gone_back.is_none();
        if (phase, goes_back) == (KubeProxy::Returning, true)
            && let Err(error) = self.ask_cluster().await
        {
            let why = format!("ask which cluster this is, to remember it for this one: {error}");
            return Answer::Report(not_yet(phase, vec![why]));
        }
        let cluster = self.cluster.name().map(str::to_owned);
        let (here, board) = (self.config.clone(), Arc::clone(&self.board));
        let answered =
            tokio::task::spawn_blocking(move || answer(phase, &here, cluster.as_deref(), &board));
        answered
            .await
            .unwrap_or_else(|error| Answer::Report(not_yet(phase, vec![error.to_string()])))
    }

    async fn follow(&mut self, phase: KubeProxy) -> Next {
        let (report, again) = match self.answer(phase).await {
            Answer::Report(report) => (report, false),
            Answer::Again(report) => (report, true),
        };
        let report = Report { connects_pods: Some(self.config.cni), ..report };
        let is_done = report.done;
        let told = self.report(report, again_s(phase)).await;
        if again { Next::Ends } else { after(phase, told, is_done) }
    }

    /// Whether the report is at the Node, and no older than that.
    async fn report(&mut self, report: Report, again_s: u64) -> bool {
        let known = self.told.as_ref().is_some_and(|told| {
            let same = Report { at: report.at, ..told.clone() } == report;
            same && (!report.done || report.at.abs_diff(told.at) < again_s)
        });
        if known {
            return true;
        }
        let node = &self.config.node_name;
        match tell(node, &self.servers, self.failures, &report).await {
            Ok(()) => {
                let Report { about, done, said, .. } = &report;
                tracing::info!(asked = about, done, ?said, "kube-proxy and Mizzen on this node");
                self.board.report(PART, State::Ready);
                (self.told, self.failures) = (Some(report), 0);
                true
            }
            Err(error) => {
                self.failures += 1;
                self.servers.look_again().await;
                self.board.report(PART, State::Degraded(explain(node, &error)));
                false
            }
        }
    }
}

/// After how many seconds a report is made again that says the same. A node may stay returned for good,
/// with all the others of its cluster: not so often, for each is a change of a Node.
fn again_s(phase: KubeProxy) -> u64 {
    if phase == KubeProxy::Returning { RETURNED_AGAIN_S } else { AGAIN_S }
}

/// What follows a report, which is at the Node or is not.
fn after(phase: KubeProxy, told: bool, is_done: bool) -> Next {
    match (told, is_done, phase) {
        (false, ..) => Next::Looks(RETRY),
        (true, false, _) => Next::Looks(LOOK),
        // kube-proxy ends, or has the node to itself, on the strength of it. And it is withdrawn with
        // each new label: who turned round twice asks for the same again, and an agent that was away
        // from the API server meanwhile sees no change.
        (true, true, KubeProxy::Runs | KubeProxy::Leaving | KubeProxy::Returning) => {
            Next::Looks(SERVES)
        }
        // From here the label comes back only past a report of something else.
        (true, true, KubeProxy::Removed) => Next::Rests,
    }
}

async fn tell(
    node: &str,
    servers: &Clients,
    failures: usize,
    report: &Report,
) -> Result<(), kube::Error> {
    let text = serde_json::to_string(report).map_err(kube::Error::SerdeError)?;
    let patch = Patch::Merge(json!({"metadata": {"annotations": {REPORT: text}}}));
    let api: Api<Node> = Api::all(servers.pick(failures).client);
    let params = PatchParams::default();
    limited(api.patch(node, &params, &patch)).await.map(drop)
}

fn explain(node: &str, error: &kube::Error) -> String {
    let remedy = match error {
        kube::Error::Api(status) if status.code == 403 => {
            "; the agent's role must allow patch of nodes"
        }
        _ => "",
    };
    format!(
        "report at node {node} how far it is from kube-proxy: {error}{remedy}; it is tried again"
    )
}

fn done(phase: KubeProxy, said: Vec<String>) -> Report {
    Report {
        about: phase.value().to_owned(),
        done: true,
        said,
        at: super::now_s(),
        connects_pods: None,
    }
}

fn not_yet(phase: KubeProxy, said: Vec<String>) -> Report {
    Report { done: false, ..done(phase, said) }
}

/// Does what is asked for in this cluster, as far as it can be done now.
fn answer(phase: KubeProxy, config: &Config, cluster: Option<&str>, board: &Board) -> Answer {
    let report = |answered: Result<Report, String>| {
        Answer::Report(answered.unwrap_or_else(|why| not_yet(phase, vec![why])))
    };
    match (phase, config.services && config.gone_back.is_none(), &config.gone_back) {
        (KubeProxy::Returning, false, _) => report(let_go(config)),
        (KubeProxy::Returning, true, _) => go_back(config, cluster),
        (_, false, Some(kept)) => come_again(phase, kept),
        (_, false, None) => {
            report(Err("this agent has no services (`services: false`)".to_owned()))
        }
        (KubeProxy::Runs | KubeProxy::Leaving, true, _) => {
            report(serves(board).map(|()| done(phase, vec!["Mizzen serves".to_owned()])))
        }
        (KubeProxy::Removed, true, _) => report(serves(board).and_then(|()| remove(config))),
    }
}

/// Why this node's services are not in force, where they are not.
fn serves(board: &Board) -> Result<(), String> {
    let parts = board.parts();
    // What pods' packets meet, whoever connects them.
    for part in [reconcile::PART, podnet::PART, foreign::PART] {
        match parts.get(part) {
            Some(State::Waiting(why) | State::Degraded(why)) => {
                return Err(format!("{part}: {why}"));
            }
            None if part == reconcile::PART => return Err(format!("{part}: it begins")),
            Some(State::Ready) | None => {}
        }
    }
    Ok(())
}

fn words(obstacles: &[Obstacle]) -> String {
    let words = obstacles.iter().map(|obstacle| format!("{}: {}", obstacle.what, obstacle.remedy));
    words.collect::<Vec<_>>().join("; ")
}

/// An error and its causes.
fn chain(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}

/// Removes what kube-proxy left. That its pod is gone the API server knows.
fn remove(config: &Config) -> Result<Report, String> {
    let agent = Agent::Serves { node: config.node_name.clone() };
    let plan = Plan::apply(&Seen::now(agent.clone()).map_err(chain)?, true);
    if !plan.obstacles.is_empty() {
        return Err(words(&plan.obstacles));
    }
    let mut said = Vec::new();
    carry_out(&plan, &config.bpffs, |step| said.push(step.words())).map_err(chain)?;
    if !said.is_empty() {
        verify(agent).map_err(chain)?;
    }
    said.extend(plan.notes);
    Ok(done(KubeProxy::Removed, said))
}

/// Gives the services back, once kube-proxy's rules are there: this process ends, and the next has
/// none.
fn go_back(config: &Config, cluster: Option<&str>) -> Answer {
    let phase = KubeProxy::Returning;
    let may = || {
        if config.cni {
            return Err(
                "this agent connects the node's pods, whose tunnels, masquerading and host \
                        ports would stop: move them to another CNI plugin first, and then \
                        `mizzen migrate rollback` on the node itself"
                    .to_owned(),
            );
        }
        let seen = Seen::now(Agent::Away(String::new())).map_err(chain)?;
        let services = datapath::services_in_force(&config.bpffs).map_err(chain)?;
        let plan = Plan::rollback(&seen, services.as_deref(), false);
        if !plan.obstacles.is_empty() {
            return Err(words(&plan.obstacles));
        }
        let Some(folder) = &config.data_dir else {
            return Err("this agent has no data folder (--data-dir) to remember it in".to_owned());
        };
        GoneBack::keep(folder, cluster)
    };
    match may() {
        Ok(()) => Answer::Again(not_yet(phase, vec!["the agent starts anew".to_owned()])),
        Err(why) => Answer::Report(not_yet(phase, vec![why])),
    }
}

/// Takes the datapath out of force that the process before left.
fn let_go(config: &Config) -> Result<Report, String> {
    let mut said = Vec::new();
    if datapath::is_in_force(&config.bpffs) {
        let steps = vec![Step::Detach];
        let (processes, obstacles, notes) = (Vec::new(), Vec::new(), Vec::new());
        let plan = Plan { processes, steps, obstacles, notes };
        carry_out(&plan, &config.bpffs, |step| said.push(step.words())).map_err(chain)?;
    }
    Ok(done(KubeProxy::Returning, said))
}

/// Has services again: this process ends, and the next has them.
fn come_again(phase: KubeProxy, kept: &GoneBack) -> Answer {
    match kept.remove() {
        Err(why) => Answer::Report(not_yet(phase, vec![why])),
        Ok(()) => Answer::Again(not_yet(phase, vec!["the agent starts anew".to_owned()])),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn answer(phase: KubeProxy, config: &Config, board: &Board) -> Answer {
        super::answer(phase, config, Some("of-this-cluster"), board)
    }

    fn kept(folder: &Path) -> Option<GoneBack> {
        GoneBack::read(Some(folder))
    }

    fn config(folder: &Path) -> Config {
        Config {
            node_name: "n".to_owned(),
            data_dir: Some(folder.to_owned()),
            bpffs: folder.join("bpf"),
            services: true,
            gone_back: None,
            cni: false,
        }
    }

    fn said(answer: Answer) -> (bool, Report) {
        match answer {
            Answer::Report(report) => (false, report),
            Answer::Again(report) => (true, report),
        }
    }

    #[test]
    fn an_agent_that_went_back_starts_anew_when_it_is_wanted_again() {
        let folder = tempfile::tempdir().unwrap();
        let board = Board::default();
        GoneBack::keep(folder.path(), Some("of-this-cluster")).unwrap();
        let config = Config { gone_back: kept(folder.path()), ..config(folder.path()) };
        assert!(config.gone_back.is_some());
        let (again, report) = said(answer(KubeProxy::Returning, &config, &board));
        assert!(!again && report.is_done(KubeProxy::Returning), "nothing is in force: {report:?}");
        let (again, report) = said(answer(KubeProxy::Runs, &config, &board));
        assert!(again && !report.done, "{report:?}");
        assert_eq!(kept(folder.path()), None);
    }

    #[test]
    fn nothing_is_done_by_an_agent_that_does_not_serve() {
        let folder = tempfile::tempdir().unwrap();
        let board = Board::default();
        for phase in [KubeProxy::Runs, KubeProxy::Leaving, KubeProxy::Removed] {
            let (again, report) = said(answer(phase, &config(folder.path()), &board));
            assert!(!again && !report.done, "{report:?}");
        }
        board.report(reconcile::PART, State::Ready);
        let (_, report) = said(answer(KubeProxy::Runs, &config(folder.path()), &board));
        assert!(report.is_done(KubeProxy::Runs), "{report:?}");
        board.report(foreign::PART, State::Waiting("a reason".to_owned()));
        let (_, report) = said(answer(KubeProxy::Leaving, &config(folder.path()), &board));
        assert!(!report.done && report.said[0].contains("a reason"), "{report:?}");
    }

    #[test]
    fn pods_that_mizzen_connects_keep_it_from_going_back() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { cni: true, ..config(folder.path()) };
        let (again, report) = said(answer(KubeProxy::Returning, &config, &Board::default()));
        assert!(!again && report.said[0].contains("connects the node's pods"), "{report:?}");
        assert_eq!(kept(folder.path()), None);
    }

    #[test]
    fn an_agent_without_services_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { services: false, ..config(folder.path()) };
        let (again, report) = said(answer(KubeProxy::Removed, &config, &Board::default()));
        assert!(!again && report.said[0].contains("services: false"), "{report:?}");
    }

    /// What was withdrawn has to be said again, though the label be the same as before.
    #[test]
    fn what_somebody_waits_for_is_said_again_and_again() {
        use KubeProxy::{Leaving, Removed, Returning, Runs};
        for phase in [Runs, Leaving, Returning] {
            assert_eq!(after(phase, true, true), Next::Looks(SERVES), "{phase:?}");
        }
        assert_eq!(after(Removed, true, true), Next::Rests);
        for phase in [Runs, Leaving, Removed, Returning] {
            assert_eq!(after(phase, true, false), Next::Looks(LOOK), "{phase:?}");
            for is_done in [false, true] {
                assert_eq!(after(phase, false, is_done), Next::Looks(RETRY), "{phase:?}");
            }
        }
    }

    #[test]
    fn the_sooner_of_two_is_what_follows() {
        let (soon, late) = (Next::Looks(LOOK), Next::Looks(RETRY));
        for (one, other, expected) in [
            (Next::Rests, Next::Rests, Next::Rests),
            (Next::Rests, late, late),
            (soon, late, soon),
            (late, Next::Ends, Next::Ends),
        ] {
            assert_eq!((one.sooner(other), other.sooner(one)), (expected, expected));
        }
    }
}
