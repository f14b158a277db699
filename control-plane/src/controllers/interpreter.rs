//! Performs [`Write`]s through the API and puts the answers into the caches. Makes no choices.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::core::v1::{Binding, Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject, Request};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use tokio::time::timeout;

use super::key::Key;
use super::world::{Kind, World};
use super::write::{
    Deletion, Object, ObjectVisitor, Owner, Report, Target, Write, slow_start_batches,
};

/// The longest that a write may take. The largest is a slow start of 500 pods.
const WRITE_TIME: Duration = Duration::from_mins(1);

/// A write that did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// Somebody changed the object since it was seen, or it is gone: look again.
    #[error("{verb} {kind} {name}: the object has changed since it was seen")]
    Conflict {
        /// What was tried.
        verb: &'static str,
        /// The kind of the object.
        kind: String,
        /// Namespace and name of the object.
        name: String,
    },
    /// The API server refused, or could not be asked.
    #[error("{verb} {kind} {name}: {source}")]
    Failed {
        /// What was tried.
        verb: &'static str,
        /// The kind of the object.
        kind: String,
        /// Namespace and name of the object.
        name: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time. Whether the write happened will be seen.
    #[error("a write had no answer after {WRITE_TIME:?}")]
    NoAnswer,
}

impl WriteError {
    /// Whether to look again at once: nothing is wrong, only newer.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// Whether a POST found the name taken.
    pub(crate) fn is_already_exists(&self) -> bool {
        matches!(self, Self::Failed { source, .. }
            if matches!(&**source, kube::Error::Api(status) if status.is_already_exists()))
    }

    /// What was tried when it failed: `create`, `delete`, ….
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Conflict { verb, .. } | Self::Failed { verb, .. } => verb,
            Self::NoAnswer => "write",
        }
    }
}

/// Who performs writes.
#[derive(Clone)]
pub(crate) struct Interpreter {
    client: Client,
    world: Arc<World>,
}

impl Interpreter {
    /// An interpreter that writes through `client` and tells `world` what it did.
    pub(crate) fn new(client: Client, world: Arc<World>) -> Self {
        Self { client, world }
    }

    /// Performs writes in order, up to the first failure.
    pub(crate) async fn perform(&self, writes: Vec<Write>) -> Result<(), WriteError> {
        for write in writes {
            let performed = timeout(WRITE_TIME, self.perform_one(write));
            performed.await.unwrap_or(Err(WriteError::NoAnswer))?;
        }
        Ok(())
    }

