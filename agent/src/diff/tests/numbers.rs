//! Sets that get their numbers: what was counted under them before is not theirs.

use std::collections::BTreeSet;

use super::*;

#[test]
fn a_plan_names_the_sets_that_have_their_numbers_from_now_on() {
    let (one, none) = (one_service(1).snapshot(), one_service(0).snapshot());
    let mut agent = Agent::start(MemoryMaps::default(), &one);
    let plan = agent.resync();
    let numbers =
        |agent: &Agent| -> BTreeSet<u32> { agent.known.sets.values().map(|set| set.id).collect() };
    let first = numbers(&agent);
    assert!(!first.is_empty());
    assert_eq!(plan.new_sets.iter().copied().collect::<BTreeSet<_>>(), first);
    assert_eq!(plan.new_sets.len(), first.len());

    // Without endpoints and with them again, and for another agent, it is the same set.
    for snapshot in [&none, &one] {
        let change = agent.desired.update(snapshot, &NodeFacts::default());
        let plan = agent.plan(&change);
        apply(&plan, &mut agent.maps).unwrap();
        assert_eq!(plan.new_sets, [0_u32; 0]);
    }
    let mut agent = Agent::start(agent.maps, &one);
    assert_eq!(agent.resync().new_sets, [0_u32; 0]);
    assert_eq!(numbers(&agent), first);
}
