//! The node's attachments and addresses: memory and journal, changed together.

use std::{collections::BTreeSet, io, net::IpAddr, path::Path, sync::Arc, time::Duration};

use mizzen_cni::wire::{self, Attachment, Mac, Pod, Requested};

use super::{
    host_ports,
    ipam::{AllocateError, Exhausted, Ipam},
    journal::{Entry, Journal, Phase, Record, Replayed},
    link::LinkSpec,
    netns::NetnsId,
};
use crate::{host_ports::HostPorts, local_pods::LocalPods, model::node::Cidr};

/// Why addresses could not be reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// None is left, or not the one that was asked for.
    #[error(transparent)]
    Address(#[from] AllocateError),
    /// The journal did not take it.
    #[error("write the journal of pod addresses; is the state folder full?")]
    Journal(#[from] io::Error),
}

/// For whom addresses are reserved.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// The CNI network's name.
    pub network: String,
    /// The pod.
    pub pod: Pod,
    /// Its namespace.
    pub netns: NetnsId,
    /// See [`Entry::netns_cookie`].
    pub netns_cookie: Option<u64>,
    /// Of its link, in bytes.
    pub mtu: u32,
    /// What else is asked for.
    pub requested: Requested,
}

/// All of it. Times are durations since the agent's start.
#[derive(Debug)]
pub struct Ledger {
    state: Replayed,
    /// Addresses that links have which no record is about.
    held: BTreeSet<IpAddr>,
    ipam: Ipam,
    journal: Journal,
    /// Addresses that are never given.
    excluded: Vec<Cidr>,
    /// [`Entry::serial`] of the last attachment.
    serial: u64,
    /// Attachments that leave, which the journal did not take yet.
    unnoted: BTreeSet<Attachment>,
    /// Those who ask whose address one is.
    local_pods: Arc<LocalPods>,
    /// Those who see to host ports.
    host_ports: Arc<HostPorts>,
}

impl Ledger {
    /// What an earlier agent of this boot left at `path`. Those in `excluded` are never given.
    pub fn open(path: &Path, boot: &str, excluded: Vec<Cidr>, now: Duration) -> io::Result<Self> {
        let (journal, mut state) = Journal::open(path, boot)?;
        if state.unreadable > 0 {
            tracing::warn!(
                lines = state.unreadable,
                "journal of pod addresses had unreadable lines"
            );
        }
        let freed = std::mem::take(&mut state.freed);
        let taken = state.entries.values().flat_map(|entry| entry.addresses.iter().copied());
        let mut ipam = Ipam::new(&state.ranges, &excluded, taken.chain(freed.iter().copied()));
        for address in freed {
            ipam.free(address, now);
        }
        let serial = state.entries.values().map(|entry| entry.serial).max().unwrap_or(0);
        let (held, unnoted, local_pods, host_ports) = Default::default();
        Ok(Self { state, held, ipam, journal, excluded, serial, unnoted, local_pods, host_ports })
    }

    /// Tells `local_pods` from now on which pod has which address, and `host_ports` which host
    /// ports, and at once of those that have them.
    pub fn tell(&mut self, local_pods: Arc<LocalPods>, host_ports: Arc<HostPorts>) {
        self.host_ports = host_ports;
        self.ask_for_host_ports();
        for entry in self.state.entries.values() {
            local_pods.add(&entry.addresses, &entry.pod.namespace);
        }
        self.local_pods = local_pods;
    }

    /// The node's ranges as last known.
    pub fn ranges(&self) -> &[Cidr] {
        &self.state.ranges
    }

    /// Says which ranges the node has. Pods keep the addresses that they have.
    pub fn set_ranges(&mut self, ranges: &[Cidr]) -> io::Result<()> {
        if self.state.ranges == ranges {
            return Ok(());
        }
        self.write(Record::Ranges { ranges: ranges.iter().map(ToString::to_string).collect() })?;
        let entries = self.state.entries.values();
        let taken = entries.flat_map(|entry| &entry.addresses).chain(&self.held);
        let mut ipam = Ipam::new(ranges, &self.excluded, taken.copied());
        // Others remember who had an address, whatever the ranges are now.
        let mut cooling: Vec<(IpAddr, Duration)> = self.ipam.cooling().collect();
        cooling.sort_by_key(|(_, until)| *until);
        for (address, until) in cooling {
            ipam.cool(address, until);
        }
        self.ipam = ipam;
        Ok(())
    }

    /// An attachment.
    pub fn get(&self, attachment: &Attachment) -> Option<&Entry> {
        self.state.entries.get(attachment)
    }

