//! The probes that have to run, what follows from their results, and the hooks of containers.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Container as Spec, LifecycleHandler, PodSpec, Probe},
    jiff::Timestamp,
};

use super::{
    super::{
        super::runtime::{Container, ContainerState},
        config,
        state::{Hook, ProbeKind, ProbeTarget},
    },
    Context,
};

/// It is an init container that runs to its end: nobody asks how it is.
fn is_plain_init(spec: &PodSpec, container: &Spec) -> bool {
    let is_init = !spec.containers.iter().any(|one| one.name == container.name);
    is_init && !config::is_sidecar(container)
}

impl Context<'_> {
    /// A container runs and has come up: its hook and its startup probe are over.
    pub(super) fn is_up(&self, spec: &Spec) -> bool {
        let Some(container) = self.seen.present(&spec.name) else { return false };
        matches!(container.state, ContainerState::Running { .. })
            && !self.seen.in_post_start(&spec.name)
            && (spec.startup_probe.is_none()
                || self.seen.probes_of(container).startup == Some(true))
    }

    /// What a container does when it was started.
    pub(super) fn post_start(&self, spec: &Spec) -> Option<Hook> {
        let handler = spec.lifecycle.as_ref()?.post_start.as_ref()?;
        self.hook(spec, "", handler)
    }

    /// What a container does before it is ended.
    pub(super) fn pre_stop(&self, container: &Container) -> Option<Hook> {
        let spec = self.specs().find(|one| one.name == container.name)?;
        let handler = spec.lifecycle.as_ref()?.pre_stop.as_ref()?;
        self.hook(spec, &container.id, handler)
    }

    fn hook(&self, spec: &Spec, container: &str, handler: &LifecycleHandler) -> Option<Hook> {
        if let Some(sleep) = &handler.sleep {
            let seconds = u64::try_from(sleep.seconds).unwrap_or_default();
            return Some(Hook::Sleep(Duration::from_secs(seconds)));
        }
        let probe = Probe {
            exec: handler.exec.clone(),
            http_get: handler.http_get.clone(),
            tcp_socket: handler.tcp_socket.clone(),
            ..Probe::default()
        };
        let target = self.target(spec, container, ProbeKind::Startup, &probe, self.now)?;
        Some(Hook::Ask(Box::new(target)))
    }

    /// The probe that says that the container has to be restarted.
    pub(super) fn must_restart<'s>(
        &self,
        spec: &'s Spec,
        container: &Container,
    ) -> Option<&'s Probe> {
        let results = self.seen.probes_of(container);
        let startup = spec.startup_probe.as_ref().filter(|_| results.startup == Some(false));
        let liveness = spec.liveness_probe.as_ref().filter(|_| results.liveness == Some(false));
        startup.or(liveness)
    }

    /// The probes to run: those of running containers; only readiness while the pod terminates;
    /// only startup until that succeeded.
    pub(super) fn plan_probes(&mut self, terminating: bool) {
        let running: Vec<Container> = self.running().cloned().collect();
        for container in running {
            // As by the kubelet: nobody asks before its hook is over.
            if self.seen.in_post_start(&container.name) {
                continue;
            }
            let pod = self.spec;
            let probed = |one: &&Spec| one.name == container.name && !is_plain_init(pod, one);
            let all = pod.init_containers.iter().flatten().chain(&pod.containers);
            let Some(spec) = all.into_iter().find(probed) else { continue };
            let results = self.seen.probes_of(&container);
            let started = spec.startup_probe.is_none() || results.startup == Some(true);
            for (kind, probe, wanted) in [
                (ProbeKind::Startup, &spec.startup_probe, !started && !terminating),
                (ProbeKind::Liveness, &spec.liveness_probe, started && !terminating),
                (ProbeKind::Readiness, &spec.readiness_probe, started),
            ] {
                if let (Some(probe), true) = (probe, wanted) {
                    let target = self.probe_target(spec, &container, kind, probe);
                    self.decision.probes.extend(target);
                }
            }
        }
    }

    fn probe_target(
        &self,
        spec: &Spec,
        container: &Container,
        kind: ProbeKind,
        probe: &Probe,
    ) -> Option<ProbeTarget> {
        let ContainerState::Running { started_at } = container.state else { return None };
        self.target(spec, &container.id, kind, probe, started_at)
    }

    fn target(
        &self,
        spec: &Spec,
        container: &str,
        kind: ProbeKind,
        probe: &Probe,
        started_at: Timestamp,
    ) -> Option<ProbeTarget> {
        let sandbox = self.seen.ready_sandbox()?;
        let addresses = if config::host_network(self.pod) {
            self.node.addresses.clone()
        } else {
            self.node.in_order(&sandbox.addresses)
        };
        let ports = spec.ports.iter().flatten();
        let named = |port: &k8s_openapi::api::core::v1::ContainerPort| {
            Some((port.name.clone()?, u16::try_from(port.container_port).ok()?))
        };
        Some(ProbeTarget {
            container: container.to_owned(),
            sandbox: sandbox.id.clone(),
            kind,
            probe: probe.clone(),
            address: addresses.first().copied(),
            ports: ports.filter_map(named).collect(),
            started_at,
        })
    }
}
