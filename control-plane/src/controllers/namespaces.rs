//! Empties namespaces that are being deleted, pods first, says in their status what is left, and
//! lets them go when nothing is.

mod remaining;

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PropagationPolicy};
use kube::core::{ApiResource, DynamicObject};
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Api, Client, ResourceExt};

use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::queue::Queue;
use super::world::{Kind, KindVisitor, World};
use super::write::{Deletion, Outcome, Target, Write};

/// The finalizer by which the API server keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";
/// When to look again for content whose end no watch tells us of.
const AGAIN: Duration = Duration::from_secs(1);
/// The most objects of a kind that one look deletes.
const PAGE: u32 = 500;

/// The controller of namespaces.
pub(crate) struct Namespaces {
    world: Arc<World>,
    client: Client,
}

impl Namespaces {
    /// A controller that reads namespaces from `world`, and their content through `client`.
    pub(crate) fn new(world: Arc<World>, client: Client) -> Self {
        Self { world, client }
    }

    /// Has a namespace looked at when it changes, and a leaving one when its content goes.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let namespaces = Arc::clone(queue);
        world.subscribe::<Namespace>(move |_, change| {
            let leaving = change.new.iter().filter(|namespace| is_leaving(namespace));
            namespaces.add_all(leaving.map(|namespace| Key::of(&**namespace)));
        });
        World::for_each_kind(&mut ContentSubscriber { world, queue });
    }

    /// The content of a namespace, of all kinds that can be listed and deleted.
    async fn content(&self, namespace: &str) -> Result<Vec<Found>, kube::Error> {
        let discovery = Discovery::new(self.client.clone()).run().await?;
        let resources =
            discovery.groups().flat_map(kube::discovery::ApiGroup::recommended_resources);
        let listed = resources
            .filter(|(_, can)| {
                can.scope == Scope::Namespaced
                    && can.supports_operation(verbs::LIST)
                    && can.supports_operation(verbs::DELETE)
            })
            .map(|(resource, _)| self.list(namespace, resource));
        Ok(try_join_all(listed).await?.into_iter().flatten().collect())
    }

    async fn list(
        &self,
        namespace: &str,
        resource: ApiResource,
    ) -> Result<Vec<Found>, kube::Error> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource);
        let found = api.list(&ListParams::default().limit(PAGE)).await?;
        let found = found.items.into_iter().map(|object| Found {
            target: Target {
                resource: resource.clone(),
                key: Key::new(namespace, object.name_any()),
            },
            uid: object.uid().unwrap_or_default(),
            leaving: object.metadata.deletion_timestamp.is_some(),
            finalizers: object.metadata.finalizers.unwrap_or_default(),
        });
        Ok(found.collect())
    }
}

struct ContentSubscriber<'a> {
    world: &'a mut World,
    queue: &'a Arc<Queue<Key>>,
}

impl KindVisitor for ContentSubscriber<'_> {
    fn visit<K: Kind>(&mut self) {
        let namespaces = Arc::clone(self.queue);
        self.world.subscribe::<K>(move |world, change| {
            let removed = change.old.as_ref().filter(|_| change.is_removal());
            let Some(namespace) = removed.and_then(|object| object.namespace()) else { return };
            let key = Key::new("", namespace);
            if world.get::<Namespace>(&key).is_some_and(|namespace| is_leaving(&namespace)) {
                namespaces.add(key);
            }
        });
    }
}

impl Controller for Namespaces {
    type Key = Key;
    const NAME: &'static str = "namespace";
    const WORKERS: usize = 2;

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let namespace = self.world.get::<Namespace>(key);
        let Some(namespace) = namespace.filter(|namespace| is_leaving(namespace)) else {
            return Ok(Outcome::default());
        };
        let content = self.content(&key.name).await.map_err(|source| LookError::Read {
            what: format!("the content of namespace {}", key.name),
            source: Box::new(source),
        })?;
        Ok(reconcile(&namespace, &content, Timestamp::now()))
    }
}

/// An object in a namespace.
struct Found {
    target: Target,
    uid: String,
    leaving: bool,
    /// What it waits for.
    finalizers: Vec<String>,
}

impl Found {
    fn is_pod(&self) -> bool {
        self.target.resource.group.is_empty() && self.target.resource.kind == "Pod"
    }
}

fn is_leaving(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
}

