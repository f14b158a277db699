//! The calls that a worker has under way.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::PodStatus;
use tokio::{
    sync::Mutex,
    task::{AbortHandle, JoinSet},
};

use super::{
    super::{
        inputs,
        pod::{
            inputs::Inputs,
            observed::{InFlight, Object, Observed},
            state::{Action, Hook},
            volumes::VolumePlan,
        },
        report::{self, Written},
        runtime::{
            ContainerConfig, Image, ImageError, ImageRequest, PodIdentity, Runtime, RuntimeError,
            process::chain,
        },
        volumes::VolumeError,
    },
    Shared, hook,
};

/// For how long a call of the API may take.
const API_TIMEOUT: Duration = Duration::from_secs(30);

/// For how long a hook after the start may take.
const POST_START_MAX: Duration = Duration::from_mins(5);
/// What a container is given to end whose hook after the start failed.
const FAILED_GRACE: Duration = Duration::from_secs(30);
/// What a container is given to end at least, after its hook, as by the kubelet.
const AFTER_HOOK_MIN: Duration = Duration::from_secs(2);

/// A call has ended.
pub(super) enum Done {
    /// A call of the runtime.
    Call {
        /// What it was about.
        object: Object,
        /// Success, or why not.
        outcome: Result<(), String>,
    },
    /// A container was started, or not.
    Started {
        /// Which.
        object: Object,
        /// Success, or why not.
        outcome: Result<(), String>,
    },
    /// What the pod refers to was looked for.
    Fetched {
        /// What was found, or why nobody knows.
        outcome: Result<Inputs, String>,
    },
    /// Volumes were brought up to date, or not.
    Refreshed {
        /// Success, or why not.
        outcome: Result<(), String>,
    },
    /// A sandbox was removed, or not.
    SandboxRemoved {
        /// Success, or why not.
        outcome: Result<(), String>,
    },
    /// An image was asked for.
    Pulled {
        /// Which.
        request: ImageRequest,
        /// What it is, or why it cannot be had.
        outcome: Result<Image, ImageError>,
    },
    /// The API was told that nothing is left of the pod.
    Deleted {
        /// Success, or why not.
        outcome: Result<(), String>,
    },
    /// The status was written.
    Written {
        /// What became of it.
        outcome: Result<Written, kube::Error>,
    },
}

/// The calls; at most one for each object, a write, and the stops that were replaced.
pub(super) struct Calls {
    tasks: JoinSet<Done>,
    stops: BTreeMap<Object, AbortHandle>,
    /// Held while volumes are worked on: containers that start at once may share one.
    volumes: Arc<Mutex<()>>,
}

impl Calls {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), stops: BTreeMap::new(), volumes: Arc::default() }
    }

    /// The next that ends; never, where there is none.
    pub(super) async fn next(&mut self) -> Done {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(done)) => return done,
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                None => std::future::pending().await,
            }
        }
    }

    /// Begins to do what was decided.
    pub(super) fn begin<R: Runtime>(
        &mut self,
        shared: &Arc<Shared<R>>,
        pod: &PodIdentity,
        seen: &mut Observed,
        action: Action,
    ) {
        let (object, kill_at) = match &action {
            Action::PullImage(_) => (Object::Image, None),
            Action::RunSandbox(_) | Action::StopSandbox { .. } | Action::RemoveSandbox { .. } => {
                (Object::Sandbox, None)
            }
            Action::StartContainer { config, .. } => (Object::Container(config.name.clone()), None),
            Action::StopContainer { name, kill_at, .. } => {
                (Object::Container(name.clone()), Some(*kill_at))
            }
            Action::RemoveContainer { name, .. } => (Object::Container(name.clone()), None),
            Action::FetchInputs(_) => (Object::Inputs, None),
            Action::RefreshVolumes(_) | Action::RemoveVolumes => (Object::Volumes, None),
            Action::DeletePod => (Object::Pod, None),
        };
        // One image is pulled, one old container is forgotten at a time; the rest comes up again.
        if seen.busy(&object) && kill_at.is_none() {
            return;
        }
        let (name, namespace, verb) = (&pod.name, &pod.namespace, action.verb());
        tracing::debug!(pod = name, namespace, ?object, verb, "call begun");
        seen.in_flight.insert(object.clone(), InFlight { kill_at });
        let (shared, pod) = (Arc::clone(shared), pod.clone());
        let volumes = Arc::clone(&self.volumes);
        let task = self.tasks.spawn(perform(shared, pod, volumes, object.clone(), action));
        if kill_at.is_some()
            && let Some(longer) = self.stops.insert(object, task)
        {
            longer.abort();
        }
    }

    /// Begins to write a status.
    pub(super) fn write<R: Runtime>(
        &mut self,
        shared: &Arc<Shared<R>>,
        pod: &PodIdentity,
        version: Option<String>,
        status: PodStatus,
    ) {
        let (client, pod) = (shared.client.clone(), pod.clone());
        self.tasks.spawn(async move {
            let write = report::write(client, &pod, version.as_deref(), &status);
            let outcome = match tokio::time::timeout(API_TIMEOUT, write).await {
                Ok(outcome) => outcome,
                Err(_elapsed) => Err(kube::Error::Service("no answer in time".into())),
            };
            Done::Written { outcome }
        });
    }
}

