//! Writing a pod's status to the API, and comparing it with what is there.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Map, Value, json};

use super::runtime::PodIdentity;

/// The fields of a pod's status that are the node part's to write.
const OWNED: &[&str] = &[
    "phase",
    "conditions",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "observedGeneration",
];

/// What became of a status that was to be written.
pub(super) enum Written {
    /// It was written; the pod as it is now.
    Now(Box<Pod>),
    /// Somebody else was first; the pod as it is now. Decide again and write again.
    Stale(Box<Pod>),
    /// There is no such pod any more.
    Gone,
}

/// Writes the owned fields, unless the pod has changed since `resource_version`.
pub(super) async fn write(
    client: Client,
    pod: &PodIdentity,
    resource_version: Option<&str>,
    status: &PodStatus,
) -> Result<Written, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let body = json!({
        "metadata": {"uid": pod.uid, "resourceVersion": resource_version},
        "status": owned(status),
    });
    match api.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(body)).await {
        Ok(pod) => Ok(Written::Now(Box::new(pod))),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Written::Gone),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            match api.get_opt(&pod.name).await? {
                Some(found) if found.metadata.uid.as_deref() == Some(&pod.uid) => {
                    Ok(Written::Stale(Box::new(found)))
                }
                _ => Ok(Written::Gone),
            }
        }
        Err(error) => Err(error),
    }
}

/// Tells the API that nothing is left of a deleted pod.
pub(super) async fn confirm_deletion(client: Client, pod: &PodIdentity) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let uid = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
    let now = DeleteParams::default().grace_period(0).preconditions(uid);
    match api.delete(&pod.name, &now).await {
        // Gone, or its name belongs to another pod by now.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Every owned field, null where it is unset: a merge patch removes what is not there any more.
fn owned(status: &PodStatus) -> Value {
    let mut all = match serde_json::to_value(status) {
        Ok(Value::Object(all)) => all,
        _ => Map::new(),
    };
    let fields =
        OWNED.iter().map(|&name| (name.to_owned(), all.remove(name).unwrap_or(Value::Null)));
    Value::Object(fields.collect())
}

/// The owned fields in a form that is equal exactly where nothing has to be written: with the
/// API's resolution of time, and without what may as well be missing.
pub(super) fn essence(status: &PodStatus) -> Value {
    without_empty(owned(status)).unwrap_or(Value::Null)
}

fn without_empty(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) => {
            let kept =
                map.into_iter().filter_map(|(key, value)| Some((key, without_empty(value)?)));
            let kept: Map<String, Value> = kept.collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        Value::Array(list) => {
            let kept: Vec<Value> = list.into_iter().filter_map(without_empty).collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn fields_of_others_are_not_written_and_missing_ones_are_removed() {
        let status = status(json!({"phase": "Running", "qosClass": "Burstable",
            "nominatedNodeName": "n"}));
        let owned = owned(&status);
        assert_eq!(owned["phase"], "Running");
        assert_eq!(owned.get("qosClass"), None);
        assert_eq!(owned.get("nominatedNodeName"), None);
        assert_eq!(owned["podIP"], Value::Null);
        assert_eq!(owned.as_object().unwrap().len(), OWNED.len());
    }

    #[test]
    fn what_reads_the_same_is_the_same() {
        let sent = status(json!({"phase": "Running", "startTime": "2026-11-20T17:00:00Z",
            "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true,
                "restartCount": 0, "lastState": {}}]}));
        let mut sent_finer = sent.clone();
        let start = sent_finer.start_time.as_mut().unwrap();
        start.0 = start.0.checked_add(std::time::Duration::from_millis(7)).unwrap();
        let mut read = sent.clone();
        read.qos_class = Some("BestEffort".into());
        read.container_statuses.as_mut().unwrap()[0].last_state = None;
        assert_eq!(essence(&sent), essence(&sent_finer));
        assert_eq!(essence(&sent), essence(&read));
        read.phase = Some("Pending".into());
        assert_ne!(essence(&sent), essence(&read));
    }
}
