//! Source ranges in tables that have no room for them.

use super::*;
use crate::{diff::plan::Op, model::ObjectKey};

/// `default/only` with a load balancer address and these ranges.
pub(super) fn cluster(address: u8, ranges: Option<&[&str]>) -> Snapshot {
    let mut snapshot = one_service(1).snapshot();
    let key = ObjectKey::new("default", "only");
    let service = Arc::make_mut(&mut snapshot.services[&key]);
    service.load_balancer_ips = vec![[192, 0, 2, address].into()];
    service.source_ranges =
        ranges.map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect());
    snapshot
}

/// An agent whose tables hold two source ranges at most.
fn agent(snapshot: &Snapshot) -> Agent {
    let max = Capacities { source_ranges: 2, ..Capacities::MAX };
    let mut agent = Agent::start(MemoryMaps::default(), snapshot);
    agent.known = Known::empty(Room { max, ..Room::default() });
    agent
}

/// Whether a client may use the load balancer address; `None` where it is not served.
pub(super) fn admitted(agent: &Agent, address: u8, client: &str) -> Option<bool> {
    let tables = agent.maps.tables();
    let addr = IpAddr::from([192, 0, 2, address]);
    let frontend = tables.frontends.get(&FrontendKey::new(addr.into(), 80, 6))?;
    Some(admits(tables, frontend, client.parse().unwrap()))
}

fn change(agent: &mut Agent, snapshot: &Snapshot) -> Vec<String> {
    let change = agent.desired.update(snapshot, &NodeFacts::default());
    let plan = agent.plan(&change);
    apply(&plan, &mut agent.maps).unwrap();
    plan.refused.iter().map(ToString::to_string).collect()
}

#[test]
fn b56_who_may_use_an_address_no_more_may_not_however_full_the_table_is() {
    let mut agent = agent(&cluster(1, Some(&["10.0.0.0/8"])));
    let _ = agent.resync();
    assert_eq!(admitted(&agent, 1, "10.0.0.1"), Some(true));
    assert_eq!(admitted(&agent, 1, "172.16.0.1"), Some(false));

    let three = ["172.16.0.0/12", "198.51.100.0/24", "203.0.113.0/24"];
    let next = Snapshot { revision: 2, ..cluster(1, Some(&three)) };
    let text = "map SOURCE_RANGES is full with its 2 entries, default/only:p0/TCP/ipv4 is closed \
                to clients in 198.51.100.0/24 and 1 more ranges";
    assert_eq!(change(&mut agent, &next), [text]);
    assert_eq!(admitted(&agent, 1, "10.0.0.1"), Some(false));
    assert_eq!(admitted(&agent, 1, "172.16.0.1"), Some(true));
    assert_eq!(admitted(&agent, 1, "203.0.113.1"), Some(false));

    // What that plan removed makes room for the next.
    let plan = agent.resync();
    assert_eq!(plan.refused.len(), 1);
    assert_eq!(admitted(&agent, 1, "198.51.100.1"), Some(true));

    // An address that comes meanwhile is as closed.
    let next = Snapshot { revision: 3, ..cluster(2, Some(&three)) };
    assert_eq!(change(&mut agent, &next).len(), 1);
    assert_eq!(admitted(&agent, 2, "172.16.0.1"), Some(true));
    assert_eq!(admitted(&agent, 2, "203.0.113.1"), Some(false));

    let next = Snapshot { revision: 4, ..cluster(2, Some(&three[..1])) };
    assert_eq!(change(&mut agent, &next), [""; 0]);
    assert_exact(&agent);
}

#[test]
fn b56_a_service_that_is_restricted_now_does_not_stay_open_for_want_of_room() {
    let mut agent = agent(&cluster(1, None));
    let _ = agent.resync();
    assert_eq!(admitted(&agent, 1, "172.16.0.1"), Some(true));
    agent.known.room.max.source_ranges = 0;
    let next = Snapshot { revision: 2, ..cluster(1, Some(&["10.0.0.0/8"])) };
    let refused = change(&mut agent, &next);
    assert!(refused[0].contains("is closed to clients in 10.0.0.0/8"), "{refused:?}");
    assert_eq!(admitted(&agent, 1, "172.16.0.1"), Some(false));
    assert_eq!(admitted(&agent, 1, "10.0.0.1"), Some(false), "closed, not open");
    agent.known.room.max.source_ranges = 2;
    assert_eq!(agent.resync().refused, []);
    assert_eq!(admitted(&agent, 1, "10.0.0.1"), Some(true));
}

#[test]
fn b56_stale_ranges_go_when_the_agent_starts_again() {
    let mut agent = agent(&cluster(1, Some(&["10.0.0.0/8"])));
    let _ = agent.resync();
    let mut restarted = Agent::start(agent.maps, &cluster(1, Some(&["172.16.0.0/12"])));
    let _ = restarted.resync();
    assert_exact(&restarted);
    assert_eq!(admitted(&restarted, 1, "10.0.0.1"), Some(false));

    let mut restarted = Agent::start(restarted.maps, &Snapshot::default());
    let _ = restarted.resync();
    assert!(restarted.maps.tables().source_ranges.is_empty());
}

#[test]
fn b56_a_reader_that_is_on_its_way_is_waited_for_when_all_ranges_go() {
    let mut agent = agent(&cluster(1, Some(&["10.0.0.0/8"])));
    let _ = agent.resync();
    let next = Snapshot { revision: 2, ..cluster(1, None) };
    let change = agent.desired.update(&next, &NodeFacts::default());
    let plan = agent.plan(&change);
    let at = |of: fn(&Op) -> bool| plan.ops.iter().position(of).unwrap();
    let opened = at(|op| matches!(op, Op::PutFrontends(_)));
    let waited = at(|op| matches!(op, Op::Barrier));
    let removed = at(|op| matches!(op, Op::RemoveSourceRanges(_)));
    assert!(opened < waited && waited < removed, "{plan}");
}
