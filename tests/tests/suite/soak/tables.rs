//! The kernel's tables under churn and under aborts, while sockets dial: no dial fails, none is
//! answered by a backend of another service, and no program ever meets a slot that leads to a
//! backend that is not its set's (reference R1, R7).

use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed};

use mizzen_agent::{
    apply::{
        lookup,
        maps::{Maps as _, MapsError},
        stepwise::{Step, Stepwise, Witness},
    },
    datapath::{Datapath, KernelMaps},
    model::snapshot::Snapshot,
};
use mizzen_ebpf_abi::counters::Counter;
use mizzen_tests::{
    actor::Actor,
    backend::Backend,
    lab::{FAMILIES, Family},
    node::TestNode,
    soak::{Dice, share},
};
use xtask::preemption::Preemption;

use super::cluster::{Agent, PORT, add_service, empty, set_endpoints};

/// Servers of each of the two services that are dialled.
const SERVERS: u8 = 4;
/// Flips of sets in each family, in full: a million in all.
const FLIPS: u64 = 500_000;
/// Services that only change, and are dialled by nobody.
const OTHERS: u8 = 100;

/// A node with two services under load, each with servers of its own.
struct Bench {
    family: Family,
    pools: [Vec<SocketAddr>; 2],
    actors: Vec<Actor>,
    datapath: Datapath,
    _servers: Vec<Backend>,
    _node: TestNode,
}

impl Bench {
    fn new(family: Family) -> Self {
        let node = TestNode::new("soak");
        let mut servers = Vec::new();
        let pools = ["x", "y"].map(|service| {
            let first = if service == "x" { 1 } else { 101 };
            let pool: Vec<SocketAddr> = (first..first + SERVERS)
                .map(|last| SocketAddr::new(family.pod(0, last), 8080))
                .collect();
            for addr in &pool {
                node.add_address(addr.ip());
                servers.push(Backend::start(&node.netns, *addr, service));
            }
            pool
        });
        let datapath = node.open();
        datapath.attach_sockets().unwrap();
        let actors = (0..4).map(|_| node.actor()).collect();
        Self { family, pools, actors, datapath, _servers: servers, _node: node }
    }

    /// All services with all their endpoints.
    fn snapshot(&self) -> Snapshot {
        let mut snapshot = empty();
        for (name, vip, pool) in self.services() {
            add_service(&mut snapshot, &name, vip);
            set_endpoints(&mut snapshot, &name, pool);
        }
        snapshot
    }

    /// Name, address and possible endpoints of every service.
    fn services(&self) -> impl Iterator<Item = (String, std::net::IpAddr, &Vec<SocketAddr>)> {
        (0..OTHERS + 2).map(|number| {
            let name = match number {
                0 => "x".to_owned(),
                1 => "y".to_owned(),
                _ => format!("other-{number}"),
            };
            let pool = &self.pools[usize::from(number) % 2];
            (name, self.family.service(10 + number), pool)
        })
    }

    fn start_load(&mut self) {
        let version = if self.family == Family::V4 { 4 } else { 6 };
        let kinds = ["tcp", "udp"].map(|kind| format!("{kind}{version}"));
        let targets = ["x", "y"].into_iter().zip([10, 11]);
        let jobs: Vec<_> =
            targets.flat_map(|target| kinds.iter().map(move |kind| (target, kind))).collect();
        for (actor, ((name, last), kind)) in self.actors.iter_mut().zip(jobs) {
            actor.load_of(kind, SocketAddr::new(self.family.service(last), PORT), name);
        }
    }

    fn end_load(&mut self, told: &str) {
        for actor in &mut self.actors {
            let load = actor.stop();
            assert_eq!(load.failed, 0, "{told}: {}", load.first_failure);
            assert!(load.done > 10, "{told}: {load:?}");
        }
        for counter in [Counter::ForeignRange, Counter::ForeignBackend] {
            let counted = self.datapath.counters().unwrap().get(counter).unwrap();
            assert_eq!(counted, 0, "{told}: {}", counter.name());
        }
    }
}