    fn perform_one(&self, write: Write) -> BoxFuture<'_, Result<(), WriteError>> {
        async move {
            match write {
                Write::Create(object) => self.send("create", &object, Verb::Create).await.map(drop),
                Write::Replace(object) => {
                    self.send("update", &object, Verb::Replace).await.map(drop)
                }
                Write::ReplaceSubresource(name, object) => {
                    self.send("update", &object, Verb::ReplaceSubresource(name)).await.map(drop)
                }
                Write::MergePatch { target, subresource, patch } => {
                    self.patch(target, subresource, Patch::Merge(patch)).await
                }
                Write::StrategicPatch { target, subresource, patch } => {
                    self.patch(target, subresource, Patch::Strategic(patch)).await
                }
                Write::Delete(deletion) => self.delete(deletion).await,
                Write::Tell(report) => {
                    self.tell(report).await;
                    Ok(())
                }
                Write::Bind { target, uid, node } => self.bind(&target, uid, node).await,
                Write::SlowStart(objects, owner) => self.slow_start(&objects, &owner).await,
                Write::Together(writes) => {
                    let writes = writes.into_iter().map(|write| self.perform_one(write));
                    join_all(writes).await.into_iter().collect()
                }
            }
        }
        .boxed()
    }

    async fn slow_start(&self, objects: &[Object], owner: &Owner) -> Result<(), WriteError> {
        let mut rest = objects;
        for size in slow_start_batches(objects.len()) {
            let (batch, later) = rest.split_at(size);
            rest = later;
            let answers = join_all(batch.iter().map(|object| self.create(object, owner))).await;
            answers.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    async fn create(&self, object: &Object, owner: &Owner) -> Result<(), WriteError> {
        let sent = self.send("create", object, Verb::Create).await;
        self.tell(match &sent {
            Ok(name) => owner.made(name),
            Err(WriteError::Failed { source, .. }) => owner.failed(&source.to_string()),
            Err(error) => owner.failed(&error.to_string()),
        })
        .await;
        sent.map(drop)
    }

    /// Sends an object as a whole; gives the name that it has.
    async fn send(
        &self,
        name: &'static str,
        object: &Object,
        verb: Verb,
    ) -> Result<String, WriteError> {
        let target = object.target();
        let sent = object.visit(Sender { interpreter: self, key: &target.key, verb }).await;
        sent.map_err(|error| failure(name, &target, error))
    }

    async fn patch<P: Serialize + std::fmt::Debug>(
        &self,
        target: Target,
        subresource: Option<&'static str>,
        patch: Patch<P>,
    ) -> Result<(), WriteError> {
        let (api, name) = (self.api(&target), &target.key.name);
        let params = PatchParams::default();
        let answer = match subresource {
            None => api.patch(name, &params, &patch).await,
            Some(subresource) => api.patch_subresource(subresource, name, &params, &patch).await,
        };
        self.take("patch", &target, answer)
    }

    async fn delete(&self, deletion: Deletion) -> Result<(), WriteError> {
        let Deletion { target, uid, grace_period_seconds, propagation } = deletion;
        let params = DeleteParams {
            dry_run: false,
            grace_period_seconds,
            propagation_policy: propagation,
            preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
        };
        match self.api(&target).delete(&target.key.name, &params).await {
            Ok(answer) => {
                match answer.left() {
                    // A grace period or a finalizer runs: the object stays for now.
                    Some(object) if stays(&object) => self.world.answered(&target, object),
                    _ => self.world.deleted(&target, &uid),
                }
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                self.world.deleted(&target, &uid);
                Ok(())
            }
            Err(error) => Err(failure("delete", &target, error)),
        }
    }

    /// Tells about an object, to whom it may concern: a failure is not worth another attempt.
    async fn tell(&self, report: Report) {
        let Report { about, warning, reason, message, component } = report;
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let now = Timestamp::now();
        let name = about.name.as_deref().unwrap_or_default();
        let event = Event {
            metadata: ObjectMeta {
                // The same form as client-go's: a name that is free in all likelihood.
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: about,
            type_: Some(if warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            reporting_component: Some(component.to_owned()),
            reporting_instance: Some(String::new()),
            source: Some(EventSource { component: Some(component.to_owned()), host: None }),
            ..Event::default()
        };
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Err(error) = events.create(&PostParams::default(), &event).await {
            tracing::debug!(%error, reason, "event not told");
        }
    }

    async fn bind(&self, target: &Target, uid: String, node: String) -> Result<(), WriteError> {
        let binding = Binding {
            metadata: ObjectMeta {
                namespace: Some(target.key.namespace.clone()),
                name: Some(target.key.name.clone()),
                uid: Some(uid),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node),
                ..ObjectReference::default()
            },
        };
        let (api, name) = (self.api(target), &target.key.name);
        // The answer is a Status; the pod with its node comes by the watch.
        let answer = api
            .create_subresource::<_, serde_json::Value>(
                "binding",
                name,
                &PostParams::default(),
                &binding,
            )
            .await;
        answer.map(drop).map_err(|error| failure("bind", target, error))
    }

    fn take(
        &self,
        verb: &'static str,
        target: &Target,
        answer: Result<DynamicObject, kube::Error>,
    ) -> Result<(), WriteError> {
        match answer {
            Ok(object) => {
                let key = Key::new(
                    object.metadata.namespace.clone().unwrap_or_default(),
                    object.metadata.name.clone().unwrap_or_default(),
                );
                self.world.answered(&Target { resource: target.resource.clone(), key }, object);
                Ok(())
            }
            Err(error) => Err(failure(verb, target, error)),
        }
    }

    fn api(&self, target: &Target) -> Api<DynamicObject> {
        let client = self.client.clone();
        if target.key.namespace.is_empty() {
            Api::all_with(client, &target.resource)
        } else {
            Api::namespaced_with(client, &target.key.namespace, &target.resource)
        }
    }
}

/// Whether a deleted object is still there: in its grace period, or held by finalizers.
fn stays(object: &DynamicObject) -> bool {
    let meta = &object.metadata;
    meta.deletion_timestamp.is_some()
        && (meta.deletion_grace_period_seconds.is_some_and(|seconds| seconds > 0)
            || meta.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty()))
}

/// How an object is sent as a whole.
#[derive(Clone, Copy)]
enum Verb {
    Create,
    Replace,
    ReplaceSubresource(&'static str),
}

/// Sends an object and puts the answer into the world.
struct Sender<'a> {
    interpreter: &'a Interpreter,
    key: &'a Key,
    verb: Verb,
}

impl ObjectVisitor for Sender<'_> {
    type Output = Result<String, kube::Error>;

    async fn visit<K: Kind + Serialize>(self, object: &K) -> Self::Output {
        let resource = ApiResource::erase::<K>(&());
        let target = Target { resource, key: self.key.clone() };
        let url = target.url();
        let request = Request::new(url);
        let params = PostParams::default();
        let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
        let name = &self.key.name;
        let request = match self.verb {
            Verb::Create => request.create(&params, body),
            Verb::Replace => request.replace(name, &params, body),
            Verb::ReplaceSubresource(part) => {
                request.replace_subresource(part, name, &params, body)
            }
        };
        let request = request.map_err(kube::Error::BuildRequest)?;
        let answer: K = self.interpreter.client.request(request).await?;
        let name = answer.name_any();
        self.interpreter.world.written(answer);
        Ok(name)
    }
}

fn failure(verb: &'static str, target: &Target, error: kube::Error) -> WriteError {
    let kind = target.resource.kind.clone();
    let name = target.key.to_string();
    match &error {
        // 404: what was to be changed is gone. 409 is "AlreadyExists" for a POST.
        kube::Error::Api(status)
            if status.is_conflict() || (verb != "create" && status.is_not_found()) =>
        {
            WriteError::Conflict { verb, kind, name }
        }
        _ => WriteError::Failed { verb, kind, name, source: Box::new(error) },
    }
}
