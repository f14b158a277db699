//! From a question to its answer, for the names that are ours. Pure.
//!
//! Follows the Kubernetes DNS specification 1.1.0 and, where it says nothing, CoreDNS; and
//! RFC 1034, 2308 and 8020 for what is said of names that don't exist or hold nothing.

use std::{collections::BTreeSet, ops::Range};

use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};

use super::{
    name::LowerName,
    zone::{
        Found, Place, Zone,
        hosts::Host,
        reverse::Pointer,
        service::{Addresses, Own, Port, ServiceNames, Targets},
    },
};

/// How long clients may keep the version of the specification, in seconds (specification 2.2).
const VERSION_TTL: u32 = 28_800;
/// The version of the specification that the zone follows.
const VERSION: &str = "1.1.0";
/// Names in the zone's SOA record, as labels below its top: the server,
pub(super) const SOA_SERVER: [&str; 2] = ["ns", "dns"];
/// and who is responsible.
pub(super) const SOA_HOST: &str = "hostmaster";
/// Refresh, retry and expiry in the SOA record, in seconds: nobody copies the zone.
pub(super) const SOA_TIMES: [u32; 3] = [7200, 1800, 86_400];
/// How many ExternalNames are followed; more are a loop or as good as one.
const MAX_ALIASES: usize = 10;

/// Why an answer is what it is, for clients that read extended errors (RFC 8914).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explanation {
    /// The name is foreign and nobody is configured to be asked.
    NoUpstream,
    /// Services and endpoints have not been listed yet.
    NotReady,
    /// No upstream answered in time.
    NoReachableAuthority,
    /// No upstream can be reached: each refuses, or the network says that it is not there.
    Unreachable,
    /// Too many questions are under way.
    Overloaded,
    /// The answer has outlived its time, and upstreams have no new one.
    Stale,
    /// The same of "no such name".
    StaleMissing,
    /// Upstreams failed a moment ago and are not asked again yet.
    FailedBefore,
    /// All upstreams lead back to this resolver.
    Loop,
    /// No zone of the configuration has the name.
    NotServed,
    /// The name is in no table of hosts, and nobody else may be asked.
    NotInHosts,
    /// An access rule refuses the question.
    Blocked,
    /// An access rule hides the answer.
    Filtered,
    /// The configuration makes a name of the question that is none.
    NoName,
    /// The configuration's templates make no answer of the question.
    NoTemplate,
    /// As the configuration says, by the code that it names.
    Configured(u16),
}

impl Explanation {
    /// The code in the option, as the registry of RFC 8914 has it; 0 is "other".
    pub fn code(self) -> u16 {
        match self {
            Self::NoUpstream
            | Self::Overloaded
            | Self::Loop
            | Self::NotInHosts
            | Self::NoName
            | Self::NoTemplate => 0,
            Self::Configured(code) => code,
            Self::Stale => 3,
            Self::FailedBefore => 13,
            Self::NotReady => 14,
            Self::Blocked => 15,
            Self::Filtered => 17,
            Self::StaleMissing => 19,
            Self::NotServed => 20,
            Self::NoReachableAuthority => 22,
            Self::Unreachable => 23,
        }
    }

    /// What the client's administrator reads.
    pub fn text(self) -> &'static str {
        match self {
            Self::NoUpstream => "no upstream resolver is configured",
            Self::NotReady => "services and endpoints have not been listed yet",
            Self::NoReachableAuthority => "no upstream resolver answered in time",
            Self::Unreachable => "upstream resolvers refuse or are not there",
            Self::Overloaded => "too many questions to upstream resolvers are under way",
            Self::Stale | Self::StaleMissing => "no upstream resolver has a newer answer",
            Self::FailedBefore => "upstream resolvers failed a moment ago",
            Self::Loop => "all upstream resolvers lead back to this one",
            Self::NotServed => "no server block has the name",
            Self::NotInHosts => "the name is not in the table of hosts",
            Self::Blocked => "an acl rule refuses the question",
            Self::Filtered => "an acl rule hides the answer",
            Self::NoName => "a rewrite rule leads to what is no name",
            Self::NoTemplate => "no template makes an answer of the question",
            Self::Configured(_) => "as configured",
        }
    }
}

