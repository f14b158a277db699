//! Who was sent what, by the names that people know: pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use super::{Counted, SocketTraffic, Traffic};
use crate::desired::SetKey;

/// One service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTraffic {
    /// Which.
    pub key: SetKey,
    /// The number of its set in the tables.
    pub set: u32,
    /// What all its backends were sent since there is such a port, former ones included.
    pub total: Traffic,
    /// Its backends at present.
    pub backends: Vec<BackendTraffic>,
}

/// One backend of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendTraffic {
    /// Where it is.
    pub at: SocketAddr,
    /// Its id in the tables: while it has it, its counters only grow.
    pub id: u32,
    /// What it was sent.
    pub traffic: Traffic,
}

/// A set of the tables, as far as counters need to know it.
#[derive(Clone, Debug)]
pub struct KnownSet {
    /// Whose it is.
    pub key: SetKey,
    /// Its number.
    pub set: u32,
    /// Its backends at present, by id.
    pub backends: Vec<(u32, SocketAddr)>,
}

/// Everything that was counted, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// The service ports, in the order of their names.
    pub ports: Vec<PortTraffic>,
    /// Whose each id's counters are, by family (IPv6 or not) and id.
    owners: BTreeMap<(bool, u32), u32>,
}

/// The backend that live sockets were led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Led {
    /// The set that it was chosen from.
    pub set: u32,
    /// Its id when it was chosen.
    pub id: u32,
    /// [`mizzen_ebpf_abi::traffic::owner`].
    pub owner: u32,
    /// Where it is.
    pub at: SocketAddr,
}

/// What live sockets sent so far, by backend.
pub type Live = BTreeMap<Led, SocketTraffic>;

impl Accounts {
    /// Gives what was counted to those that have the names. What is no set's that there is counts
    /// for nobody.
    pub fn new(counted: impl IntoIterator<Item = Counted>, sets: Vec<KnownSet>) -> Self {
        let mut totals: BTreeMap<u32, Traffic> = BTreeMap::new();
        let mut single: BTreeMap<(bool, u32), Counted> = BTreeMap::new();
        let mut owners = BTreeMap::new();
        for counted in counted {
            *totals.entry(counted.set).or_default() += counted.traffic;
            if let Some(tenant) = counted.backend {
                owners.insert((tenant.ipv6, tenant.id), tenant.owner);
                if !counted.traffic.is_none() {
                    single.insert((tenant.ipv6, tenant.id), counted);
                }
            }
        }
        let port = |KnownSet { key, set, backends }: KnownSet| {
            let backend = |(id, at): (u32, SocketAddr)| {
                let counted = single.get(&(key.ipv6, id)).filter(|counted| counted.set == set);
                let traffic = counted.map(|counted| counted.traffic).unwrap_or_default();
                BackendTraffic { at, id, traffic }
            };
            let mut backends: Vec<_> = backends.into_iter().map(backend).collect();
            backends.sort_unstable_by_key(|backend| backend.at);
            let total = totals.get(&set).copied().unwrap_or_default();
            PortTraffic { key, set, total, backends }
        };
        let mut ports: Vec<PortTraffic> = sets.into_iter().map(port).collect();
        ports.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Self { ports, owners }
    }

    /// Adds what sockets sent that live. Those of a backend whose id another has now will count
    /// for nobody when they end, and don't before.
    pub fn add(&mut self, live: &Live) {
        let mut sets: BTreeMap<u32, Vec<(&Led, &SocketTraffic)>> = BTreeMap::new();
        for (led, sockets) in live {
            let family = matches!(led.at.ip(), IpAddr::V6(_));
            if self.owners.get(&(family, led.id)) == Some(&led.owner) {
                sets.entry(led.set).or_default().push((led, sockets));
            }
        }
        for port in &mut self.ports {
            for (led, sockets) in sets.remove(&port.set).unwrap_or_default() {
                let more = Traffic { sockets: *sockets, ..Traffic::default() };
                port.total += more;
                let its = port.backends.iter_mut().find(|its| (its.id, its.at) == (led.id, led.at));
                if let Some(backend) = its {
                    backend.traffic += more;
                }
            }
        }
    }

    /// Keeps counters from falling below what they were the last time, as far as they are the same
    /// ones; what they are now is the next time's measure.
    pub fn not_below(&mut self, highest: &mut Highest) {
        let before = std::mem::take(&mut highest.0);
        for port in &mut self.ports {
            let floor = before.get(&port.key).filter(|floor| floor.set == port.set);
            if let Some(floor) = floor {
                port.total.not_below(floor.total);
                for backend in &mut port.backends {
                    let floor = floor.backends.get(&backend.id).copied();
                    backend.traffic.not_below(floor.unwrap_or_default());
                }
            }
            if !port.total.is_none() {
                let some = port.backends.iter().filter(|backend| !backend.traffic.is_none());
                let backends = some.map(|backend| (backend.id, backend.traffic)).collect();
                let floor = Floor { set: port.set, total: port.total, backends };
                highest.0.insert(port.key.clone(), floor);
            }
        }
    }
}

/// What counters were when they were last told.
#[derive(Debug, Default)]
pub struct Highest(BTreeMap<SetKey, Floor>);

