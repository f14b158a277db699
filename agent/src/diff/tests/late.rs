//! Agents that end and start: ids stay with endpoints that take no new flows, and what was deleted
//! meanwhile is made up for, as far as the tables tell.

use std::net::SocketAddr;

use mizzen_ebpf_abi::service::{RESERVED, backend_flags};

use super::{
    gone::{Kind, first},
    *,
};
use crate::{
    desired::SetKey,
    diff::{diff, late::late, plan::Reset},
    model::service::Protocol,
};

/// An agent that begins with these tables; whom its first plan has reset.
fn start(maps: MemoryMaps, snapshot: &Snapshot) -> (Agent, Vec<Reset>) {
    let mut agent = Agent::start(maps, snapshot);
    let everything = agent.desired.everything();
    let spares = |key: &SetKey| agent.desired.spares(&key.service);
    let late = late(agent.maps.tables(), &mut agent.known, &everything, spares);
    agent.known.resume(late);
    let resets = agent.resync().resets;
    assert_exact(&agent);
    (agent, resets)
}

/// An agent that begins where another ended.
fn next(before: Agent, kind: Kind, states: &str) -> (Agent, Vec<Reset>) {
    start(before.maps, &kind.cluster(states))
}

/// Whose flows are reset: the endpoint, and the id that flows name.
fn whom(resets: &[Reset]) -> Vec<(SocketAddr, Option<u32>)> {
    resets.iter().map(|reset| (reset.endpoint, reset.backend)).collect()
}

const GONE: u16 = backend_flags::FREED | backend_flags::GONE;

#[test]
fn v8_an_id_is_its_endpoints_after_a_restart_and_when_the_tables_are_read_anew() {
    for (kind, restarts) in Kind::ALL.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let mut agent = kind.following("rr");
        let at = first(&agent).at;
        assert_eq!(agent.meet(&kind.cluster("tr")), [], "it only terminates");
        let writes = agent.maps.writes();
        if restarts {
            let resets;
            (agent, resets) = next(agent, kind, "tr");
            assert_eq!(resets, []);
        } else {
            let everything = agent.desired.everything();
            let room = Room { now: agent.maps.capacities(), ..Room::default() };
            agent.known = restore(&agent.maps.dump().unwrap(), &everything, room);
            assert!(agent.resync().is_empty());
        }
        assert_eq!(agent.maps.writes(), writes, "{kind:?}: nothing changed");
        assert_eq!(agent.meet(&kind.cluster("-r")), []);
        let resets = agent.settle();
        assert_eq!(whom(&resets), [(SocketAddr::from(at), Some(1))], "{kind:?}");
        let record = first(&agent);
        assert_eq!((record.flags, record.owner, record.at), (GONE, NO_SET, at), "{kind:?}");
    }
}

#[test]
fn v8_an_endpoint_that_is_ready_again_after_a_restart_has_the_id_that_it_had() {
    for kind in Kind::ALL {
        let mut agent = kind.following("rr");
        let before = agent.maps.tables().clone();
        assert_eq!(agent.meet(&kind.cluster("ur")), []);
        let (mut agent, _) = next(agent, kind, "ur");
        assert_eq!(agent.meet(&kind.cluster("rr")), []);
        let tables = agent.maps.tables();
        assert_eq!((&tables.backends4, &tables.backends6), (&before.backends4, &before.backends6));
    }
}

/// What became of the first endpoint while no agent ran, by what it was before.
#[test]
fn u02_b106_v8_deletions_that_no_agent_saw_are_made_up_for() {
    for kind in Kind::ALL {
        let udp = kind.protocol == Protocol::Udp;
        for (before, is_reset) in [("rr", udp), ("ur", udp), ("nr", udp), ("tr", true)] {
            let case = format!("{kind:?}, {before}");
            let mut agent = kind.following("rr");
            let at = first(&agent).at;
            let _ = agent.meet(&kind.cluster(before));
            let (agent, resets) = next(agent, kind, "-r");
            let expected = [(SocketAddr::from(at), Some(1))];
            assert_eq!(whom(&resets), expected[..usize::from(is_reset)], "{case}");
            assert!(resets.iter().all(|reset| reset.protocol == kind.protocol), "{case}");
            let flags = first(&agent).flags;
            assert_eq!(flags & backend_flags::GONE != 0, is_reset, "{case}: {flags:#x}");
            let writes = agent.maps.writes();
            let (agent, again) = next(agent, kind, "-r");
            assert_eq!(
                (again, agent.maps.writes()),
                (Vec::new(), writes),
                "{case}: once is enough"
            );
        }
    }
}

/// The first plan of the agent that finds it fails, and the tables are read anew.
#[test]
fn v8_deletions_that_no_agent_saw_are_told_by_the_plan_after_one_that_failed() {
    for kind in Kind::ALL {
        let mut before = kind.following("rr");
        let _ = before.meet(&kind.cluster("tr"));
        let mut agent = Agent::start(before.maps, &kind.cluster("-r"));
        let everything = agent.desired.everything();
        let unseen = late(agent.maps.tables(), &mut agent.known, &everything, |_| false);
        let room = Room { now: agent.maps.capacities(), ..Room::default() };
        agent.known = restore(&agent.maps.dump().unwrap(), &everything, room);
        agent.known.resume(unseen);
        assert_eq!(agent.resync().resets.len(), 1, "{kind:?}");
        assert_exact(&agent);
        let flags = first(&agent).flags;
        assert_ne!(flags & backend_flags::GONE, 0, "{kind:?}: {flags:#x}");
    }
}

