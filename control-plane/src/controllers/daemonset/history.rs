//! The revisions of a daemon set: the templates that it had, by which `kubectl rollout history` and
//! `undo` go.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::Seen;
use crate::controllers::engine::Failure;
use crate::controllers::ownership;
use crate::controllers::template_hash::hash;
use crate::controllers::write::Write;

/// Label of revisions and of pods that tells templates apart.
pub(super) const HASH_LABEL: &str = "controller-revision-hash";
/// Annotation with the generation of the template, which the API server counts.
pub(super) const GENERATION: &str = "deprecated.daemonset.template.generation";

/// The revisions of a daemon set.
pub(super) struct History<'a> {
    /// That of the present template.
    pub(super) current: Option<&'a Arc<ControllerRevision>>,
    /// All others, oldest first.
    old: Vec<&'a Arc<ControllerRevision>>,
}

impl<'a> History<'a> {
    /// Sorts the revisions that the set controls.
    pub(super) fn new(set: &DaemonSet, revisions: &'a [Arc<ControllerRevision>]) -> Self {
        let mut mine: Vec<&Arc<ControllerRevision>> = revisions
            .iter()
            .filter(|one| ownership::is_controlled_by(&one.metadata, &set.metadata))
            .collect();
        mine.sort_by_key(|one| one.revision);
        let data = data_of(set);
        let is_current = |one: &&Arc<ControllerRevision>| holds(one, &data);
        let current = mine.iter().rposition(is_current).map(|index| mine.remove(index));
        Self { current, old: mine }
    }

    /// The hash by which pods of the present template are known.
    pub(super) fn hash(&self) -> Option<&'a str> {
        let labels = self.current?.metadata.labels.as_ref()?;
        labels.get(HASH_LABEL).map(String::as_str)
    }

    /// What has to be written before pods can be: a revision for the present template, and the
    /// highest number for it, also where it was used before.
    pub(super) fn due(&self, seen: &Seen<'_>) -> Option<Write> {
        let next = self.old.last().map_or(0, |one| one.revision) + 1;
        let Some(current) = self.current else { return Some(begin(seen, next)) };
        if current.revision >= next && current.labels().contains_key(HASH_LABEL) {
            return None;
        }
        let mut current = (**current).clone();
        current.revision = current.revision.max(next);
        if !current.labels().contains_key(HASH_LABEL) {
            let hash = template_hash(seen.set);
            current.labels_mut().insert(HASH_LABEL.to_owned(), hash);
        }
        Some(Write::Replace(current.into()))
    }

    /// Old revisions beyond `revisionHistoryLimit` (by default 10), oldest first, but for those
    /// that pods still are of.
    pub(super) fn surplus(&self, set: &DaemonSet, pods: &[&Arc<Pod>]) -> Vec<Write> {
        let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
        let live: BTreeSet<&String> =
            pods.iter().filter_map(|pod| pod.labels().get(HASH_LABEL)).collect();
        let unused = self.old.iter().filter(|one| {
            one.metadata.deletion_timestamp.is_none()
                && one.labels().get(HASH_LABEL).is_none_or(|hash| !live.contains(hash))
        });
        let surplus = self.old.len().saturating_sub(limit);
        unused.take(surplus).map(|one| Write::delete(&***one)).collect()
    }
}

/// A new revision, or another name for it if its name is taken.
fn begin(seen: &Seen<'_>, number: i64) -> Write {
    let revision = new(seen.set, number);
    let taken = |failure: &Failure| failure.already_exists;
    let name = revision.name_any();
    if seen.failure.is_some_and(taken) && seen.revisions.iter().any(|one| one.name_any() == name) {
        let mut set = seen.set.clone();
        let status = set.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        return Write::replace_status(set);
    }
    Write::Create(revision.into())
}

fn template_hash(set: &DaemonSet) -> String {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    hash(&template, set.status.as_ref().and_then(|status| status.collision_count))
}

/// What a revision keeps: a strategic merge patch that puts the template back as a whole.
fn data_of(set: &DaemonSet) -> Value {
    let template = set.spec.as_ref().map(|spec| &spec.template);
    // The types have no map with keys other than text and no failing serializer.
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

fn holds(revision: &ControllerRevision, data: &Value) -> bool {
    revision.data.as_ref().is_some_and(|held| held.0 == *data)
}

fn new(set: &DaemonSet, number: i64) -> ControllerRevision {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let hash = template_hash(set);
    let mut labels = template.metadata.and_then(|meta| meta.labels).unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", set.name_any())),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: set.metadata.annotations.clone(),
            owner_references: Some(vec![ownership::controller_reference(set)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data_of(set))),
        revision: number,
    }
}
