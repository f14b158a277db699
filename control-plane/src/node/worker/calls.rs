//! The calls that a worker has under way.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::PodStatus;
use tokio::task::{AbortHandle, JoinSet};

use super::{
    super::{
        pod::{
            observed::{InFlight, Object, Observed},
            state::Action,
        },
        report::{self, Written},
        runtime::{ImageError, ImageRequest, PodIdentity, Runtime, RuntimeError, process::chain},
    },
    Shared,
};

/// For how long a call of the API may take.
const API_TIMEOUT: Duration = Duration::from_secs(30);

/// A call has ended.
pub(super) enum Done {
    /// A call of the runtime.
    Call {
        /// What it was about.
        object: Object,
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
        /// Its id, or why it cannot be had.
        outcome: Result<String, ImageError>,
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
}

impl Calls {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), stops: BTreeMap::new() }
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
        let task = self.tasks.spawn(perform(shared, pod, object.clone(), action));
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
        Action::StartContainer { sandbox, config } => {
            match runtime.create_container(&sandbox, &config).await {
                Ok(id) => runtime.start_container(&sandbox, &id).await,
                Err(error) => Err(error),
            }
        }
        Action::StopContainer { sandbox, id, grace, .. } => {
            runtime.stop_container(&sandbox, &id, grace).await
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
