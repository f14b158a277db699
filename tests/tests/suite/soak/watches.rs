//! What an API server does to its watchers ends in the same tables as a list of what is there
//! (reference R5, R6).

use std::{path::Path, sync::Arc, time::Duration};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use mizzen_agent::{
    apply::{lookup, maps::Maps as _},
    kube::client::ApiServers,
    model::snapshot::Snapshot,
};
use mizzen_tests::{
    node::TestNode,
    soak::{Dice, share},
};
use serde_json::json;

use super::{
    cluster,
    unsteady::{Manner, Unsteady},
};
use crate::watch::{Agent, serve};

const SERVICES: usize = 8;
const LIMIT: Duration = Duration::from_mins(1);

/// The objects that change.
struct Objects {
    services: Api<Service>,
    slices: Api<EndpointSlice>,
    dice: Dice,
}

impl Objects {
    async fn of(kubeconfig: &Path, dice: Dice) -> Self {
        let servers = ApiServers::new(Some(kubeconfig), &[]).await.unwrap();
        let client = servers.clients().unwrap().pick(0).client;
        let services = Api::default_namespaced(client.clone());
        Self { services, slices: Api::default_namespaced(client), dice }
    }

    /// One change, of those that make sense at present and of those that don't.
    async fn change(&mut self) {
        let service = format!("web-{}", self.dice.below(SERVICES));
        let ipv6 = self.dice.below(2) == 1;
        let family = if ipv6 { "v6" } else { "v4" };
        let slice = format!("{service}-{family}-{}", ["a", "b"][self.dice.below(2)]);
        let (post, delete) = (PostParams::default(), DeleteParams::default());
        let refused = match self.dice.below(5) {
            0 => self.services.delete(&service, &delete).await.err(),
            1 | 2 => self.services.create(&post, &web(&service)).await.err(),
            3 => self.slices.delete(&slice, &delete).await.err(),
            _ => {
                let endpoints = self.endpoints(ipv6);
                let wanted = web_slice(&service, &slice, ipv6, &endpoints);
                match self.slices.create(&post, &wanted).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => {
                        let change = Patch::Merge(json!({"endpoints": endpoints}));
                        self.slices.patch(&slice, &PatchParams::default(), &change).await.err()
                    }
                    other => other.err(),
                }
            }
        };
        // There already, or there no more.
        match refused {
            None => {}
            Some(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Some(other) => panic!("{other}"),
        }
    }

    fn endpoints(&mut self, ipv6: bool) -> serde_json::Value {
        let chosen = self.dice.some(&[1, 2, 3, 4, 5, 6]);
        let prefix = if ipv6 { "fd00:244::" } else { "10.244.0." };
        chosen.iter().map(|last| json!({"addresses": [format!("{prefix}{last}")]})).collect()
    }
}

fn web(name: &str) -> Service {
    let object = json!({
        "metadata": {"name": name},
        "spec": {"ports": [{"name": "http", "port": 80}], "ipFamilyPolicy": "PreferDualStack"},
    });
    serde_json::from_value(object).unwrap()
}

fn web_slice(
    service: &str,
    name: &str,
    ipv6: bool,
    endpoints: &serde_json::Value,
) -> EndpointSlice {
    let object = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": if ipv6 { "IPv6" } else { "IPv4" },
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    });
    serde_json::from_value(object).unwrap()
}

/// Two snapshots that say the same, whenever they said it. (One may know its node's pods already,
/// which no table here comes from.)
fn same(a: &Snapshot, b: &Snapshot) -> bool {
    a.synced.all() == b.synced.all()
        && a.services == b.services
        && a.slices == b.slices
        && a.nodes == b.nodes
}

/// In what two snapshots differ.
fn differences(seen: &Snapshot, truth: &Snapshot) -> String {
    let parts = [
        ("synced", seen.synced.all() == truth.synced.all()),
        ("services", seen.services == truth.services),
        ("slices", seen.slices == truth.slices),
        ("nodes", seen.nodes == truth.nodes),
    ];
    let parts: Vec<&str> = parts.iter().filter(|(_, same)| !same).map(|(name, _)| *name).collect();
    if parts.is_empty() {
        return "that of the last lists".to_owned();
    }
    format!("another in {}: {seen:#?}, and in truth {truth:#?}", parts.join(", "))
}

#[test]
fn r05_r06_whatever_happens_to_watches_the_tables_follow_the_last_list() {
    follows_the_last_list(Manner::Lying, share(4_000));
}

/// Nothing but an end of the faults: no list is forced on anyone.
#[test]
fn r05_r06_faults_that_merely_end_leave_nothing_behind() {
    follows_the_last_list(Manner::Failing, share(2_000));
}

fn follows_the_last_list(manner: Manner, changes: u64) {
    let dice = Dice::new();
    let told = format!("seed {}", dice.seed);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let server = serve(folder.path(), ([127, 0, 0, 1], 0).into()).await;
        let unsteady = Unsteady::start(&server.kubeconfig, manner, dice.clone()).await;
        let mut objects = Objects::of(&server.kubeconfig, dice.clone()).await;
        let agent =
            Agent::through(server.kubeconfig.clone(), std::slice::from_ref(&unsteady.url)).await;

        let node = TestNode::new("watches");
        let datapath = node.open();
        let mut follower = cluster::Agent::start(Box::new(datapath.maps().unwrap()));
        let mut snapshots = agent.snapshots.clone();
        let following = tokio::task::spawn_blocking(move || {
            let handle = tokio::runtime::Handle::current();
            while handle.block_on(snapshots.changed()).is_ok() {
                let snapshot = Arc::clone(&snapshots.borrow_and_update());
                follower.follow(&snapshot);
            }
        });
        let enough = || unsteady.faults.load(std::sync::atomic::Ordering::Relaxed) > 10;
        for change in 0..10 * changes {
            if change >= changes && enough() {
                break;
            }
            objects.change().await;
        }
        assert!(enough(), "{told}");
        unsteady.calm();

        let mut steady = Agent::start(server.kubeconfig.clone()).await;
        steady.until("everything to be listed", |snapshot| snapshot.synced.all()).await;
        let truth = Arc::clone(&steady.snapshots.borrow());
        let expected = lookup::everything(cluster::tables_of(&truth).tables());
        for v4 in [true, false] {
            assert!(expected.keys().any(|key| key.addr.is_v4() == v4), "{told}, v4: {v4}");
        }
        let reached = async {
            loop {
                let seen = Arc::clone(&agent.snapshots.borrow());
                let tables = datapath.maps().unwrap().dump().unwrap();
                if same(&seen, &truth) && lookup::everything(&tables) == expected {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(LIMIT, reached).await.is_err() {
            let seen = Arc::clone(&agent.snapshots.borrow());
            let tables = lookup::everything(&datapath.maps().unwrap().dump().unwrap());
            panic!(
                "{told}: never the same; the snapshot is {}, the tables are {}",
                differences(&seen, &truth),
                if tables == expected { "what they lead to" } else { "others" },
            );
        }
        agent.stop().await;
        following.await.unwrap();
        steady.stop().await;
        server.stop().await;
    });
}
