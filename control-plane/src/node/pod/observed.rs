//! What is seen of a pod: by the runtime, by probes, and of the calls that are under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{ContainerState as ApiState, ContainerStatus, PodStatus},
    jiff::Timestamp,
};

use super::{
    super::runtime::{Container, ContainerState, Image, ImageRequest, NetworkState, Sandbox},
    inputs::Inputs,
};

/// The exit code of a container whose end nobody saw: that of SIGKILL.
pub const LOST_EXIT_CODE: i32 = 137;
/// The reason that goes with it.
pub const STATUS_UNKNOWN: &str = "ContainerStatusUnknown";

/// Everything that [`super::state::step`] looks at beside the pod's spec.
#[derive(Clone, Debug)]
pub struct Observed {
    /// When the node part first saw the pod.
    pub first_seen: Timestamp,
    /// Since when the API has no such pod any more; `None` while it has.
    pub gone_since: Option<Timestamp>,
    /// The API was told to forget the pod, and agreed.
    pub delete_confirmed: bool,
    /// The status that was reported last.
    pub reported: PodStatus,
    /// Whether pods can have a network.
    pub network: NetworkState,
    /// The pod's sandboxes, oldest first. Only the last can be in use.
    pub sandboxes: Vec<Sandbox>,
    /// How many sandboxes of the pod there were before these.
    pub sandboxes_before: u32,
    /// The containers of the last sandbox.
    pub containers: Vec<Container>,
    /// The last container of each name that is gone with an earlier sandbox.
    pub past: BTreeMap<String, Container>,
    /// The images that were asked for.
    pub images: Vec<(ImageRequest, Pull)>,
    /// Results of probes, by container id.
    pub probes: BTreeMap<String, ProbeResults>,
    /// The containers, by id, whose hook after the start failed: they are to end.
    pub failed_hooks: BTreeSet<String>,
    /// The calls under way. One at a time for each object.
    pub in_flight: BTreeMap<Object, InFlight>,
    /// The objects whose last call failed.
    pub failures: BTreeMap<Object, Failure>,
    /// What the pod refers to; `None` where it has to be looked for before a container is started.
    pub inputs: Option<Inputs>,
    /// When volumes were last brought up to date with their objects.
    pub refreshed_at: Option<Timestamp>,
    /// Volumes of the pod are on the node.
    pub volumes_left: bool,
}

/// What a call is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// The pod's sandboxes.
    Sandbox,
    /// The containers of this name.
    Container(String),
    /// The images.
    Image,
    /// What the pod refers to in the API.
    Inputs,
    /// Its volumes.
    Volumes,
    /// The pod in the API.
    Pod,
}

/// A call under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// One that ends before another is begun.
    Call,
    /// What a container does after its start (`lifecycle.postStart`). Nobody who ends the container
    /// waits for that.
    PostStart,
    /// A container is being stopped.
    Stop {
        /// When it will be killed.
        kill_at: Timestamp,
    },
}

/// A call that failed, and may be tried again after a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How often in a row.
    pub attempts: u32,
    /// When it failed last.
    pub at: Timestamp,
    /// Why, for people.
    pub message: String,
}

/// An image that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pull {
    /// It is there.
    Present(Image),
    /// It could not be had.
    Failed(Failure),
}

/// What a container's probes have found, each after its thresholds; `None` until they were met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeResults {
    /// The startup probe.
    pub startup: Option<bool>,
    /// The readiness probe.
    pub readiness: Option<bool>,
    /// The liveness probe.
    pub liveness: Option<bool>,
}