/// What is to be sent, before it is a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The response code.
    pub code: ResponseCode,
    /// Whether the answer is from our own zone.
    pub authoritative: bool,
    /// Whether an upstream vouches for it (AD).
    pub authentic: bool,
    /// Whether an upstream's answer was cut and could not be had whole.
    pub truncated: bool,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authorities: Vec<Record>,
    /// The additional section, without OPT.
    pub additionals: Vec<Record>,
    /// Why, where that is not plain.
    pub explanation: Option<Explanation>,
}

impl Reply {
    /// A reply that is nothing but a response code.
    pub fn of_code(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }

    /// Has each list of addresses, or of mail servers, begin with another one for each `rotation`:
    /// most clients take the first.
    pub fn rotate(&mut self, rotation: usize) {
        let same = |one: &Record, next: &Record| one.record_type() == next.record_type();
        for list in self.answers.chunk_by_mut(same) {
            let kind = list.first().map(Record::record_type);
            if matches!(kind, Some(RecordType::A | RecordType::AAAA | RecordType::MX)) {
                list.rotate_left(rotation % list.len());
            }
        }
    }

    /// Leaves out what is beside an answer; what says that there is none, or who has one, stays.
    pub fn minimize(&mut self) {
        if self.code == ResponseCode::NoError && !self.answers.is_empty() {
            self.authorities.clear();
            self.additionals.clear();
        }
    }

    /// A failure and its reason.
    pub fn failure(explanation: Explanation) -> Self {
        Self { explanation: Some(explanation), ..Self::of_code(ResponseCode::ServFail) }
    }
}

/// What is known of a question without asking anyone.
#[derive(Debug)]
pub enum Outcome {
    /// The whole answer.
    Answer(Reply),
    /// The name is not ours.
    Foreign,
    /// The name is ours and leads to one that is not: the answer so far, and that name.
    Alias(Reply, Name),
}

/// Answers a question of class IN. `rotation` says with which of several addresses the list
/// begins; any number will do, and different ones spread the clients that take the first.
pub fn answer(zone: &Zone, question: &Query, rotation: usize) -> Outcome {
    answer_within(zone, question, rotation, usize::MAX)
}

/// As [`answer`], with no more than `most` addresses or targets of a name, and nothing beside them
/// where all would be more: whoever has no room for so many records need not have them made.
pub fn answer_within(zone: &Zone, question: &Query, rotation: usize, most: usize) -> Outcome {
    let mut reply = Reply { authoritative: true, ..Reply::default() };
    let mut owner = question.name().clone();
    for _ in 0..=MAX_ALIASES {
        let lower = LowerName::of(&owner);
        let Some(place) = zone.look_up(&lower) else {
            return if reply.answers.is_empty() {
                Outcome::Foreign
            } else {
                Outcome::Alias(reply, owner)
            };
        };
        if !zone.synced() {
            return Outcome::Answer(Reply::failure(Explanation::NotReady));
        }
        let asked = Asked { zone, owner: &owner, lower: &lower, place: &place, rotation, most };
        let Some(target) = asked.answer(question.query_type(), &mut reply) else {
            return Outcome::Answer(reply);
        };
        let seen = reply.answers.iter().any(|record| record.name == target);
        if seen {
            break;
        }
        owner = target;
    }
    // Names that lead back to one another: the aliases are all there is to say.
    Outcome::Answer(reply)
}

/// One name of a question: the one asked for, or one that it leads to.
struct Asked<'a> {
    zone: &'a Zone,
    /// As it was written: owners of answers repeat it letter by letter.
    owner: &'a Name,
    lower: &'a LowerName,
    place: &'a Place<'a>,
    rotation: usize,
    /// For how many records there is no room.
    most: usize,
}

