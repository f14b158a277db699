//! The cluster's names as an immutable index: a pure function of the snapshot, made anew only for
//! the Services that changed, published whole.
//!
//! A name is found by its structure: what stands left of `svc` and the cluster domain names a
//! Service, what stands left of that is looked up among the Service's own names. The key of a
//! Service is a slice of the query's lower-case wire form, so that a look-up allocates nothing.
//!
//! Which addresses are those of the node's own pods is asked of who gives them (`LocalPods`): a pod
//! has its name before it runs.

pub mod blocks;
pub mod dashed;
pub mod hosts;
pub mod naming;
pub mod parts;
pub mod pods;
pub mod reverse;
pub mod service;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use hickory_proto::rr::Name;
use imbl::{HashMap, OrdMap, ordmap::DiffItem};

pub use self::reverse::Trees;
use self::{
    naming::Naming,
    parts::{Part, Parts},
    pods::Pods,
    reverse::{Arpa, Pointer, Pointers},
    service::{Addresses, Port, ServiceNames},
};
use super::name::{LowerName, wire_labels};
use crate::{
    local_pods::LocalPods,
    model::{ObjectKey, snapshot::Snapshot},
};

/// Whether names made of pods' addresses are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNames {
    /// No such name exists.
    Disabled,
    /// Any address is answered with itself, as with `pods insecure` of kubeadm's clusters.
    #[default]
    Insecure,
    /// Only addresses of pods that are known, in their own namespace: those behind Services, and
    /// this node's own.
    Verified,
}

/// What the zone is told, as opposed to what it learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cluster domain.
    pub origin: Name,
    /// The addresses of the cluster's DNS Service, for `ns.dns`.
    pub name_servers: Vec<IpAddr>,
    /// How long clients may keep answers, in seconds.
    pub ttl: u32,
    /// Whether names of pods are answered.
    pub pods: PodNames,
    /// Whether names below the cluster domain that don't exist are the upstreams' to answer.
    pub names_fall_through: bool,
    /// Whether addresses that we have no name for are the upstreams' to answer.
    pub reverse_falls_through: Trees,
    /// Where something else holds.
    pub parts: Parts,
    /// Which objects have names, and which.
    pub naming: Naming,
}

/// The index. Clones share all that did not change.
#[derive(Clone, Debug)]
pub struct Zone {
    settings: Arc<Settings>,
    origin: Arc<LowerName>,
    serial: u32,
    synced: bool,
    /// Namespaces by their labels.
    namespaces: OrdMap<Box<[u8]>, Namespace>,
    /// Services by the wire form of their name and namespace.
    services: HashMap<Arc<[u8]>, Entry>,
    pointers: Pointers,
    /// Empty unless names of pods are verified.
    pods: Pods,
    local_pods: Arc<LocalPods>,
}

/// A namespace in the index: there while either is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Namespace {
    /// Whether the API server has it.
    exists: bool,
    /// How many Services it has that have names.
    services: u32,
}

/// A Service in the index.
#[derive(Clone, Debug)]
struct Entry {
    /// By which pointers name it.
    number: u32,
    names: Arc<ServiceNames>,
}

/// What stands at a name.
#[derive(Debug)]
pub enum Found<'z> {
    /// No such name: NXDOMAIN.
    Missing,
    /// The name exists, because names below it do, and holds nothing (RFC 8020).
    Empty,
    /// The top of the zone.
    Apex,
    /// `ns.dns`: the resolver's own name.
    NameServer,
    /// `dns-version`.
    Version,
    /// A Service's own name.
    Service(&'z ServiceNames),
    /// `_port._protocol` of a Service.
    Ports(&'z ServiceNames, &'z [Port]),
    /// Endpoints of a Service: those with the name's first label.
    Hosts(&'z ServiceNames, Addresses),
    /// A pod's address as a name.
    Pod(IpAddr),
    /// An address in a reverse tree that has names.
    Pointers(Vec<Pointer>),
}

/// Where a name stands, and what stands there.
#[derive(Debug)]
pub struct Place<'z> {
    /// How many labels the top of its zone has: the rightmost of the name.
    pub apex_labels: usize,
    /// Whether that zone is one of the trees of addresses.
    pub reverse: bool,
    /// What stands there.
    pub found: Found<'z>,
}

