//! What the tests of this module share: a node, a pod, and ways to say what is seen of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    jiff::Timestamp,
};
use serde_json::{Value, json};

use super::{
    super::runtime::{
        Abilities, Container, ContainerState, Image, ImageRequest, ImageUser, PodIdentity, Sandbox,
    },
    facts::NodeFacts,
    inputs::Inputs,
    observed::{Observed, Pull},
};

/// `seconds` after the beginning of the test's time.
pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

/// The node `node-1`.
pub(super) fn node() -> NodeFacts {
    NodeFacts {
        name: "node-1".into(),
        runtime: "mizzen-process".into(),
        abilities: Abilities::ALL,
        cpu_millis: 4000,
        memory_bytes: 8 << 30,
        volume_dir: "/volumes".into(),
        addresses: vec!["192.0.2.11".parse().unwrap(), "fd00:30::11".parse().unwrap()],
        cluster_dns: vec!["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()],
        cluster_domain: "cluster.local".into(),
        resolv_conf: "# of the node\nnameserver 192.0.2.53\nsearch corp\noptions edns0\n".into(),
        hosts: "192.0.2.11 node-1\n".into(),
    }
}

/// The pod `web` with this spec; a container `main` where it names none.
pub(super) fn pod(mut spec: Value) -> Pod {
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "main", "image": "hello"}]);
    }
    let pod = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "uid-1",
            "labels": {"app": "hello"}, "generation": 1},
        "spec": spec,
    });
    serde_json::from_value(pod).unwrap()
}

/// An image that runs as root.
pub(super) fn image(id: &str) -> Image {
    Image { id: id.into(), user: ImageUser::Id(0) }
}

/// Nothing was seen yet; the network is ready and the image `hello` is there.
pub(super) fn nothing() -> Observed {
    let hello = ImageRequest { reference: "hello".into(), ..ImageRequest::default() };
    Observed {
        first_seen: at(0),
        gone_since: None,
        delete_confirmed: false,
        reported: PodStatus::default(),
        network: Ok(()),
        sandboxes: Vec::new(),
        sandboxes_before: 0,
        containers: Vec::new(),
        past: BTreeMap::new(),
        images: vec![(hello, Pull::Present(image("mizzen-process://hello")))],
        probes: BTreeMap::new(),
        failed_hooks: BTreeSet::new(),
        in_flight: BTreeMap::new(),
        failures: BTreeMap::new(),
        inputs: Some(Inputs::none(at(0))),
        refreshed_at: None,
        volumes_left: false,
    }
}

/// A sandbox `s0` that runs, with these containers.
pub(super) fn with(containers: Vec<Container>) -> Observed {
    Observed { sandboxes: vec![sandbox(true)], containers, ..nothing() }
}

/// The sandbox `s0`.
pub(super) fn sandbox(ready: bool) -> Sandbox {
    Sandbox {
        id: "s0".into(),
        pod: PodIdentity { namespace: "default".into(), name: "web".into(), uid: "uid-1".into() },
        attempt: 0,
        ready,
        addresses: vec!["fd00:244::9".parse().unwrap(), "10.244.0.9".parse().unwrap()],
        created_at: at(0),
    }
}

/// A container in a state.
pub(super) fn container(name: &str, attempt: u32, state: ContainerState) -> Container {
    Container {
        id: format!("s0.{name}.{attempt}"),
        sandbox: "s0".into(),
        name: name.into(),
        attempt,
        image: "hello".into(),
        backoff: Duration::ZERO,
        state,
    }
}

/// It runs since `seconds`.
pub(super) fn running(seconds: i64) -> ContainerState {
    ContainerState::Running { started_at: at(seconds) }
}

/// It ran from `started` to `finished`.
pub(super) fn exited(started: i64, finished: i64, exit_code: i32) -> ContainerState {
    ContainerState::Exited {
        started_at: at(started),
        finished_at: at(finished),
        exit_code,
        reason: None,
        message: None,
    }
}