    /// All attachments.
    pub fn entries(&self) -> impl Iterator<Item = (&Attachment, &Entry)> {
        self.state.entries.iter()
    }

    /// The live attachment whose host's end has this index.
    pub fn find_live(&self, ifindex: u32) -> Option<&Entry> {
        let is_it = |entry: &&Entry| entry.ifindex == ifindex && entry.phase == Phase::Live;
        self.state.entries.values().find(is_it)
    }

    /// A family without a free address.
    pub fn exhausted(&self) -> Option<Exhausted> {
        self.ipam.exhausted()
    }

    /// Gives a new attachment its addresses.
    pub fn reserve(
        &mut self,
        attachment: &Attachment,
        reservation: Reservation,
        now: Duration,
    ) -> Result<Entry, ReserveError> {
        let addresses = self.ipam.allocate(&reservation.requested.addresses, now)?;
        let Reservation { network, pod, netns, netns_cookie, mtu, requested } = reservation;
        let (phase, ifindex, serial, born) = (Phase::Reserved, 0, self.serial + 1, None);
        let entry = Entry {
            network,
            pod,
            netns,
            netns_cookie,
            addresses,
            mtu,
            phase,
            requested,
            serial,
            born,
            ifindex,
        };
        let attached = Box::new(entry.clone());
        let record = Record::Attached { attachment: attachment.clone(), entry: attached };
        self.write(record).inspect_err(|_| self.free(&entry.addresses, now))?;
        self.serial = serial;
        self.local_pods.add(&entry.addresses, &entry.pod.namespace);
        Ok(entry)
    }

    /// Has the host ports that pods have now come into force; which revision of them that is.
    pub fn ask_for_host_ports(&self) -> u64 {
        self.host_ports.ask(host_ports::of(&self.state.entries))
    }

    /// Notes how far an attachment has come. One that leaves does so though the journal refuses it, as
    /// where the state folder is full: its DEL is answered all the same, and nobody may make its link
    /// anew. Whoever says it again writes it again.
    pub fn set_phase(&mut self, attachment: &Attachment, phase: Phase) -> io::Result<()> {
        let is_noted = |entry: &Entry| entry.phase == phase && !self.unnoted.contains(attachment);
        let Some(entry) = self.get(attachment).filter(|entry| !is_noted(entry)) else {
            return Ok(());
        };
        // In one record: who sees that a pod is live sees its age, in the next agent too.
        let is_birth = phase == Phase::Live && entry.born.is_none();
        let born = is_birth.then(|| wire::uptime().ok()).flatten();
        let record = Record::Phase { attachment: attachment.clone(), phase, born };
        let written = self.write(record.clone());
        if written.is_ok() {
            self.unnoted.remove(attachment);
        } else if phase == Phase::Leaving {
            self.state.apply(record);
            self.unnoted.insert(attachment.clone());
        }
        written
    }

    /// Notes the MTU that an attachment's link has now.
    pub fn set_mtu(&mut self, attachment: &Attachment, mtu: u32) -> io::Result<()> {
        let Some(entry) = self.get(attachment).filter(|entry| entry.mtu != mtu) else {
            return Ok(());
        };
        let entry = Entry { mtu, ..entry.clone() };
        self.write(Record::Attached { attachment: attachment.clone(), entry: Box::new(entry) })
    }

    /// Notes the index that the host's end has now.
    pub fn set_ifindex(&mut self, attachment: &Attachment, ifindex: u32) {
        if let Some(entry) = self.state.entries.get_mut(attachment) {
            entry.ifindex = ifindex;
        }
    }

    /// Says that the addresses are no pod's any more, though they are not free yet.
    pub fn disown(&self, addresses: &[IpAddr]) {
        self.local_pods.remove(addresses);
    }

    /// Forgets an attachment and frees its addresses.
    pub fn release(&mut self, attachment: &Attachment, now: Duration) -> io::Result<()> {
        let Some(entry) = self.get(attachment) else { return Ok(()) };
        let addresses = entry.addresses.clone();
        self.write(Record::Released { attachment: attachment.clone() })?;
        self.unnoted.remove(attachment);
        self.state.freed.clear();
        self.local_pods.remove(&addresses);
        self.free(&addresses, now);
        Ok(())
    }

