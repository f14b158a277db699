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
        /// What it has to do now.
        post_start: Option<PostStart>,
    },
    /// A container is done with its hook after the start.
    PostStarted {
        /// Which object it is.
        object: Object,
        /// The container's id.
        container: String,
        /// Success, or why not.
        outcome: Result<(), String>,
    },
    /// What the pod refers to was looked for.
    Fetched {
        /// What was found, and of the rest why nobody knows.
        inputs: Inputs,
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

/// What a container that was started has to do.
pub(super) struct PostStart {
    /// The container's id.
    container: String,
    /// What to do.
    hook: Box<Hook>,
}

/// The calls; at most one for each object, a write, and what a stop has taken the place of.
pub(super) struct Calls {
    tasks: JoinSet<Done>,
    /// What a stop may take the place of: longer stops, and hooks after the start.
    replaceable: BTreeMap<Object, AbortHandle>,
    /// Held while volumes are worked on: containers that start at once may share one.
    volumes: Arc<Mutex<()>>,
}

impl Calls {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), replaceable: BTreeMap::new(), volumes: Arc::default() }
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
        let object = action.object();
        let call = match &action {
            Action::StopContainer { kill_at, .. } => InFlight::Stop { kill_at: *kill_at },
            _ => InFlight::Call,
        };
        // One image is pulled, one old container is forgotten at a time; the rest comes up again.
        if seen.busy(&object) && call == InFlight::Call {
            return;
        }
        let (name, namespace, verb) = (&pod.name, &pod.namespace, action.verb());
        tracing::debug!(pod = name, namespace, ?object, verb, "call begun");
        seen.in_flight.insert(object.clone(), call);
        let (shared, pod) = (Arc::clone(shared), pod.clone());
        let volumes = Arc::clone(&self.volumes);
        let task = self.tasks.spawn(perform(shared, pod, volumes, object.clone(), action));
        if call != InFlight::Call {
            self.replace(object, task);
        }
    }

    /// Begins what a container has to do after its start.
    pub(super) fn begin_hook<R: Runtime>(
        &mut self,
        shared: &Arc<Shared<R>>,
        seen: &mut Observed,
        object: Object,
        post_start: PostStart,
    ) {
        seen.in_flight.insert(object.clone(), InFlight::PostStart);
        let (runtime, of) = (Arc::clone(&shared.runtime), object.clone());
        let PostStart { container, hook } = post_start;
        let task = self.tasks.spawn(async move {
            let outcome = hook::run(runtime.as_ref(), &hook, &container, POST_START_MAX).await;
            Done::PostStarted { object: of, container, outcome }
        });
        self.replace(object, task);
    }

    /// Ends what this takes the place of.
    fn replace(&mut self, object: Object, task: AbortHandle) {
        if let Some(replaced) = self.replaceable.insert(object, task) {
            replaced.abort();
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
            let started = match make_volumes(&shared, &pod, &working, volumes).await {
                Ok(()) => start(runtime.as_ref(), &sandbox, &config).await.map_err(text),
                Err(message) => Err(message),
            };
            let (outcome, post_start) = match started {
                Ok(container) => (Ok(()), post_start.map(|hook| PostStart { container, hook })),
                Err(message) => (Err(message), None),
            };
            return Done::Started { object, outcome, post_start };
        }
        Action::StopContainer { sandbox, id, grace, pre_stop, .. } => {
            stop(runtime.as_ref(), &sandbox, &id, grace, pre_stop).await
        }
        Action::FetchInputs(wanted) => {
            let inputs = inputs::fetch(shared.client.clone(), &pod, &wanted).await;
            return Done::Fetched { inputs };
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

/// Makes and starts a container; its id.
async fn start<R: Runtime>(
    runtime: &R,
    sandbox: &str,
    config: &ContainerConfig,
) -> Result<String, RuntimeError> {
    let id = runtime.create_container(sandbox, config).await?;
    runtime.start_container(sandbox, &id).await?;
    Ok(id)
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