impl Zone {
    /// The zone before anything is known. The serial only has to grow over restarts, as a clock
    /// does that is finer than changes are.
    pub fn new(settings: Settings, serial: u32) -> Self {
        Self {
            origin: Arc::new(LowerName::of(&settings.origin)),
            settings: Arc::new(settings),
            serial,
            synced: false,
            namespaces: OrdMap::new(),
            services: HashMap::new(),
            pointers: Pointers::default(),
            pods: Pods::default(),
            local_pods: Arc::default(),
        }
    }

    /// The same, which asks for this node's pods there.
    #[must_use]
    pub fn knowing(self, local_pods: Arc<LocalPods>) -> Self {
        Self { local_pods, ..self }
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The serial of the SOA record: it grows when, and only when, an answer may have changed.
    pub fn serial(&self) -> u32 {
        let local = match self.settings.pods {
            PodNames::Verified => self.local_pods.changes(),
            PodNames::Disabled | PodNames::Insecure => 0,
        };
        self.serial.wrapping_add(local)
    }

    /// Whether all Services and their endpoints are known, so that "no such name" can be said.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// The zone that follows from `to`, where this one follows from `from`. Costs what changed.
    #[must_use]
    pub fn advance(&self, from: &Snapshot, to: &Snapshot) -> Self {
        let mut next = self.clone();
        let naming = &self.settings.naming;
        let mut services = to.changed_services(from).into_owned();
        let mut changed = false;
        for name in changed_namespaces(from, to) {
            changed |= next.note_namespace(&name, naming.has_namespace(&name, to));
            if naming.has(&name, from) != naming.has(&name, to) {
                services.extend(to.services_in(&name).cloned());
            }
        }
        for key in services {
            let names = naming
                .service(&key, to)
                .and_then(|service| ServiceNames::of(service, to.slices_of(&key), naming));
            changed |= next.replace(&key, names);
            if next.settings.pods == PodNames::Verified {
                changed |= next.pods.advance(&key, from, to, &self.local_pods);
            }
        }
        next.synced |= to.synced.services && to.synced.slices && to.synced.namespaces;
        if changed {
            next.serial = next.serial.wrapping_add(1);
        }
        next
    }

    /// Puts `names` in the place of what `key` had; tells whether that changed anything.
    fn replace(&mut self, key: &ObjectKey, names: Option<ServiceNames>) -> bool {
        let (Some(wire), Some(namespace)) =
            (wire_labels(&[&*key.name, &*key.namespace]), wire_labels(&[&*key.namespace]))
        else {
            return false;
        };
        let (wire, old) = match self.services.get_key_value(&wire[..]) {
            Some((wire, old)) => (Arc::clone(wire), Some(old.clone())),
            None => (wire.into(), None),
        };
        let before = old.as_ref().map(|entry| &*entry.names);
        if before == names.as_ref() {
            return false;
        }
        let number = old.as_ref().map(|entry| entry.number);
        let number = number.unwrap_or_else(|| self.pointers.number(&wire));
        self.pointers.replace(number, before, names.as_ref());
        match (&old, names) {
            (_, Some(names)) => {
                self.services.insert(wire, Entry { number, names: Arc::new(names) });
                if old.is_none() {
                    self.namespaces.entry(namespace).or_default().services += 1;
                }
            }
            (Some(_), None) => {
                self.services.remove(&wire[..]);
                self.leave_namespace(&namespace);
            }
            (None, None) => {}
        }
        true
    }

    fn leave_namespace(&mut self, namespace: &[u8]) {
        let Some(held) = self.namespaces.get_mut(namespace) else { return };
        held.services = held.services.saturating_sub(1);
        if *held == Namespace::default() {
            self.namespaces.remove(namespace);
        }
    }

    /// Notes whether the API server has a namespace; tells whether that changed anything.
    fn note_namespace(&mut self, name: &str, exists: bool) -> bool {
        let Some(label) = wire_labels(&[name]) else { return false };
        let before = self.namespaces.get(&label).copied();
        let now = Namespace { exists, ..before.unwrap_or_default() };
        let now = Some(now).filter(|now| *now != Namespace::default());
        match now {
            Some(now) => drop(self.namespaces.insert(label, now)),
            None => drop(self.namespaces.remove(&label)),
        }
        before.is_some() != now.is_some()
    }

    /// Looks a name up; `None` where it is not ours to answer.
    pub fn look_up(&self, name: &LowerName) -> Option<Place<'_>> {
        let part = self.settings.parts.of(name);
        // Of a part that is denied: it is a zone of its own, in the trees of addresses.
        let (through, denied) = match part {
            Some((Part::Elsewhere, _)) => return None,
            Some((Part::FallsThrough, _)) => (Some(true), None),
            Some((Part::Denied, labels)) => (Some(false), Some(labels)),
            None => (None, None),
        };
        if let Some(labels) = name.labels_below(&self.origin) {
            let found = self.in_cluster(name, labels);
            let elsewhere = through.unwrap_or(self.settings.names_fall_through) && self.synced;
            if elsewhere && matches!(found, Found::Missing) {
                return None;
            }
            let apex_labels = self.origin.label_count();
            return Some(Place { apex_labels, reverse: false, found });
        }
        let tree = reverse::parse(name)?;
        let through = through.unwrap_or_else(|| self.settings.reverse_falls_through.has(name));
        let apex_labels = denied.unwrap_or(2);
        let found = match tree {
            Arpa::Address(address) => {
                let names_of = |key: &[u8]| self.services.get(key).map(|entry| &*entry.names);
                match self.pointers.of(address, names_of) {
                    pointers if pointers.is_empty() => Found::Missing,
                    pointers => Found::Pointers(pointers),
                }
            }
            _ if through => return None,
            Arpa::Prefix(_) if name.label_count() == apex_labels => Found::Apex,
            Arpa::Prefix(range) if self.pointers.any_in(&range) => Found::Empty,
            Arpa::Prefix(_) | Arpa::Nothing => Found::Missing,
        };
        if matches!(found, Found::Missing) && through && self.synced {
            return None;
        }
        Some(Place { apex_labels, reverse: true, found })
    }

