//! The pod state machine: one pure step from what a pod wants and what is seen of it to what to
//! do now and what to report. It remembers nothing: the same input gives the same answer, so a
//! node part that starts anew goes on where the one before it was.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{Pod, PodStatus, Probe},
    jiff::Timestamp,
};

use super::{
    super::runtime::{ContainerConfig, ImageRequest, SandboxConfig},
    decide,
    facts::NodeFacts,
    inputs::Wanted,
    observed::{Object, Observed},
    status,
    volumes::VolumePlan,
};

/// What follows from a look at a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What to do now. The order does not matter.
    pub actions: Vec<Action>,
    /// What to report.
    pub status: PodStatus,
    /// When to look again, even if nothing happens before.
    pub wake: Option<Timestamp>,
    /// The probes that have to run now; all others have to stop.
    pub probes: Vec<ProbeTarget>,
    /// Nothing of the pod is left here, and the API knows.
    pub over: bool,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make an image available.
    PullImage(ImageRequest),
    /// Make the pod's sandbox.
    RunSandbox(Box<SandboxConfig>),
    /// End everything in the sandbox and free its network, but keep what is known of it.
    StopSandbox {
        /// The sandbox.
        id: String,
    },
    /// Stop a sandbox and forget it.
    RemoveSandbox {
        /// The sandbox.
        id: String,
    },
    /// Create and start a container.
    StartContainer {
        /// The sandbox.
        sandbox: String,
        /// What to start.
        config: Box<ContainerConfig>,
        /// What it mounts has to be there before.
        volumes: Vec<VolumePlan>,
        /// What to do when it runs (`lifecycle.postStart`), beside what follows.
        post_start: Option<Box<Hook>>,
    },
    /// Ask a container to end, and kill it when the time is over.
    StopContainer {
        /// The sandbox.
        sandbox: String,
        /// The container.
        id: String,
        /// Its name.
        name: String,
        /// For how long it may go on.
        grace: Duration,
        /// When that will be over.
        kill_at: Timestamp,
        /// What to do before it is asked (`lifecycle.preStop`), within the same time.
        pre_stop: Option<Box<Hook>>,
    },
    /// Forget a container that ended long ago.
    RemoveContainer {
        /// The sandbox.
        sandbox: String,
        /// The container.
        id: String,
        /// Its name.
        name: String,
    },
    /// Look for what the pod refers to in the API.
    FetchInputs(Box<Wanted>),
    /// Bring the volumes of running containers up to date.
    RefreshVolumes(Vec<VolumePlan>),
    /// Remove the pod's volumes.
    RemoveVolumes,
    /// Tell the API that nothing is left: delete with grace 0, after the status was written.
    DeletePod,
}

impl Action {
    /// What it is about.
    pub fn object(&self) -> Object {
        match self {
            Self::PullImage(_) => Object::Image,
            Self::RunSandbox(_) | Self::StopSandbox { .. } | Self::RemoveSandbox { .. } => {
                Object::Sandbox
            }
            Self::StartContainer { config, .. } => Object::Container(config.name.clone()),
            Self::StopContainer { name, .. } | Self::RemoveContainer { name, .. } => {
                Object::Container(name.clone())
            }
            Self::FetchInputs(_) => Object::Inputs,
            Self::RefreshVolumes(_) | Self::RemoveVolumes => Object::Volumes,
            Self::DeletePod => Object::Pod,
        }
    }

    /// What is done, in a word, for logs: the whole may hold secrets of the pod's environment.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::PullImage(_) => "pull image",
            Self::RunSandbox(_) => "run sandbox",
            Self::StopSandbox { .. } => "stop sandbox",
            Self::RemoveSandbox { .. } => "remove sandbox",
            Self::StartContainer { .. } => "start container",
            Self::StopContainer { .. } => "stop container",
            Self::RemoveContainer { .. } => "remove container",
            Self::FetchInputs(_) => "fetch inputs",
            Self::RefreshVolumes(_) => "refresh volumes",
            Self::RemoveVolumes => "remove volumes",
            Self::DeletePod => "delete pod",
        }
    }
}

/// A probe that has to run.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeTarget {
    /// Id of the container.
    pub container: String,
    /// Its sandbox.
    pub sandbox: String,
    /// Which probe.
    pub kind: ProbeKind,
    /// What it does.
    pub probe: Probe,
    /// Where to connect to.
    pub address: Option<std::net::IpAddr>,
    /// The container's ports by name.
    pub ports: BTreeMap<String, u16>,
    /// When the container was started.
    pub started_at: Timestamp,
}

/// What to do at the beginning or the end of a container.
#[derive(Clone, Debug, PartialEq)]
pub enum Hook {
    /// As a probe does it, once. The container of a hook after the start is known only then.
    Ask(Box<ProbeTarget>),
    /// Wait.
    Sleep(Duration),
}

/// Which of a container's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Has it come up? Nothing else is asked before.
    Startup,
    /// May it be sent traffic?
    Readiness,
    /// Has it to be restarted?
    Liveness,
}

/// One step.
pub fn step(pod: &Pod, node: &NodeFacts, seen: &Observed, now: Timestamp) -> Step {
    let decision = decide::decide(pod, node, seen, now);
    let status = status::build(pod, node, seen, &decision, now);
    Step {
        actions: decision.actions,
        status,
        wake: decision.wake,
        probes: decision.probes,
        over: decision.over,
    }
}

#[cfg(test)]
mod tests;