    /// Keeps addresses from being given that a link has which no record is about.
    pub fn hold(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            self.held.insert(*address);
            self.ipam.take(*address);
        }
    }

    /// Frees addresses, whoever had them.
    pub fn free(&mut self, addresses: &[IpAddr], now: Duration) {
        for address in addresses {
            self.held.remove(address);
            self.ipam.free(*address, now);
        }
    }

    /// Has the journal go on in another file, and gives the former one.
    #[cfg(test)]
    pub(super) fn exchange_file(&mut self, file: std::fs::File) -> std::fs::File {
        self.journal.exchange_file(file)
    }

    /// The journal first: what it refuses has not happened, but for what [`Self::set_phase`] says.
    fn write(&mut self, record: Record) -> io::Result<()> {
        if self.journal.is_long(&self.state) {
            // The records of their releases go: the next agent keeps these back all the same.
            self.state.freed = self.ipam.cooling().map(|(address, _)| address).collect();
        }
        self.journal.append(&record, &self.state)?;
        self.state.apply(record);
        Ok(())
    }
}

/// What the link of an attachment shall be.
pub fn link_spec(attachment: &Attachment, entry: &Entry) -> LinkSpec {
    let (host_mac, pod_mac) = macs(&entry.addresses);
    let pod_mac = entry.requested.mac.unwrap_or(pod_mac);
    LinkSpec {
        host_ifname: attachment.host_ifname(),
        pod_ifname: attachment.ifname.clone(),
        host_mac,
        pod_mac,
        mtu: entry.mtu,
        addresses: entry.addresses.clone(),
        alias: alias(attachment, &entry.pod),
        bandwidth: entry.requested.bandwidth,
    }
}

/// Link-layer addresses of the host's and the pod's end: local ones, made from the pod's first
/// address, so that they need not be kept and people can tell whose they are.
pub fn macs(addresses: &[IpAddr]) -> (Mac, Mac) {
    // The kernel lists IPv4 first, and so does the allocator.
    let [a, b, c, d] = match addresses.first() {
        Some(IpAddr::V4(v4)) => v4.octets(),
        Some(IpAddr::V6(v6)) => v6.octets()[12..].try_into().unwrap_or_default(),
        None => [0; 4],
    };
    (Mac([2, 0xff, a, b, c, d]), Mac([2, 0, a, b, c, d]))
}

/// The kernel takes 255 bytes.
fn alias(attachment: &Attachment, pod: &Pod) -> String {
    let mut alias = if pod.name.is_empty() {
        format!("mizzen {attachment}")
    } else {
        format!("mizzen {}/{} {}", pod.namespace, pod.name, attachment.ifname)
    };
    alias.truncate(alias.floor_char_boundary(255));
    alias
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use super::*;

    const BOOT: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn attachment(container_id: &str) -> Attachment {
        Attachment { container_id: container_id.into(), ifname: "eth0".into() }
    }

    #[test]
    fn cni_35_who_leaves_does_so_though_the_journal_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("podnet.journal");
        let mut ledger = Ledger::open(&path, BOOT, Vec::new(), Duration::ZERO).unwrap();
        ledger.set_ranges(&["10.244.1.0/24".parse().unwrap()]).unwrap();
        let (leaving, coming) = (attachment("c1"), attachment("c2"));
        for attachment in [&leaving, &coming] {
            let reservation = Reservation {
                network: "mizzen".into(),
                pod: Pod::default(),
                netns: NetnsId { dev: 4, ino: 1 },
                netns_cookie: None,
                mtu: 1500,
                requested: Requested::default(),
            };
            ledger.reserve(attachment, reservation, Duration::ZERO).unwrap();
        }
        ledger.set_phase(&leaving, Phase::Live).unwrap();
        let phase = |ledger: &Ledger, attachment| ledger.get(attachment).unwrap().phase;
        let file = ledger.exchange_file(OpenOptions::new().append(true).open("/dev/full").unwrap());
        for attempt in 1..=2 {
            let refused = ledger.set_phase(&leaving, Phase::Leaving);
            assert!(refused.is_err(), "attempt {attempt}: it is not written yet");
            assert_eq!(phase(&ledger, &leaving), Phase::Leaving);
        }
        // All else that the journal refuses has not happened.
        assert!(ledger.set_phase(&coming, Phase::Live).is_err());
        assert_eq!(phase(&ledger, &coming), Phase::Reserved);
        ledger.exchange_file(file);
        ledger.set_phase(&leaving, Phase::Leaving).unwrap();
        let written = Replayed::from_lines(&fs::read(&path).unwrap(), BOOT);
        assert_eq!(written.entries[&leaving].phase, Phase::Leaving);
    }
}