/// Endpoints of all services come and go; each flip of a set is a step.
#[test]
fn r07_no_step_of_churn_leads_astray() {
    for family in FAMILIES {
        let mut dice = Dice::new();
        let told = format!("{family:?}, seed {}", dice.seed);
        let mut bench = Bench::new(family);
        let mut snapshot = bench.snapshot();
        let mut agent = Agent::start(Box::new(bench.datapath.maps().unwrap()));
        assert!(agent.follow(&snapshot), "{told}");
        bench.start_load();
        let flips = |agent: &Agent| agent.metrics.set_flips.load(Relaxed);
        while flips(&agent) < share(FLIPS) {
            for (name, _, pool) in bench.services() {
                set_endpoints(&mut snapshot, &name, &dice.some(pool));
            }
            snapshot.revision += 1;
            assert!(agent.follow(&snapshot), "{told}");
            if dice.once_in(20) {
                agent = Agent::resumed(&agent, Box::new(bench.datapath.maps().unwrap()));
            }
        }
        bench.end_load(&told);
        let (flips, preemption) = (flips(&agent), Preemption::of_kernel());
        println!("{told}: none led astray by {flips} flips; preemption model {preemption}");
    }
}

/// A plan is cut off at each of its writes in turn, and the next agent takes over what is there.
#[test]
fn r01_an_abort_at_any_write_is_noticed_by_nobody() {
    for family in FAMILIES {
        let mut dice = Dice::new();
        let told = format!("{family:?}, seed {}", dice.seed);
        let mut bench = Bench::new(family);
        let mut snapshot = bench.snapshot();
        assert!(Agent::start(Box::new(bench.datapath.maps().unwrap())).follow(&snapshot));
        bench.start_load();
        let rounds = share(20);
        for round in 0..rounds {
            // Each round changes a few services, and adds one or takes it away.
            let extra = "other-extra";
            for write in 0.. {
                for (name, _, pool) in bench.services().take(4) {
                    set_endpoints(&mut snapshot, &name, &dice.some(pool));
                }
                if write % 2 == 0 {
                    add_service(&mut snapshot, extra, family.service(250));
                    set_endpoints(&mut snapshot, extra, &bench.pools[0]);
                } else {
                    snapshot
                        .services
                        .remove(&mizzen_agent::model::ObjectKey::new("default", extra));
                }
                snapshot.revision += 1;
                let maps = bench.datapath.maps().unwrap();
                let aborting = Stepwise { maps, witness: Dying { left: write } };
                let whole = Agent::start(Box::new(aborting)).follow(&snapshot);
                sound(&bench.datapath, &format!("{told}, round {round}, cut off at {write}"));
                if whole {
                    assert!(write > 10, "{told}: a plan of {write} writes");
                    break;
                }
                let mut next = Agent::start(Box::new(bench.datapath.maps().unwrap()));
                assert!(next.follow(&snapshot), "{told}");
            }
        }
        bench.end_load(&told);
    }
}

/// Every frontend leads to backends of its own set.
pub(super) fn sound(datapath: &Datapath, told: &str) {
    let tables = datapath.maps().unwrap().dump().unwrap();
    for (key, found) in lookup::everything(&tables) {
        assert!(found.is_ok(), "{told}: {key:?}: {found:?}");
    }
}

/// A writer that dies: after so many writes every call fails.
pub(super) struct Dying {
    pub(super) left: u64,
}

impl Witness<KernelMaps> for Dying {
    fn before(&mut self, _: Step, _: &KernelMaps) -> Result<(), MapsError> {
        self.left = self.left.checked_sub(1).ok_or_else(|| MapsError::Kernel {
            operation: "write to",
            map: "any",
            object: "an element".to_owned(),
            source: "the writer died".into(),
        })?;
        Ok(())
    }
}