impl Observed {
    /// The sandbox that is or was in use last.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.last()
    }

    /// The sandbox that runs.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandbox().filter(|sandbox| sandbox.ready)
    }

    /// The last container of this name in the present sandbox.
    pub fn present(&self, name: &str) -> Option<&Container> {
        self.containers
            .iter()
            .filter(|container| container.name == name)
            .max_by_key(|container| container.attempt)
    }

    /// The last container of this name in any sandbox.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.present(name).or_else(|| self.past.get(name))
    }

    /// The container of this name before the last.
    pub fn before_latest(&self, name: &str) -> Option<&Container> {
        let latest = self.latest(name)?;
        self.containers
            .iter()
            .chain(self.past.get(name))
            .filter(|container| container.name == name && container.attempt < latest.attempt)
            .max_by_key(|container| container.attempt)
    }

    /// What was found of an image.
    pub fn pull(&self, request: &ImageRequest) -> Option<&Pull> {
        self.images.iter().find(|(known, _)| known == request).map(|(_, pull)| pull)
    }

    /// The results of a container's probes.
    pub fn probes_of(&self, container: &Container) -> ProbeResults {
        self.probes.get(&container.id).copied().unwrap_or_default()
    }

    /// A call for this object is under way.
    pub fn busy(&self, object: &Object) -> bool {
        self.in_flight.contains_key(object)
    }

    /// The container of this name is not done with its hook after the start.
    pub fn in_post_start(&self, name: &str) -> bool {
        let object = Object::Container(name.to_owned());
        self.in_flight.get(&object) == Some(&InFlight::PostStart)
    }

    /// Keeps what a later sandbox has to know of the containers of this one, which is gone.
    pub fn remember_containers(&mut self, now: Timestamp) {
        let names: Vec<String> = self.containers.iter().map(|one| one.name.clone()).collect();
        for name in names {
            let Some(mut container) = self.present(&name).cloned() else { continue };
            container.state = match container.state {
                ContainerState::Created => continue,
                ContainerState::Running { started_at } => lost(started_at, now),
                exited @ ContainerState::Exited { .. } => exited,
            };
            self.past.insert(name, container);
        }
        self.containers.clear();
    }
}

/// The end of a container that nobody saw: it went with its sandbox.
fn lost(started_at: Timestamp, finished_at: Timestamp) -> ContainerState {
    ContainerState::Exited {
        started_at,
        finished_at,
        exit_code: LOST_EXIT_CODE,
        reason: Some(STATUS_UNKNOWN.to_owned()),
        message: Some("the container was lost with its sandbox".to_owned()),
    }
}

/// The containers that a reported status tells of, for a node part that finds nothing else: the
/// machine was restarted, and with it all its pods.
pub fn past_of(status: &PodStatus) -> BTreeMap<String, Container> {
    let statuses = status.init_container_statuses.iter().chain(&status.container_statuses);
    statuses.flatten().filter_map(|status| Some((status.name.clone(), past(status)?))).collect()
}

/// The results of probes that a reported status speaks of, for a node part that starts anew: a
/// container that was ready stays so until its probe says otherwise.
pub fn probes_of(status: &PodStatus) -> BTreeMap<String, ProbeResults> {
    let known = |status: &ContainerStatus| {
        let results = ProbeResults {
            startup: status.started.filter(|&started| started),
            readiness: status.ready.then_some(true),
            liveness: None,
        };
        Some((bare_id(status)?, results))
    };
    let statuses = status.init_container_statuses.iter().chain(&status.container_statuses);
    statuses.flatten().filter_map(known).collect()
}

/// The container's id as the runtime knows it, without the runtime's name.
fn bare_id(status: &ContainerStatus) -> Option<String> {
    let id = status.container_id.as_deref()?;
    Some(id.rsplit_once("://").map_or(id, |(_, id)| id).to_owned())
}

fn past(status: &ContainerStatus) -> Option<Container> {
    Some(Container {
        id: bare_id(status)?,
        sandbox: String::new(),
        name: status.name.clone(),
        attempt: u32::try_from(status.restart_count).ok()?,
        image: status.image.clone(),
        backoff: Duration::ZERO,
        state: past_state(status.state.as_ref()?, status.last_state.as_ref())?,
    })
}

/// An end that was reported, or one that must have come.
fn past_state(state: &ApiState, last: Option<&ApiState>) -> Option<ContainerState> {
    let ended = state.terminated.as_ref();
    let ended = ended.or_else(|| last.and_then(|last| last.terminated.as_ref()));
    if let (Some(ended), None) = (ended, &state.running) {
        let time = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
            time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
        };
        return Some(ContainerState::Exited {
            started_at: time(&ended.started_at),
            finished_at: time(&ended.finished_at),
            exit_code: ended.exit_code,
            reason: ended.reason.clone(),
            message: ended.message.clone(),
        });
    }
    let started_at = state.running.as_ref()?.started_at.as_ref()?.0;
    Some(lost(started_at, started_at))
}