#[derive(Debug)]
struct Floor {
    set: u32,
    total: Traffic,
    backends: BTreeMap<u32, Traffic>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{ObjectKey, service::Protocol},
        traffic::Tenant,
    };

    const SET: u32 = 3;

    fn key(name: &str, ipv6: bool) -> SetKey {
        let service = ObjectKey::new("ns", name);
        SetKey { service, port: "http".into(), protocol: Protocol::Tcp, ipv6 }
    }

    fn at(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 80).into()
    }

    fn traffic(connections: u64, sent_bytes: u64) -> Traffic {
        let sockets = SocketTraffic { connections, sent_bytes, ..SocketTraffic::default() };
        Traffic { sockets, ..Traffic::default() }
    }

    fn counted(set: u32, id: u32, owner: u32, traffic: Traffic) -> Counted {
        Counted { set, backend: Some(Tenant { id, ipv6: false, owner }), traffic }
    }

    fn known(backends: &[(u32, u8)]) -> Vec<KnownSet> {
        let backends = backends.iter().map(|(id, last)| (*id, at(*last))).collect();
        vec![KnownSet { key: key("a", false), set: SET, backends }]
    }

    #[test]
    fn a_port_has_the_sum_of_its_backends_former_ones_included() {
        let all = [
            counted(SET, 1, 11, traffic(1, 10)),
            counted(SET, 2, 12, traffic(2, 20)),
            counted(9, 4, 14, traffic(9, 9)),
            Counted { set: SET, backend: None, traffic: traffic(4, 40) },
            // Free, and not another's yet.
            counted(SET, 3, 13, traffic(8, 80)),
        ];
        // The id 4 was another set's: its record is not written yet, as when a plan runs.
        let accounts = Accounts::new(all, known(&[(2, 2), (1, 1), (4, 4)]));
        let [port] = &accounts.ports[..] else { panic!("one set is known: {accounts:?}") };
        assert_eq!(port.total, traffic(15, 150));
        let each: Vec<_> = port.backends.iter().map(|of| (of.at, of.traffic)).collect();
        assert_eq!(
            each,
            [(at(1), traffic(1, 10)), (at(2), traffic(2, 20)), (at(4), traffic(0, 0))]
        );
    }

    #[test]
    fn ids_of_both_families_are_apart() {
        let tenant = Tenant { id: 1, ipv6: true, owner: 7 };
        let six = Counted { set: SET, backend: Some(tenant), traffic: traffic(1, 1) };
        let accounts = Accounts::new([six], known(&[(1, 1)]));
        assert_eq!(accounts.ports[0].backends[0].traffic, Traffic::default());
    }

    #[test]
    fn live_sockets_count_for_whom_they_will_count_when_they_end() {
        let all = [counted(SET, 1, 11, traffic(1, 10)), counted(SET, 2, 12, traffic(1, 0))];
        let live = |id, owner, last| {
            let led = Led { set: SET, id, owner, at: at(last) };
            (led, SocketTraffic { open: 1, sent_bytes: 5, ..SocketTraffic::default() })
        };
        let mut accounts = Accounts::new(all, known(&[(1, 1)]));
        accounts.add(&Live::from([
            live(1, 11, 1),
            live(2, 12, 2), // draining: its endpoint left
            live(1, 99, 8), // of the one that had the id before
            live(7, 17, 7), // of an id that nobody has
        ]));
        let port = &accounts.ports[0];
        assert_eq!((port.total.sockets.open, port.total.sockets.sent_bytes), (2, 20));
        let its = port.backends[0].traffic.sockets;
        assert_eq!((its.open, its.sent_bytes, its.connections), (1, 15, 1));
    }

    #[test]
    fn what_is_told_never_falls_but_for_new_ones() {
        let of = |connections, sent| {
            Accounts::new([counted(SET, 1, 11, traffic(connections, sent))], known(&[(1, 1)]))
        };
        let mut highest = Highest::default();
        let told = |mut accounts: Accounts, highest: &mut Highest| {
            accounts.not_below(highest);
            let port = &accounts.ports[0];
            (port.total.sockets.sent_bytes, port.backends[0].traffic.sockets.sent_bytes)
        };
        let open = |mut accounts: Accounts, open| {
            accounts.ports[0].total.sockets.open = open;
            accounts
        };
        assert_eq!(told(open(of(1, 10), 3), &mut highest), (10, 10));
        // Between two looks a connection ended that was live.
        let mut later = open(of(1, 4), 1);
        later.not_below(&mut highest);
        assert_eq!(later.ports[0].total.sockets.sent_bytes, 10);
        assert_eq!(later.ports[0].total.sockets.open, 1, "what is open may fall");
        assert_eq!(told(of(2, 12), &mut highest), (12, 12));
        // The endpoint came back with another id, the service with another set.
        let mut back = Accounts::new([counted(SET, 2, 12, traffic(1, 1))], known(&[(2, 1)]));
        back.not_below(&mut highest);
        assert_eq!(back.ports[0].backends[0].traffic, traffic(1, 1));
        let mut again = of(1, 1);
        again.ports[0].set = SET + 1;
        assert_eq!(told(again, &mut highest), (1, 1));
    }
}