impl Asked<'_> {
    /// Adds what the zone says to `reply`; gives the name that an alias leads to.
    fn answer(&self, kind: RecordType, reply: &mut Reply) -> Option<Name> {
        let before = reply.answers.len();
        match &self.place.found {
            Found::Missing => reply.code = ResponseCode::NXDomain,
            Found::Apex => self.apex(kind, reply),
            Found::NameServer => self.name_server(kind, self.owner, &mut reply.answers),
            Found::Version if kind == RecordType::TXT => {
                let version = RData::TXT(TXT::new(vec![VERSION.to_owned()]));
                reply.answers.push(Record::from_rdata(self.owner.clone(), VERSION_TTL, version));
            }
            Found::Service(names) => match &names.own {
                Own::ClusterIps(addresses) | Own::Endpoints(addresses) => match kind {
                    RecordType::SRV => self.services(names, &names.ports, reply),
                    _ => self.addresses(kind, addresses, reply),
                },
                Own::Alias(target) => {
                    return self.alias(kind, target, reply);
                }
            },
            Found::Ports(names, ports) if kind == RecordType::SRV => {
                self.services(names, ports, reply);
            }
            Found::Hosts(names, _) if kind == RecordType::SRV => {
                self.services_of_hosts(names, reply);
            }
            Found::Hosts(_, addresses) => self.addresses(kind, addresses, reply),
            Found::Pod(address) => self.addresses(kind, &[*address].into_iter().collect(), reply),
            Found::Pointers(pointers) if kind == RecordType::PTR => {
                let names = pointers.iter().filter_map(|pointer| self.pointed_to(pointer));
                reply.answers.extend(names.map(|name| self.record(RData::PTR(PTR(name)))));
            }
            // The name exists and holds nothing of that type.
            Found::Empty | Found::Version | Found::Ports(..) | Found::Pointers(_) => {}
        }
        if reply.answers.len() == before {
            self.negative(reply);
        }
        None
    }

    /// What lets clients keep a "there is none" (RFC 2308).
    fn negative(&self, reply: &mut Reply) {
        reply.authorities.push(Record::from_rdata(self.apex_name(), self.ttl(), self.soa()));
    }

    /// How long clients may keep what we say.
    fn ttl(&self) -> u32 {
        self.zone.settings().ttl
    }

    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.owner.clone(), self.ttl(), data)
    }

    /// The top of the zone, with the case in which the question has it.
    fn apex_name(&self) -> Name {
        self.owner.trim_to(self.place.apex_labels)
    }

    fn soa(&self) -> RData {
        let origin = if self.place.reverse {
            // The reverse trees have their names from the cluster's zone.
            self.zone.settings().origin.clone()
        } else {
            self.apex_name()
        };
        let [refresh, retry, expire] = SOA_TIMES.map(u32::cast_signed);
        RData::SOA(SOA::new(
            below(&SOA_SERVER, &origin),
            below(&[SOA_HOST], &origin),
            self.zone.serial(),
            refresh,
            retry,
            expire,
            self.ttl(),
        ))
    }

    fn apex(&self, kind: RecordType, reply: &mut Reply) {
        match kind {
            RecordType::SOA => reply.answers.push(self.record(self.soa())),
            RecordType::NS if !self.place.reverse => {
                let server = below(&SOA_SERVER, &self.apex_name());
                reply.answers.push(self.record(RData::NS(NS(server.clone()))));
                self.name_server(RecordType::A, &server, &mut reply.additionals);
                self.name_server(RecordType::AAAA, &server, &mut reply.additionals);
            }
            _ => {}
        }
    }

    fn name_server(&self, kind: RecordType, owner: &Name, records: &mut Vec<Record>) {
        let addresses: Addresses = self.zone.settings().name_servers.iter().copied().collect();
        push_addresses((kind, self.ttl()), owner, &addresses, ALL, records);
    }

    fn addresses(&self, kind: RecordType, addresses: &Addresses, reply: &mut Reply) {
        let (kind, portion) = ((kind, self.ttl()), (self.rotation, self.most));
        push_addresses(kind, self.owner, addresses, portion, &mut reply.answers);
    }

    fn alias(&self, kind: RecordType, target: &Name, reply: &mut Reply) -> Option<Name> {
        match kind {
            RecordType::A | RecordType::AAAA | RecordType::CNAME => {
                reply.answers.push(self.record(RData::CNAME(CNAME(target.clone()))));
                (kind != RecordType::CNAME).then(|| target.clone())
            }
            // As CoreDNS has it: for other types the name exists and holds nothing.
            _ => {
                self.negative(reply);
                None
            }
        }
    }

    /// SRV for these ports of a Service, and the addresses of their targets beside them.
    fn services(&self, names: &ServiceNames, ports: &[Port], reply: &mut Reply) {
        let service = self.service_name();
        let items: usize = ports
            .iter()
            .map(|port| match &port.targets {
                Targets::Service => names.addresses().map_or(0, Addresses::len),
                Targets::Hosts(hosts) => hosts.len(),
            })
            .sum();
        let weight = weight(items);
        let mut hosts = BTreeSet::new();
        let mut said = BTreeSet::new();
        for port in ports {
            let srv = |target| self.record(RData::SRV(SRV::new(0, weight, port.number, target)));
            match &port.targets {
                // One number may be open by TCP and by UDP, which SRV does not tell apart here.
                Targets::Service => {
                    if said.insert((port.number, String::new())) {
                        reply.answers.push(srv(service.clone()));
                    }
                }
                Targets::Hosts(all) => {
                    // Those of one name are next to each other.
                    let mut before = None;
                    for at in all {
                        if reply.answers.len() >= self.most {
                            // It will be cut, and then nothing is said beside it.
                            return;
                        }
                        let Some(host) = names.hosts.get(*at as usize) else { continue };
                        if hosts.len() < self.most {
                            hosts.insert(*at);
                        }
                        if host.hostname.is_some() && host.hostname == before {
                            continue;
                        }
                        let label = host.label();
                        if said.insert((port.number, label.clone())) {
                            reply.answers.push(srv(below(&[&label], &service)));
                        }
                        before = host.hostname;
                    }
                }
            }
        }
        if let Own::ClusterIps(addresses) = &names.own
            && !ports.is_empty()
        {
            push_both(self.ttl(), &service, addresses, &mut reply.additionals);
        }
        if self.has_no_room(reply.answers.len() + hosts.len()) {
            return;
        }
        for host in hosts.into_iter().filter_map(|at| names.hosts.get(at as usize)) {
            let owner = below(&[&host.label()], &service);
            let addresses = [host.address].into_iter().collect();
            push_both(self.ttl(), &owner, &addresses, &mut reply.additionals);
        }
    }

    /// Whether so many records fit nowhere: what is beside an answer is said whole or not at all.
    fn has_no_room(&self, records: usize) -> bool {
        records >= self.most
    }

    /// SRV for the ports of the endpoints with this name, each with all of their addresses beside it.
    fn services_of_hosts(&self, names: &ServiceNames, reply: &mut Reply) {
        let places = names.hosts.places(self.lower.label(0));
        let served: Vec<(u16, &[u32])> = names
            .ports_of_hosts()
            .iter()
            .filter_map(|port| match &port.targets {
                Targets::Hosts(all) => Some((port.number, within(all, &places))),
                Targets::Service => None,
            })
            .collect();
        let weight = weight(served.iter().map(|(_, hosts)| hosts.len()).sum());
        let Some(label) = names.hosts.get(places.start).map(|host| host.label()) else { return };
        let target = below(&[&label], &self.service_name());
        let serving = served.iter().filter(|(_, hosts)| !hosts.is_empty());
        let numbers: BTreeSet<u16> = serving.map(|(number, _)| *number).collect();
        for number in numbers {
            let srv = RData::SRV(SRV::new(0, weight, number, target.clone()));
            reply.answers.push(self.record(srv));
        }
        let widest = served.iter().map(|(_, hosts)| hosts.len()).max().unwrap_or(0);
        if self.has_no_room(reply.answers.len() + widest) {
            return;
        }
        let hosts: BTreeSet<u32> = served.iter().flat_map(|(_, hosts)| *hosts).copied().collect();
        let hosts = hosts.into_iter().filter_map(|at| names.hosts.get(at as usize));
        let addresses: Addresses = hosts.map(|host| host.address).collect();
        push_both(self.ttl(), &target, &addresses, &mut reply.additionals);
    }

    /// The full name of the Service at or above this name: its own labels in lower case, as the
    /// API has them, the zone's as they were asked for.
    fn service_name(&self) -> Name {
        let labels = self.lower.label_count();
        let first = labels.saturating_sub(self.place.apex_labels + 3);
        let own = (first..first + 3).map(|index| self.lower.label(index));
        joined(own, &self.apex_name())
    }

    fn pointed_to(&self, pointer: &Pointer) -> Option<Name> {
        let host = pointer.host.as_ref().map(Host::label);
        let labels = [&*pointer.service.name, &*pointer.service.namespace, "svc"];
        let labels = host.as_deref().into_iter().chain(labels).map(str::as_bytes);
        Name::from_labels(labels).ok()?.append_domain(&self.zone.settings().origin).ok()
    }
}