/// Deletes what is there; when nothing is, takes the finalizer off. As long as there are pods
/// nothing else goes: they may need it to end well, and policies hold for them to the last.
fn reconcile(namespace: &Namespace, content: &[Found], now: Timestamp) -> Outcome {
    if !content.is_empty() {
        let pods = content.iter().any(Found::is_pod);
        let turn = content.iter().filter(|found| found.is_pod() == pods);
        let staying = turn.filter(|found| !found.leaving);
        let deletions: Vec<Write> = staying
            .map(|found| {
                Write::Delete(Deletion {
                    target: found.target.clone(),
                    uid: found.uid.clone(),
                    grace_period_seconds: None,
                    // Whatever is usual for the kind: nothing stays here.
                    propagation: Some(PropagationPolicy::Background),
                })
            })
            .collect();
        let deletions = (!deletions.is_empty()).then_some(Write::Together(deletions));
        let told = remaining::tell(namespace, content, now);
        let writes = told.into_iter().chain(deletions).collect();
        return Outcome { writes, again_after: Some(AGAIN) };
    }
    let told = remaining::tell(namespace, content, now);
    let mut namespace = namespace.clone();
    let finalizers = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut());
    match finalizers {
        Some(finalizers) if finalizers.iter().any(|finalizer| finalizer == FINALIZER) => {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
            vec![Write::ReplaceSubresource("finalize", namespace.into())].into()
        }
        // Somebody else's finalizer holds it, or it is as good as gone.
        _ => told.into_iter().collect::<Vec<_>>().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::write::Object;
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use serde_json::json;

    fn namespace() -> Namespace {
        serde_json::from_value(json!({
            "metadata": {"name": "ns", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"finalizers": ["kubernetes", "example.com/other"]},
        }))
        .unwrap()
    }

    fn found(name: &str, leaving: bool) -> Found {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.name = Some(name.into());
        let finalizers = if leaving { vec!["example.com/hold".to_owned()] } else { vec![] };
        Found { target: Target::of(&pod), uid: name.into(), leaving, finalizers }
    }

    fn map(name: &str) -> Found {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".into());
        map.metadata.name = Some(name.into());
        Found { target: Target::of(&map), uid: name.into(), leaving: false, finalizers: vec![] }
    }

    fn look(namespace: &Namespace, content: &[Found]) -> Outcome {
        reconcile(namespace, content, Timestamp::UNIX_EPOCH)
    }

    /// The names of what is deleted.
    fn deleted(outcome: &Outcome) -> Vec<&str> {
        let mut names = Vec::new();
        for write in &outcome.writes {
            let Write::Together(deletions) = write else { continue };
            for deletion in deletions {
                let Write::Delete(deletion) = deletion else { panic!("{outcome:?}") };
                names.push(deletion.target.key.name.as_str());
            }
        }
        names
    }

    #[test]
    fn inv_60_content_goes_before_the_namespace() {
        let outcome = look(&namespace(), &[found("a", false), found("b", true)]);
        assert_eq!(deleted(&outcome), ["a"]);
        assert!(outcome.again_after.is_some());
        let outcome = look(&namespace(), &[found("b", true)]);
        assert!(deleted(&outcome).is_empty() && outcome.again_after.is_some());
    }

    #[test]
    fn namespace_deletion_should_delete_pod_first() {
        let content = [map("m"), found("a", false), found("b", true)];
        assert_eq!(deleted(&look(&namespace(), &content)), ["a"]);
        assert!(deleted(&look(&namespace(), &[map("m"), found("b", true)])).is_empty());
        assert_eq!(deleted(&look(&namespace(), &[map("m")])), ["m"]);
    }

    #[test]
    fn the_status_says_what_is_left() {
        let conditions = |outcome: &Outcome| -> Vec<(String, String, String)> {
            let Some(Write::StrategicPatch { subresource: Some("status"), patch, .. }) =
                outcome.writes.first()
            else {
                panic!("{outcome:?}")
            };
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            let all = patch["status"]["conditions"].as_array().unwrap().iter();
            all.map(|one| (text(&one["type"]), text(&one["status"]), text(&one["message"])))
                .collect()
        };
        let content = [map("m"), map("n"), found("b", true)];
        let told = conditions(&look(&namespace(), &content));
        let of = |name: &str| told.iter().find(|(kind, ..)| kind == name).unwrap().clone();
        assert_eq!(told.len(), 5);
        let (_, status, message) = of("NamespaceContentRemaining");
        let expected = "Some resources are remaining: configmaps. has 2 resource instances, pods. has 1 resource instances";
        assert_eq!((status.as_str(), message.as_str()), ("True", expected));
        let (_, status, message) = of("NamespaceFinalizersRemaining");
        let expected = "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances";
        assert_eq!((status.as_str(), message.as_str()), ("True", expected));
        for other in [
            "NamespaceDeletionDiscoveryFailure",
            "NamespaceDeletionGroupVersionParsingFailure",
            "NamespaceDeletionContentFailure",
        ] {
            assert_eq!(of(other).1, "False");
        }
        // What it says already is not said again.
        let mut namespace = namespace();
        let Some(Write::StrategicPatch { patch, .. }) =
            look(&namespace, &content).writes.into_iter().next()
        else {
            panic!("nothing was told")
        };
        namespace.status = serde_json::from_value(patch["status"].clone()).unwrap();
        assert_eq!(deleted(&look(&namespace, &[found("b", true), map("m"), map("n")])), [""; 0]);
        assert!(look(&namespace, &content).writes.is_empty());
    }

    #[test]
    fn inv_60_an_empty_namespace_loses_our_finalizer_only() {
        let outcome = look(&namespace(), &[]);
        let [Write::ReplaceSubresource("finalize", Object::Namespace(written))] =
            &outcome.writes[..]
        else {
            panic!("{outcome:?}")
        };
        let finalizers = written.spec.as_ref().unwrap().finalizers.as_deref();
        assert_eq!(finalizers, Some(&["example.com/other".to_owned()][..]));
        // What holds it now is none of our business; that nothing is left in it is.
        let [Write::StrategicPatch { patch, .. }] = &look(written, &[]).writes[..] else {
            panic!("nothing was told")
        };
        assert!(
            patch["status"]["conditions"]
                .as_array()
                .unwrap()
                .iter()
                .all(|one| one["status"] == "False")
        );
    }
}
