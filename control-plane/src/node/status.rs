//! The Node's status: what the machine is and whether it can run pods. Computed often, written
//! when it has changed and at the latest after five minutes; the Lease is the heartbeat.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use k8s_openapi::{
    api::core::v1::{Node, NodeAddress, NodeCondition, NodeStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{machine, runtime::NetworkState};

/// How often it is computed.
const COMPUTE: Duration = Duration::from_secs(10);
/// Unchanged, it is written so seldom.
const REPORT: Duration = Duration::from_mins(5);
/// How long a write may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a write is tried again at once where somebody else was first.
const CONFLICTS_MAX: u32 = 5;

/// What the status is made of and does not change.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Name of the node.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// `name://version` of what runs the pods.
    pub runtime_version: String,
    /// Folder whose file system is watched for room.
    pub state_dir: PathBuf,
    /// The disk is short where less than this share of it is free.
    pub disk_short_percent: u8,
    /// Where logs and commands are served.
    pub port: u16,
}

/// What is seen of the machine now.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Health {
    network: NetworkState,
    memory_is_short: bool,
    disk_is_short: bool,
}

/// Keeps the status of the node until `stop`.
pub(super) async fn keep(
    client: Client,
    facts: Facts,
    mut network: watch::Receiver<NetworkState>,
    stop: CancellationToken,
) {
    let api: Api<Node> = Api::all(client);
    let mut ticks = interval(COMPUTE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported: Option<(Health, Instant)> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = network.changed() => {}
            () = stop.cancelled() => return,
        }
        let health = Health {
            network: network.borrow_and_update().clone(),
            memory_is_short: machine::memory_is_short(),
            disk_is_short: machine::disk_is_short(&facts.state_dir, facts.disk_short_percent),
        };
        let due =
            reported.as_ref().is_none_or(|(known, at)| *known != health || at.elapsed() >= REPORT);
        if !due {
            continue;
        }
        match tokio::time::timeout(TIMEOUT, write(&api, &facts, &health)).await {
            Ok(Ok(())) => reported = Some((health, Instant::now())),
            Ok(Err(error)) => tracing::warn!(%error, "node status not written; trying again"),
            Err(_elapsed) => tracing::warn!("node status not written in time; trying again"),
        }
    }
}

/// Writes what is ours on top of what others have written.
async fn write(api: &Api<Node>, facts: &Facts, health: &Health) -> Result<(), kube::Error> {
    let mut conflicts = 0;
    loop {
        let node = api.get(&facts.name).await?;
        let body = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "status": fields(facts, health, &node.status.unwrap_or_default(), Timestamp::now()),
        });
        let patch = Patch::Merge(body);
        match api.patch_status(&facts.name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 409 && conflicts < CONFLICTS_MAX => {
                conflicts += 1;
            }
            outcome => return outcome.map(drop),
        }
    }
}

/// The fields that are ours; of the conditions also those of others, since a list is replaced.
fn fields(facts: &Facts, health: &Health, known: &NodeStatus, now: Timestamp) -> Value {
    let capacity = machine::capacity();
    json!({
        "addresses": addresses(facts),
        "capacity": capacity,
        "allocatable": capacity,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": facts.port}},
        "nodeInfo": machine::system_info(&facts.runtime_version),
        "conditions": conditions(health, known, now),
    })
}

/// The addresses as the API lists them: each of the node's, then its name.
pub(super) fn addresses(facts: &Facts) -> Vec<NodeAddress> {
    let entry = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    let own = facts.addresses.iter().map(|address| entry("InternalIP", address.to_string()));
    own.chain([entry("Hostname", facts.name.clone())]).collect()
}