/// The weight of each of so many targets, as CoreDNS has it.
fn weight(items: usize) -> u16 {
    u16::try_from(100 / items.max(1)).unwrap_or(100).max(1)
}

/// Of places in their order those in `range`.
fn within<'a>(all: &'a [u32], range: &Range<usize>) -> &'a [u32] {
    let from = all.partition_point(|at| (*at as usize) < range.start);
    let until = all.partition_point(|at| (*at as usize) < range.end);
    &all[from..until]
}

/// All addresses, in their order: where to begin, and how many.
const ALL: (usize, usize) = (0, usize::MAX);

fn push_both(ttl: u32, owner: &Name, addresses: &Addresses, records: &mut Vec<Record>) {
    push_addresses((RecordType::A, ttl), owner, addresses, ALL, records);
    push_addresses((RecordType::AAAA, ttl), owner, addresses, ALL, records);
}

fn push_addresses(
    (kind, ttl): (RecordType, u32),
    owner: &Name,
    addresses: &Addresses,
    (rotation, most): (usize, usize),
    records: &mut Vec<Record>,
) {
    let record = |data| Record::from_rdata(owner.clone(), ttl, data);
    match kind {
        RecordType::A => {
            let data = rotated(&addresses.v4, rotation).map(|address| RData::A(A(address)));
            records.extend(data.take(most).map(record));
        }
        RecordType::AAAA => {
            let data = rotated(&addresses.v6, rotation).map(|address| RData::AAAA(AAAA(address)));
            records.extend(data.take(most).map(record));
        }
        _ => {}
    }
}

/// The elements of `all` in their order, beginning with another one each time.
fn rotated<T: Copy>(all: &[T], rotation: usize) -> impl Iterator<Item = T> {
    let start = rotation.checked_rem(all.len()).unwrap_or(0);
    all[start..].iter().chain(&all[..start]).copied()
}

/// The name of these labels below `origin`.
fn below(labels: &[&str], origin: &Name) -> Name {
    joined(labels.iter().map(|label| label.as_bytes()), origin)
}

/// A name that is too long to exist is said as its origin: only a cluster domain of more than a
/// hundred octets together with the longest names leads there.
fn joined<'a>(labels: impl Iterator<Item = &'a [u8]>, origin: &Name) -> Name {
    Name::from_labels(labels)
        .and_then(|name| name.append_domain(origin))
        .unwrap_or_else(|_| origin.clone())
}

#[cfg(test)]
mod tests;