/// The same of what was idle when its service went.
#[test]
fn b106_datagram_sockets_of_what_drained_end_though_its_service_went_while_no_agent_ran() {
    for kind in Kind::ALL {
        let mut agent = kind.following("rr");
        let _ = agent.meet(&kind.cluster("tr"));
        let (agent, resets) = start(agent.maps, &Snapshot::default());
        let udp = kind.protocol == Protocol::Udp;
        assert_eq!(resets.len(), if udp { 2 } else { 0 }, "{kind:?}");
        let writes = agent.maps.writes();
        let (agent, again) = start(agent.maps, &Snapshot::default());
        assert_eq!((again.len(), agent.maps.writes()), (0, writes), "{kind:?}");
    }
}

/// What left by a change of labels before its service went lives, for all that is known.
#[test]
fn b106_what_was_seen_to_leave_otherwise_is_spared_though_its_service_went_while_no_agent_ran() {
    for kind in Kind::ALL.map(|kind| Kind { local: true, ..kind }) {
        let mut agent = kind.following("rr");
        let at = SocketAddr::from(first(&agent).at);
        assert_eq!(agent.meet(&kind.cluster("-r")), [], "a change of labels");
        let (_, resets) = start(agent.maps, &Snapshot::default());
        let udp = kind.protocol == Protocol::Udp;
        assert_eq!(resets.len(), usize::from(udp), "{kind:?}: the one that was ready");
        assert!(resets.iter().all(|reset| reset.endpoint != at), "{kind:?}");
    }
}

#[test]
fn v8_no_agent_ends_what_a_service_wants_spared_or_what_was_seen_to_leave_otherwise() {
    for kind in Kind::ALL {
        for states in ["rr", "tr"] {
            let kind = Kind { spares: true, ..kind };
            let mut agent = kind.following("rr");
            let _ = agent.meet(&kind.cluster(states));
            assert_eq!(next(agent, kind, "-r").1, [], "{kind:?}");
        }
        let kind = Kind { local: true, ..kind };
        let mut agent = kind.following("rr");
        assert_eq!(agent.meet(&kind.cluster("-r")), [], "a change of labels");
        assert_eq!(first(&agent).flags, backend_flags::FREED | backend_flags::STRAY);
        assert_eq!(next(agent, kind, "-r").1, [], "{kind:?}");
    }
}

#[test]
fn b106_sockets_of_a_udp_service_that_went_while_no_agent_ran_are_ended() {
    for kind in Kind::ALL {
        let agent = kind.following("rr");
        let set = first(&agent).owner;
        let generation = agent.maps.tables().sets[&set].generation();
        let (_, resets) = start(agent.maps, &Snapshot::default());
        let udp = kind.protocol == Protocol::Udp;
        assert_eq!(resets.len(), if udp { 2 } else { 0 }, "{kind:?}");
        let expected = (set, Protocol::Udp, generation);
        assert!(resets.iter().all(|of| (of.set, of.protocol, of.generation) == expected));
    }
}

/// The plan is made, and its agent killed before it is known that no program holds what it unlinked.
/// Somebody else may have the address by then.
#[test]
fn v8_d4_what_a_killed_agent_was_to_reset_the_next_one_does() {
    for (kind, heir) in Kind::ALL.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let case = format!("{kind:?}, heir: {heir}");
        let mut agent = kind.following("rr");
        let (set, at) = (first(&agent).owner, first(&agent).at);
        let generation = agent.maps.tables().sets[&set].generation();
        let key = agent.desired.sets().next().map(|(key, _)| key.clone()).unwrap();
        let states = if heir { "rr" } else { "-r" };
        let _ = agent.desired.update(&kind.cluster(states), &NodeFacts::default());
        let change = Change { deleted: [(key, [at].into())].into(), ..agent.desired.everything() };
        let plan = diff(&change, &mut agent.known);
        apply(&plan, &mut agent.maps).unwrap();

        let (agent, resets) = next(agent, kind, states);
        let (protocol, endpoint, backend) = (kind.protocol, at.into(), Some(1));
        assert_eq!(resets, [Reset { set, protocol, endpoint, generation, backend }], "{case}");
        assert_eq!((first(&agent).flags, first(&agent).owner), (GONE, NO_SET), "{case}");
        assert_eq!(next(agent, kind, states).1, [], "{case}");
    }
}

/// Likewise where all that was planned is that an endpoint takes no more.
#[test]
fn v8_d4_that_an_endpoint_terminated_is_told_by_an_agent_that_was_killed() {
    for kind in Kind::ALL {
        let mut agent = kind.following("rr");
        let (set, at) = (first(&agent).owner, first(&agent).at);
        let change = agent.desired.update(&kind.cluster("tr"), &NodeFacts::default());
        let plan = diff(&change, &mut agent.known);
        apply(&plan, &mut agent.maps).unwrap();
        assert_eq!(first(&agent).owner, set, "no barrier was over");
        let (agent, resets) = next(agent, kind, "-r");
        assert_eq!(whom(&resets), [(SocketAddr::from(at), Some(1))], "{kind:?}");
        assert_eq!(first(&agent).flags, GONE);
    }
}

/// A record that nobody wants any more is as any that is freed: its id is given out again.
#[test]
fn d4_ids_that_are_reserved_for_nobody_are_free() {
    let kind = Kind { local: true, ..Kind::ALL[0] };
    let mut agent = kind.following("rr");
    let set = first(&agent).owner;
    assert_eq!(agent.meet(&kind.cluster("-r")), []);
    assert_eq!(first(&agent).owner, set | RESERVED);
    let (agent, _) = next(agent, kind, "-r");
    assert_eq!(agent.known.backend_ids[0].in_use(), 2, "0, and the one that is ready");
}