async fn perform<R: Runtime>(
    shared: Arc<Shared<R>>,
    pod: PodIdentity,
    working: Arc<Mutex<()>>,
    object: Object,
    action: Action,
) -> Done {
    let runtime = &shared.runtime;
    let text = |error: RuntimeError| chain(&error);
    let outcome = match action {
        Action::PullImage(request) => {
            let outcome = runtime.pull_image(&request).await;
            return Done::Pulled { request, outcome };
        }
        Action::RunSandbox(config) => {
            let _slot = shared.sandbox_slots.acquire().await;
            runtime.run_sandbox(&config).await.map(drop)
        }
        Action::StopSandbox { id } => runtime.stop_sandbox(&id).await,
        Action::RemoveSandbox { id } => {
            let outcome = runtime.remove_sandbox(&id).await.map_err(text);
            return Done::SandboxRemoved { outcome };
        }
        Action::StartContainer { sandbox, config, volumes, post_start } => {
            let outcome = match make_volumes(&shared, &pod, &working, volumes).await {
                Ok(()) => {
                    start(runtime.as_ref(), &sandbox, &config, post_start).await.map_err(text)
                }
                Err(message) => Err(message),
            };
            return Done::Started { object, outcome };
        }
        Action::StopContainer { sandbox, id, grace, pre_stop, .. } => {
            stop(runtime.as_ref(), &sandbox, &id, grace, pre_stop).await
        }
        Action::FetchInputs(wanted) => {
            let fetch = inputs::fetch(shared.client.clone(), &pod, &wanted);
            let outcome = match tokio::time::timeout(API_TIMEOUT, fetch).await {
                Ok(outcome) => outcome,
                Err(_elapsed) => Err("the API server did not answer in time".to_owned()),
            };
            return Done::Fetched { outcome };
        }
        Action::RefreshVolumes(plans) => {
            let outcome = make_volumes(&shared, &pod, &working, plans).await;
            return Done::Refreshed { outcome };
        }
        Action::RemoveVolumes => {
            let volumes = shared.volumes_of(&pod.uid);
            let outcome = blocking(move || volumes.remove()).await;
            return Done::Call { object, outcome };
        }
        Action::RemoveContainer { sandbox, id, .. } => {
            runtime.remove_container(&sandbox, &id).await
        }
        Action::DeletePod => {
            let confirm = report::confirm_deletion(shared.client.clone(), &pod);
            let outcome = match tokio::time::timeout(API_TIMEOUT, confirm).await {
                Ok(outcome) => outcome.map_err(|error| error.to_string()),
                Err(_elapsed) => Err("no answer in time".to_owned()),
            };
            return Done::Deleted { outcome };
        }
    };
    Done::Call { object, outcome: outcome.map_err(text) }
}

/// Makes volumes, or brings them up to date.
async fn make_volumes<R: Runtime>(
    shared: &Arc<Shared<R>>,
    pod: &PodIdentity,
    working: &Mutex<()>,
    plans: Vec<VolumePlan>,
) -> Result<(), String> {
    if plans.is_empty() {
        return Ok(());
    }
    let _alone = working.lock().await;
    let volumes = shared.volumes_of(&pod.uid);
    blocking(move || volumes.make(&plans)).await
}

/// Work on files, beside what must not wait for a disk.
async fn blocking(
    work: impl FnOnce() -> Result<(), VolumeError> + Send + 'static,
) -> Result<(), String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(|error| chain(&error)),
        Err(error) => Err(error.to_string()),
    }
}

/// Makes and starts a container, and does what it has to do then. Where that fails, the container
/// is ended, and is started again as after any end.
async fn start<R: Runtime>(
    runtime: &R,
    sandbox: &str,
    config: &ContainerConfig,
    post_start: Option<Box<Hook>>,
) -> Result<(), RuntimeError> {
    let id = runtime.create_container(sandbox, config).await?;
    runtime.start_container(sandbox, &id).await?;
    let Some(hook) = post_start else { return Ok(()) };
    if let Err(reason) = hook::run(runtime, &hook, &id, POST_START_MAX).await {
        tracing::warn!(container = config.name, reason, "postStart hook failed; ending it");
        runtime.stop_container(sandbox, &id, FAILED_GRACE).await?;
    }
    Ok(())
}

/// Does what a container has to do before its end, and ends it, both within `grace`.
async fn stop<R: Runtime>(
    runtime: &R,
    sandbox: &str,
    id: &str,
    grace: Duration,
    pre_stop: Option<Box<Hook>>,
) -> Result<(), RuntimeError> {
    let begun = tokio::time::Instant::now();
    let Some(hook) = pre_stop.filter(|_| !grace.is_zero()) else {
        return runtime.stop_container(sandbox, id, grace).await;
    };
    if let Err(reason) = hook::run(runtime, &hook, id, grace).await {
        tracing::warn!(container = id, reason, "preStop hook failed");
    }
    let left = grace.saturating_sub(begun.elapsed()).max(AFTER_HOOK_MIN);
    runtime.stop_container(sandbox, id, left).await
}
