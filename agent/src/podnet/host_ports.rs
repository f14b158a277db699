//! The host ports that pods ask for (capability `portMappings`), from the ledger to those who see to
//! them. They are in force when ADD answers, and out of force before the pod's address is another's.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mizzen_cni::{
    protocol::error::TRY_AGAIN_LATER,
    wire::{Attachment, Failure, PortMapping, Protocol as WireProtocol},
};
use mizzen_ebpf_abi::{
    addr::{Addr, protocol},
    service::FrontendKey,
};

use super::{
    Listeners,
    journal::{Entry, Phase},
    pods::{Pods, chain, failure},
};
use crate::{
    host_ports::HostPorts,
    model::{
        ObjectKey,
        pod::{HostPort, HostPortPod, HostPortPods},
        service::Protocol,
    },
};

/// How long an ADD waits for them. Where the tables can't be written so long, the runtime is told to
/// try again rather than that all is well.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long a CHECK waits for what others asked for a moment ago.
const GRACE: Duration = Duration::from_millis(500);

/// The host ports of all pods that are connected, or as good as. Of two sandboxes of one pod the
/// later one has its ports.
pub fn of(entries: &BTreeMap<Attachment, Entry>) -> HostPortPods {
    let mut pods = HostPortPods::new();
    for (attachment, entry) in entries {
        let as_good_as = entry.phase == Phase::Reserved && entry.ifindex != 0;
        if entry.requested.port_mappings.is_empty() || !(entry.phase == Phase::Live || as_good_as) {
            continue;
        }
        let key = key(attachment, entry);
        if pods.get(&key).is_none_or(|other| other.serial < entry.serial) {
            let ports = entry.requested.port_mappings.iter().map(host_port).collect();
            let (addresses, serial) = (entry.addresses.clone(), entry.serial);
            pods.insert(key, Arc::new(HostPortPod { addresses, ports, serial }));
        }
    }
    pods
}

/// A pod is known by its name, or where the runtime did not say it by its sandbox.
fn key(attachment: &Attachment, entry: &Entry) -> ObjectKey {
    if entry.pod.name.is_empty() {
        ObjectKey::new("", &attachment.container_id)
    } else {
        ObjectKey::new(&entry.pod.namespace, &entry.pod.name)
    }
}

fn host_port(mapping: &PortMapping) -> HostPort {
    HostPort {
        protocol: match mapping.protocol {
            WireProtocol::Tcp => Protocol::Tcp,
            WireProtocol::Udp => Protocol::Udp,
        },
        address: mapping.host_ip,
        port: mapping.host_port,
        container_port: mapping.container_port,
    }
}

/// Where the tables have the host ports of a pod.
fn frontends(entry: &Entry) -> Vec<FrontendKey> {
    let has = |v4: bool| entry.addresses.iter().any(|address| address.is_ipv4() == v4);
    let of_family = |mapping: &PortMapping, v4: bool| {
        let addr = match mapping.host_ip {
            Some(address) if address.is_ipv4() != v4 => return None,
            Some(address) if !address.is_unspecified() => Addr::from(address),
            _ if v4 => Addr::ANY_V4,
            _ => Addr::ANY_V6,
        };
        let number = match mapping.protocol {
            WireProtocol::Tcp => protocol::TCP,
            WireProtocol::Udp => protocol::UDP,
        };
        has(v4).then(|| FrontendKey::new(addr, mapping.host_port, number))
    };
    let mappings = entry.requested.port_mappings.iter();
    mappings.flat_map(|one| [true, false].into_iter().filter_map(|v4| of_family(one, v4))).collect()
}

impl Pods {
    /// Tells `listeners` of the pods from now on.
    pub fn tell(&self, listeners: Listeners) {
        let Listeners { local_pods, host_ports, metrics: _ } = listeners;
        self.ledger().tell(local_pods, Arc::clone(&host_ports));
        // Once: a second call would only name the same.
        let _told = self.host_ports.set(host_ports);
    }

    /// Has a pod's host ports come into force, and waits until they are.
    pub(super) fn open_host_ports(&self, entry: &Entry, deadline: Instant) -> Result<(), Failure> {
        if entry.requested.port_mappings.is_empty() {
            return Ok(());
        }
        let revision = self.ledger().ask_for_host_ports();
        let left = deadline.saturating_duration_since(Instant::now()).min(PATIENCE);
        let outcome = self.host_ports.get().map(|ports| ports.wait_unless_held_up(revision, left));
        let said = match outcome {
            Some(Ok(())) => return Ok(()),
            Some(Err(Some(reason))) => reason,
            Some(Err(None)) | None => "see `mizzen status` for what they wait for".into(),
        };
        let details = format!("the service tables don't have the pod's host ports yet: {said}");
        Err(failure(TRY_AGAIN_LATER, "host ports are not in force", details))
    }

    /// Whether a pod's host ports are in force, or it has none. Where who fills the tables waits for
    /// an API server, they are as an earlier agent left them.
    pub(super) fn has_host_ports(&self, entry: &Entry) -> bool {
        if entry.requested.port_mappings.is_empty() {
            return true;
        }
        let revision = self.ledger().ask_for_host_ports();
        let in_force = |ports: &Arc<HostPorts>| ports.wait(revision, GRACE);
        self.host_ports.get().is_some_and(in_force) || self.tables_have(&frontends(entry))
    }

    fn tables_have(&self, frontends: &[FrontendKey]) -> bool {
        self.datapath.has_frontends(frontends).unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "look at a pod's host ports");
            false
        })
    }

    /// Takes the host ports of a pod that leaves out of force.
    pub(super) fn close_host_ports(&self, entry: &Entry) {
        if !entry.requested.port_mappings.is_empty() {
            self.ledger().ask_for_host_ports();
        }
    }
}

#[cfg(test)]
mod tests {
    use mizzen_cni::wire::{Pod, Requested};

    use super::*;
    use crate::podnet::netns::NetnsId;

    fn entry(name: &str, serial: u64, phase: Phase, ifindex: u32) -> Entry {
        let mapping = PortMapping {
            host_ip: None,
            host_port: 8080,
            container_port: 80,
            protocol: WireProtocol::Tcp,
        };
        Entry {
            network: "mizzen".into(),
            pod: Pod { name: name.into(), namespace: "default".into(), uid: String::new() },
            netns: NetnsId { dev: 4, ino: serial },
            netns_cookie: None,
            addresses: vec![[10, 244, 1, u8::try_from(serial).unwrap()].into()],
            mtu: 1500,
            phase,
            requested: Requested { port_mappings: vec![mapping], ..Requested::default() },
            serial,
            born: None,
            ifindex,
        }
    }

    #[test]
    fn cni_31_the_later_sandbox_of_a_pod_has_its_host_ports_and_unfinished_ones_have_none() {
        let entries = [
            entry("web", 9, Phase::Live, 0),
            entry("web", 8, Phase::Live, 7),
            entry("web", 10, Phase::Leaving, 8),
            entry("", 11, Phase::Reserved, 9),
            entry("late", 12, Phase::Reserved, 0),
            Entry { requested: Requested::default(), ..entry("plain", 13, Phase::Live, 1) },
        ];
        let named = entries.into_iter().enumerate().map(|(index, entry)| {
            let container_id = format!("c{index}");
            (Attachment { container_id, ifname: "eth0".into() }, entry)
        });
        let pods = of(&named.collect());
        let serials: Vec<_> = pods.iter().map(|(key, pod)| (key.to_string(), pod.serial)).collect();
        assert_eq!(serials, [("/c3".to_owned(), 11), ("default/web".to_owned(), 9)]);
    }
}
