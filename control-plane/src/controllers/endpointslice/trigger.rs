//! When the change happened that a slice shows: the annotation by which the latency of the
//! network programming is measured (the SLI of SIG scalability).

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::controllers::pod_facts;

/// The times that a Service's slices show already.
#[derive(Debug, Default)]
pub(crate) struct Triggers {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

impl Triggers {
    /// The oldest time of a change since the last call; `None` if there is none with a known time.
    pub(crate) fn next(&mut self, service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        let mut oldest = None;
        let mut note = |time: Option<Timestamp>| {
            if let Some(time) = time {
                oldest = Some(oldest.map_or(time, |oldest: Timestamp| oldest.min(time)));
            }
        };
        let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        if self.service != created {
            note(created);
            self.service = created;
        }
        let before = std::mem::take(&mut self.pods);
        for pod in pods {
            let Some(time) = changed_at(pod) else { continue };
            let uid = pod.uid().unwrap_or_default();
            if before.get(&uid) != Some(&time) {
                note(Some(time));
            }
            self.pods.insert(uid, time);
        }
        oldest
    }
}

/// When the pod last became ready or ceased to be.
fn changed_at(pod: &Pod) -> Option<Timestamp> {
    pod_facts::condition(pod, "Ready")?.last_transition_time.as_ref().map(|time| time.0)
}
