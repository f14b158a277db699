//! What is kept of pods: there are many, and most of what they say is for their node.
//!
//! A controller that begins to read a field of pods has to have it kept here.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};

/// Annotation in which `kubectl apply` keeps the object that it was given.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Drops what neither controllers nor the scheduler read, and the room to grow.
pub(super) fn pod(pod: &mut Pod) {
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove(LAST_APPLIED);
        if annotations.is_empty() {
            pod.metadata.annotations = None;
        }
    }
    shrink(&mut pod.metadata.owner_references);
    pod.spec = pod.spec.take().map(spec);
    pod.status = pod.status.take().map(status);
}

fn spec(spec: PodSpec) -> PodSpec {
    let mut kept = PodSpec {
        affinity: spec.affinity,
        containers: spec.containers.into_iter().map(container).collect(),
        host_network: spec.host_network,
        hostname: spec.hostname,
        init_containers: spec
            .init_containers
            .map(|containers| containers.into_iter().map(container).collect()),
        node_name: spec.node_name,
        node_selector: spec.node_selector,
        overhead: spec.overhead,
        priority: spec.priority,
        resources: spec.resources,
        scheduler_name: spec.scheduler_name,
        scheduling_gates: spec.scheduling_gates,
        subdomain: spec.subdomain,
        tolerations: spec.tolerations,
        ..PodSpec::default()
    };
    kept.containers.shrink_to_fit();
    shrink(&mut kept.init_containers);
    shrink(&mut kept.scheduling_gates);
    shrink(&mut kept.tolerations);
    kept
}

fn container(container: Container) -> Container {
    let mut kept = Container {
        name: container.name,
        ports: container.ports,
        resources: container.resources,
        restart_policy: container.restart_policy,
        ..Container::default()
    };
    shrink(&mut kept.ports);
    kept
}

fn status(status: PodStatus) -> PodStatus {
    let mut kept = PodStatus {
        conditions: status.conditions,
        container_statuses: status
            .container_statuses
            .map(|statuses| statuses.into_iter().map(container_status).collect()),
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        reason: status.reason,
        start_time: status.start_time,
        ..PodStatus::default()
    };
    shrink(&mut kept.conditions);
    shrink(&mut kept.container_statuses);
    shrink(&mut kept.pod_ips);
    kept
}

fn container_status(status: ContainerStatus) -> ContainerStatus {
    ContainerStatus {
        name: status.name,
        ready: status.ready,
        restart_count: status.restart_count,
        ..ContainerStatus::default()
    }
}

fn shrink<T>(list: &mut Option<Vec<T>>) {
    if let Some(list) = list {
        list.shrink_to_fit();
    }
}
