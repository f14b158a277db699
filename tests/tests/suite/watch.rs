//! The agent's watches against the real API server: what is there, what comes and goes, a server
//! that is away, and what happened meanwhile.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Service;
use kube::{Api, api::PostParams};
use mizzen_agent::{
    kube::{self as watches, Beside, client::ApiServers},
    model::{ObjectKey, snapshot::Snapshot},
    status::{Board, State},
    supervisor::{Tasks, Thread, supervise},
};
use mizzen_control_plane::serve::{Args, Server};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);

/// The API server of the cluster that is kept in `data_dir`.
pub(crate) async fn serve(data_dir: &Path, listen: SocketAddr) -> Server {
    let args =
        Args { listen: vec![listen], no_controllers: true, ..Args::new(data_dir.to_owned()) };
    Server::start(args, CancellationToken::new()).await.unwrap()
}

/// The agent's watches, alone.
pub(crate) struct Agent {
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    board: Arc<Board>,
    tasks: Tasks,
    _thread: Thread,
}

impl Agent {
    pub(crate) async fn start(kubeconfig: PathBuf) -> Self {
        Self::through(kubeconfig, &[]).await
    }

    /// As [`Self::start`], with other addresses of the server.
    pub(crate) async fn through(kubeconfig: PathBuf, urls: &[String]) -> Self {
        let servers = ApiServers::new(Some(&kubeconfig), urls).await.unwrap();
        let (board, mut tasks): (Arc<Board>, _) = (Arc::default(), Tasks::new("watches"));
        let thread = Thread::start("cluster").unwrap();
        let snapshots = watches::start(
            &servers,
            Beside { pods_of: Some("node-1"), namespaces: true },
            &board,
            &Arc::default(),
            (&mut tasks, &thread),
        );
        Self { snapshots: snapshots.unwrap().all, board, tasks, _thread: thread }
    }

    pub(crate) async fn until(&mut self, what: &str, mut holds: impl FnMut(&Snapshot) -> bool) {
        let wait = self.snapshots.wait_for(|snapshot| holds(snapshot));
        let seen = tokio::time::timeout(LIMIT, wait).await;
        let seen = seen.map(|snapshot| drop(snapshot.unwrap()));
        assert!(seen.is_ok(), "waited for {what}; the board says {:?}", self.board.parts());
    }

    pub(crate) async fn until_board(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let check = async {
            while !self.board.parts().values().all(&holds) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let seen = tokio::time::timeout(LIMIT, check).await;
        assert!(seen.is_ok(), "waited for {what}; the board says {:?}", self.board.parts());
    }

    pub(crate) async fn stop(self) {
        supervise(vec![self.tasks], async {}).await.unwrap();
    }
}

async fn services(kubeconfig: &Path) -> Api<Service> {
    let servers = ApiServers::new(Some(kubeconfig), &[]).await.unwrap();
    Api::default_namespaced(servers.clients().unwrap().pick(0).client)
}

fn web() -> Service {
    let object = r#"{"metadata":{"name":"web"},"spec":{"ports":[{"port":80}]}}"#;
    serde_json::from_str(object).unwrap()
}

fn has(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.services.contains_key(&ObjectKey::new("default", name))
}

#[test]
fn b114_watches_follow_and_outlive_the_api_server() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let server = serve(folder.path(), ([127, 0, 0, 1], 0).into()).await;
        let (address, kubeconfig) = (server.addresses[0], server.kubeconfig.clone());

        // A server that is away at the start is waited for, visibly.
        server.stop().await;
        let mut agent = Agent::start(kubeconfig.clone()).await;
        let away = |state: &State| matches!(state, State::Waiting(why) if why.contains("refused"));
        agent.until_board("the server to be missed", away).await;
        assert!(!agent.snapshots.borrow().synced.all());
        let server = serve(folder.path(), address).await;
        agent.until("everything to be listed", |snapshot| snapshot.synced.all()).await;
        let namespaces = |snapshot: &Snapshot| {
            snapshot.synced.namespaces && snapshot.namespaces.contains_key("kube-system")
        };
        agent.until("namespaces", namespaces).await;
        agent.until_board("all watches", |state| *state == State::Ready).await;

        let api = services(&kubeconfig).await;
        api.create(&PostParams::default(), &web()).await.unwrap();
        agent.until("a new service", |snapshot| has(snapshot, "web")).await;
        api.delete("web", &kube::api::DeleteParams::default()).await.unwrap();
        agent.until("its deletion", |snapshot| !has(snapshot, "web")).await;
        api.create(&PostParams::default(), &web()).await.unwrap();
        agent.until("it again", |snapshot| has(snapshot, "web")).await;

        // The server goes: what was known stays, and the board says so. What happens where the
        // agent can't see it is learned when the server is back.
        server.stop().await;
        let missed = |state: &State| matches!(state, State::Degraded(_));
        agent.until_board("the server to be missed", missed).await;
        assert!(has(&agent.snapshots.borrow(), "web") && agent.snapshots.borrow().synced.all());
        let elsewhere = serve(folder.path(), ([127, 0, 0, 1], 0).into()).await;
        let api = services(&elsewhere.kubeconfig).await;
        api.delete("web", &kube::api::DeleteParams::default()).await.unwrap();
        elsewhere.stop().await;
        let server = serve(folder.path(), address).await;
        agent.until("what is gone to be removed", |snapshot| !has(snapshot, "web")).await;
        agent.until_board("all watches", |state| *state == State::Ready).await;
        assert!(has(&agent.snapshots.borrow(), "kubernetes"));
        agent.stop().await;
        server.stop().await;
    });
}