fn conditions(health: &Health, known: &NodeStatus, now: Timestamp) -> Vec<NodeCondition> {
    let known = known.conditions.as_deref().unwrap_or_default();
    let pressure = |holds: bool, short: &'static str, enough: &'static str| {
        if holds { (true, short, short_text(short)) } else { (false, enough, short_text(enough)) }
    };
    let ready = match &health.network {
        Ok(()) => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Err(why) => (false, "KubeletNotReady", format!("network not ready: {why}")),
    };
    let ours = [
        (
            "MemoryPressure",
            pressure(
                health.memory_is_short,
                "KubeletHasInsufficientMemory",
                "KubeletHasSufficientMemory",
            ),
        ),
        (
            "DiskPressure",
            pressure(health.disk_is_short, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
        ),
        ("PIDPressure", pressure(false, "KubeletHasInsufficientPID", "KubeletHasSufficientPID")),
        ("Ready", ready),
    ];
    let foreign = known.iter().filter(|one| ours.iter().all(|(kind, _)| *kind != one.type_));
    let mut conditions: Vec<NodeCondition> = foreign.cloned().collect();
    for (kind, (holds, reason, message)) in ours {
        let status = if holds { "True" } else { "False" };
        let before = known.iter().find(|one| one.type_ == kind && one.status == status);
        let since = before.and_then(|one| one.last_transition_time.clone());
        conditions.push(NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(since.unwrap_or(Time(now))),
        });
    }
    conditions
}

/// `KubeletHasSufficientMemory` as a sentence: `kubelet has sufficient memory available`.
fn short_text(reason: &str) -> String {
    match reason {
        "KubeletHasSufficientMemory" => "kubelet has sufficient memory available",
        "KubeletHasInsufficientMemory" => "kubelet has insufficient memory available",
        "KubeletHasNoDiskPressure" => "kubelet has no disk pressure",
        "KubeletHasDiskPressure" => "kubelet has disk pressure",
        _ => "kubelet has sufficient PID available",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(network: NetworkState) -> Health {
        Health { network, memory_is_short: false, disk_is_short: false }
    }

    fn ready(conditions: &[NodeCondition]) -> &NodeCondition {
        conditions.iter().find(|one| one.type_ == "Ready").unwrap()
    }

    #[test]
    fn the_node_is_ready_when_its_network_is() {
        let at = Timestamp::UNIX_EPOCH;
        let missing = Err("no CNI configuration in /etc/cni/net.d".to_owned());
        let not_yet = conditions(&health(missing), &NodeStatus::default(), at);
        let condition = ready(&not_yet);
        assert_eq!(condition.status, "False");
        assert_eq!(
            condition.message.as_deref(),
            Some("network not ready: no CNI configuration in /etc/cni/net.d")
        );
        let now = conditions(&health(Ok(())), &NodeStatus::default(), at);
        assert_eq!(
            (ready(&now).status.as_str(), ready(&now).reason.as_deref()),
            ("True", Some("KubeletReady"))
        );
        for kind in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
            assert_eq!(now.iter().find(|one| one.type_ == kind).unwrap().status, "False", "{kind}");
        }
    }

    #[test]
    fn only_a_change_has_a_new_transition_time_and_others_conditions_stay() {
        let (first, second, third) = (
            Timestamp::from_second(100).unwrap(),
            Timestamp::from_second(200).unwrap(),
            Timestamp::from_second(300).unwrap(),
        );
        let mut known = NodeStatus {
            conditions: Some(conditions(&health(Ok(())), &NodeStatus::default(), first)),
            ..NodeStatus::default()
        };
        let foreign = NodeCondition {
            type_: "NetworkUnavailable".into(),
            status: "False".into(),
            ..NodeCondition::default()
        };
        known.conditions.as_mut().unwrap().push(foreign.clone());
        let same = conditions(&health(Ok(())), &known, second);
        assert_eq!(ready(&same).last_transition_time, Some(Time(first)));
        assert_eq!(ready(&same).last_heartbeat_time, Some(Time(second)));
        assert!(same.contains(&foreign));
        let changed = conditions(&health(Err("x".into())), &known, third);
        assert_eq!(ready(&changed).last_transition_time, Some(Time(third)));
    }

    #[test]
    fn addresses_are_every_internal_ip_and_the_name() {
        let facts = Facts {
            name: "node-1".into(),
            addresses: vec!["172.30.0.11".parse().unwrap(), "fd00:30::11".parse().unwrap()],
            runtime_version: String::new(),
            state_dir: PathBuf::new(),
            disk_short_percent: 10,
            port: 10250,
        };
        let list: Vec<String> = addresses(&facts)
            .into_iter()
            .map(|one| format!("{}={}", one.type_, one.address))
            .collect();
        assert_eq!(list, ["InternalIP=172.30.0.11", "InternalIP=fd00:30::11", "Hostname=node-1"]);
    }
}
