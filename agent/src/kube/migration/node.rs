//! The agent's side: does on its node what the Node's label asks for, and reports in an annotation.
//!
//! An agent whose node went back to kube-proxy has no services: a file in its data folder says so,
//! also after a restart without an API server, until the label asks for Mizzen again. Between the two
//! the process ends, and its supervisor (a kubelet, systemd) starts it anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use super::{REPORT, Report};
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
/// In the data folder, where services went back to kube-proxy.
const FILE: &str = "services-of-kube-proxy";
/// How often it is looked while what is asked for is not so.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is said again that Mizzen serves, while that is asked for.
const AGAIN_S: u64 = super::FRESH_S / 4;
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
    /// Whether these went back to kube-proxy.
    pub gone_back: bool,
    /// Whether this agent connects pods.
    pub cni: bool,
}

/// Whether services of this node went back to kube-proxy.
pub fn went_back(data_dir: Option<&Path>) -> bool {
    data_dir.is_some_and(|folder| folder.join(FILE).exists())
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
    let mut follower = Follower { config, servers, board, told: None, failures: 0 };
    loop {
        let asked = label(&snapshots.borrow_and_update());
        let pause = match asked {
            None => {
                follower.told = None;
                None
            }
            Some(phase) => match follower.follow(phase).await {
                Next::Rests => None,
                Next::Looks(pause) => Some(pause),
                Next::Ends => {
                    tracing::info!("ending, to be started anew with other roles");
                    stop();
                    cancel.cancelled().await;
                    return Ok(());
                }
            },
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
enum Next {
    /// It is as the label asks for.
    Rests,
    /// It is looked again after this time.
    Looks(Duration),
    /// The process ends.
    Ends,
}

/// One that answers, and reports.
struct Follower {
    config: Config,
    servers: Clients,
    board: Arc<Board>,
    /// The report that is known to be at the Node.
    told: Option<Report>,
    /// Reports in a row that were not taken.
    failures: usize,
}

impl Follower {
    async fn follow(&mut self, phase: KubeProxy) -> Next {
        let (here, board) = (self.config.clone(), Arc::clone(&self.board));
        let answered = tokio::task::spawn_blocking(move || answer(phase, &here, &board)).await;
        let (report, again) = match answered {
            Ok(Answer::Report(report)) => (report, false),
            Ok(Answer::Again(report)) => (report, true),
            Err(error) => (not_yet(phase, vec![error.to_string()]), false),
        };
        let report = Report { connects_pods: Some(self.config.cni), ..report };
        let is_done = report.done;
        let told = self.report(report).await;
        match (again, told, is_done) {
            (true, ..) => Next::Ends,
            (false, false, _) => Next::Looks(RETRY),
            (false, true, false) => Next::Looks(LOOK),
            // kube-proxy ends on the strength of it.
            (false, true, true) if matches!(phase, KubeProxy::Runs | KubeProxy::Leaving) => {
                Next::Looks(SERVES)
            }
            (false, true, true) => Next::Rests,
        }
    }

    /// Whether the report is at the Node.
    async fn report(&mut self, report: Report) -> bool {
        let known = self.told.as_ref().is_some_and(|told| {
            let same = Report { at: report.at, ..told.clone() } == report;
            same && (!report.done || report.at.abs_diff(told.at) < AGAIN_S)
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

/// Does what is asked for, as far as it can be done now.
fn answer(phase: KubeProxy, config: &Config, board: &Board) -> Answer {
    let report = |answered: Result<Report, String>| {
        Answer::Report(answered.unwrap_or_else(|why| not_yet(phase, vec![why])))
    };
    match (phase, config.services && !config.gone_back) {
        (KubeProxy::Returning, false) => report(let_go(config)),
        (KubeProxy::Returning, true) => go_back(config),
        (_, false) if config.gone_back => come_again(phase, config),
        (_, false) => report(Err("this agent has no services (`services: false`)".to_owned())),
        (KubeProxy::Runs | KubeProxy::Leaving, true) => {
            report(serves(board).map(|()| done(phase, vec!["Mizzen serves".to_owned()])))
        }
        (KubeProxy::Removed, true) => report(serves(board).and_then(|()| remove(config))),
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
fn go_back(config: &Config) -> Answer {
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
        keep(folder).map_err(|error| format!("write {}: {error}", folder.join(FILE).display()))
    };
    match may() {
        Ok(()) => Answer::Again(not_yet(phase, vec!["the agent starts anew".to_owned()])),
        Err(why) => Answer::Report(not_yet(phase, vec![why])),
    }
}

/// For good: after a loss of power too.
fn keep(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::File::create(folder.join(FILE))?.sync_all()?;
    fs::File::open(folder)?.sync_all()
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
fn come_again(phase: KubeProxy, config: &Config) -> Answer {
    let file = config.data_dir.as_deref().unwrap_or(Path::new("")).join(FILE);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Answer::Report(not_yet(phase, vec![format!("remove {}: {error}", file.display())]))
        }
        _ => Answer::Again(not_yet(phase, vec!["the agent starts anew".to_owned()])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path) -> Config {
        Config {
            node_name: "n".to_owned(),
            data_dir: Some(folder.to_owned()),
            bpffs: folder.join("bpf"),
            services: true,
            gone_back: false,
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
        let config = Config { gone_back: true, ..config(folder.path()) };
        keep(folder.path()).unwrap();
        assert!(went_back(Some(folder.path())));
        let (again, report) = said(answer(KubeProxy::Returning, &config, &board));
        assert!(!again && report.is_done(KubeProxy::Returning), "nothing is in force: {report:?}");
        let (again, report) = said(answer(KubeProxy::Runs, &config, &board));
        assert!(again && !report.done, "{report:?}");
        assert!(!went_back(Some(folder.path())));
        assert!(!went_back(None));
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
        assert!(!went_back(Some(folder.path())));
    }

    #[test]
    fn an_agent_without_services_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { services: false, ..config(folder.path()) };
        let (again, report) = said(answer(KubeProxy::Removed, &config, &Board::default()));
        assert!(!again && report.said[0].contains("services: false"), "{report:?}");
    }
}
