//! What changes at the container runtime, found by listing: everything once a second, and at once
//! after each call of ours. A sandbox whose list reads differently than before has changed.
//!
//! The same look tells whether pods can have a network. A runtime that is away changes nothing:
//! its pods go on, and what happened meanwhile is found when it is back.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_cri::v1 as cri;
use tokio::{
    sync::{Notify, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::{
    super::NetworkState,
    Client,
    call::{self, CallError, bounded},
};

/// Between two looks (the kubelet's generic PLEG has the same).
const PERIOD: Duration = Duration::from_secs(1);

/// What a sandbox looked like: its state and those of its containers.
type Picture = BTreeMap<String, i32>;

/// The changes, by sandbox.
#[derive(Debug, Default)]
pub(super) struct Changes {
    senders: Mutex<BTreeMap<String, watch::Sender<u64>>>,
    asked: Notify,
}

impl Changes {
    /// The changes of a sandbox from now on.
    pub(super) fn of(&self, sandbox: &str) -> watch::Receiver<u64> {
        self.senders().entry(sandbox.to_owned()).or_default().subscribe()
    }

    /// Nothing of the sandbox will change any more.
    pub(super) fn forget(&self, sandbox: &str) {
        self.senders().remove(sandbox);
    }

    /// Has the runtime looked at now.
    pub(super) fn look(&self) {
        self.asked.notify_one();
    }

    fn tell(&self, before: &BTreeMap<String, Picture>, after: &BTreeMap<String, Picture>) {
        for (sandbox, sender) in self.senders().iter() {
            if before.get(sandbox) != after.get(sandbox) {
                sender.send_modify(|revision| *revision += 1);
            }
        }
    }

    fn senders(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<u64>>> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks until `stop`.
pub(super) async fn follow(
    client: Client,
    changes: std::sync::Arc<Changes>,
    network: watch::Sender<NetworkState>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = BTreeMap::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = changes.asked.notified() => {}
            () = stop.cancelled() => return,
        }
        let state = network_state(&client).await;
        network.send_if_modified(|known| {
            let changed = *known != state;
            *known = state;
            changed
        });
        match pictures(&client).await {
            Ok(seen) => {
                changes.tell(&known, &seen);
                known = seen;
            }
            Err(error) => tracing::debug!(%error, "the container runtime was not looked at"),
        }
    }
}

async fn network_state(client: &Client) -> NetworkState {
    let request = cri::StatusRequest { verbose: false };
    let answer = bounded(call::LOOK, client.runtime().status(request)).await;
    network_of(&answer.map_err(|error| error.to_string())?)
}

/// What the runtime says of the network.
fn network_of(answer: &cri::StatusResponse) -> NetworkState {
    let conditions = answer.status.iter().flat_map(|status| &status.conditions);
    let unmet = conditions
        .filter(|one| matches!(one.r#type.as_str(), "RuntimeReady" | "NetworkReady"))
        .find(|one| !one.status);
    match unmet {
        Some(one) if one.r#type == "NetworkReady" => Err(one.message.clone()),
        Some(one) => Err(format!("container runtime is not ready: {}", one.message)),
        None => Ok(()),
    }
}

async fn pictures(client: &Client) -> Result<BTreeMap<String, Picture>, CallError> {
    let sandboxes = cri::ListPodSandboxRequest { filter: None };
    let sandboxes = bounded(call::LOOK, client.runtime().list_pod_sandbox(sandboxes)).await?;
    let containers = cri::ListContainersRequest { filter: None };
    let containers = bounded(call::LOOK, client.runtime().list_containers(containers)).await?;
    let mut all: BTreeMap<String, Picture> = BTreeMap::new();
    for sandbox in sandboxes.items {
        all.entry(sandbox.id).or_default().insert(String::new(), sandbox.state);
    }
    for container in containers.containers {
        all.entry(container.pod_sandbox_id).or_default().insert(container.id, container.state);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(states: &[(&str, i32)]) -> Picture {
        states.iter().map(|(id, state)| ((*id).to_owned(), *state)).collect()
    }

    #[test]
    fn only_sandboxes_that_look_different_have_changed() {
        let changes = Changes::default();
        let [quiet, started, gone, new] = ["quiet", "started", "gone", "new"].map(|id| {
            let mut receiver = changes.of(id);
            receiver.mark_unchanged();
            receiver
        });
        let before = BTreeMap::from([
            ("quiet".to_owned(), picture(&[("", 0), ("a", 1)])),
            ("started".to_owned(), picture(&[("", 0), ("a", 0)])),
            ("gone".to_owned(), picture(&[("", 0)])),
        ]);
        let after = BTreeMap::from([
            ("quiet".to_owned(), picture(&[("", 0), ("a", 1)])),
            ("started".to_owned(), picture(&[("", 0), ("a", 1)])),
            ("new".to_owned(), picture(&[("", 0)])),
        ]);
        changes.tell(&before, &after);
        let changed = [quiet, started, gone, new].map(|one| one.has_changed().unwrap());
        assert_eq!(changed, [false, true, true, true]);
    }

    #[test]
    fn a_network_is_ready_when_runtime_and_network_are() {
        let answer = |conditions: &[(&str, bool)]| cri::StatusResponse {
            status: Some(cri::RuntimeStatus {
                conditions: conditions
                    .iter()
                    .map(|(kind, status)| cri::RuntimeCondition {
                        r#type: (*kind).to_owned(),
                        status: *status,
                        message: "not yet".into(),
                        ..cri::RuntimeCondition::default()
                    })
                    .collect(),
            }),
            ..cri::StatusResponse::default()
        };
        let both = |runtime, network| {
            network_of(&answer(&[("RuntimeReady", runtime), ("NetworkReady", network)]))
        };
        assert_eq!(both(true, true), Ok(()));
        assert_eq!(both(true, false), Err("not yet".to_owned()));
        assert_eq!(both(false, true), Err("container runtime is not ready: not yet".to_owned()));
    }
}