    /// Looks up a name with so many labels left of the cluster domain.
    fn in_cluster(&self, name: &LowerName, labels: usize) -> Found<'_> {
        let Some(last) = labels.checked_sub(1) else { return Found::Apex };
        match name.label(last) {
            b"svc" => self.in_services(name, last),
            b"pod" => self.in_pods(name, last),
            b"dns" if last == 0 => Found::Empty,
            b"dns" if last == 1 && name.label(0) == b"ns" => Found::NameServer,
            b"dns-version" if last == 0 => Found::Version,
            _ => Found::Missing,
        }
    }

    fn in_services(&self, name: &LowerName, labels: usize) -> Found<'_> {
        match labels {
            0 => Found::Empty,
            1 if self.namespaces.contains_key(name.wire_of(0, 1)) => Found::Empty,
            1 => Found::Missing,
            _ => match self.services.get(name.wire_of(labels - 2, labels)) {
                Some(entry) => entry.names.find(name, labels - 2),
                None => Found::Missing,
            },
        }
    }

    fn in_pods(&self, name: &LowerName, labels: usize) -> Found<'_> {
        if labels == 0 {
            return Found::Empty;
        }
        let namespace = name.wire_of(labels - 1, labels);
        if self.settings.pods == PodNames::Disabled || !self.namespaces.contains_key(namespace) {
            return Found::Missing;
        }
        match labels {
            1 => Found::Empty,
            2 => match dashed::parse(name.label(0)) {
                Some(address) if self.is_pod(address, name.label(1)) => Found::Pod(address),
                _ => Found::Missing,
            },
            _ => Found::Missing,
        }
    }

    /// Whether a pod of that namespace may be said to have `address`.
    fn is_pod(&self, address: IpAddr, namespace: &[u8]) -> bool {
        match self.settings.pods {
            PodNames::Disabled => false,
            PodNames::Insecure => true,
            PodNames::Verified => {
                self.pods.has(address, namespace)
                    || pods::is_local(&self.local_pods, address, namespace)
            }
        }
    }
}

/// The namespaces of which something differs between two snapshots.
fn changed_namespaces(from: &Snapshot, to: &Snapshot) -> BTreeSet<Arc<str>> {
    if from.namespaces.ptr_eq(&to.namespaces) {
        return BTreeSet::new();
    }
    let all = from.namespaces.diff(&to.namespaces).map(|item| match item {
        DiffItem::Add(name, _)
        | DiffItem::Remove(name, _)
        | DiffItem::Update { new: (name, _), .. } => Arc::clone(name),
    });
    all.collect()
}

#[cfg(test)]
mod tests;
