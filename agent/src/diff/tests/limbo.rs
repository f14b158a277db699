//! Plans that are made while a barrier is under way.

use super::*;
use crate::{
    apply::audit::audit,
    diff::{Awaits, diff, world::Recording},
};

/// What happens, in any order.
#[derive(Clone, Debug)]
enum Event {
    /// The cluster is as given from now on.
    Cluster(World),
    /// A barrier begins where one is needed.
    Begin,
    /// The barrier that is under way is over.
    Over,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => world().prop_map(Event::Cluster),
        2 => Just(Event::Begin),
        2 => Just(Event::Over),
    ];
    prop::collection::vec(event, 1..6)
}

/// An agent whose barriers take as long as the test likes.
struct Patient {
    agent: Agent,
    recording: Recording,
    /// Where the barrier under way began.
    begun: Option<usize>,
    /// The tables after each plan, and as they would be if what it unlinked were released at once:
    /// who goes by a frontend of before finds them so when that is released before the next.
    stages: Vec<Tables>,
}

impl Patient {
    fn start() -> Self {
        let mut agent = Agent::start(MemoryMaps::new(TINY), &Snapshot::default());
        let _ = agent.resync();
        let recording = recording(agent.maps.clone());
        let stages = vec![agent.maps.tables().clone()];
        Self { agent, recording, begun: None, stages }
    }

    fn apply(&mut self, plan: &Plan) {
        apply(plan, &mut self.recording).unwrap();
        self.stages.push(self.recording.maps.tables().clone());
    }

    fn note_settled(&mut self) {
        let mut maps = self.recording.maps.clone();
        apply(&self.agent.known.clone().settle(), &mut maps).unwrap();
        self.stages.push(maps.tables().clone());
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Cluster(world) => {
                let change = self.agent.desired.update(&world.snapshot(), &NodeFacts::default());
                let plan = diff(&change, &mut self.agent.known);
                self.apply(&plan);
                self.note_settled();
            }
            Event::Begin if self.agent.known.awaits() != Awaits::Nothing => {
                self.agent.known.begin();
                self.begun = Some(self.recording.witness.states.len());
            }
            Event::Over => {
                if let Some(begun) = self.begun.take() {
                    let over = self.recording.witness.states.len();
                    self.recording.witness.barriers.push((begun, over));
                    let plan = self.agent.known.reap();
                    self.apply(&plan);
                }
            }
            Event::Begin => {}
        }
    }

    /// Nobody altered the tables, however much is still to be released.
    fn assert_unaltered(&mut self) {
        let deviations = audit(&self.agent.known, &mut self.recording.maps).unwrap();
        assert!(deviations.is_empty(), "{deviations:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases() / 4, ..ProptestConfig::default() })]

    #[test]
    fn d03_plans_beside_barriers_reach_what_is_desired_and_mislead_no_reader(events in events()) {
        let mut patient = Patient::start();
        for event in &events {
            patient.happens(event);
            patient.assert_unaltered();
        }
        for last in [Event::Over, Event::Begin, Event::Over] {
            patient.happens(&last);
        }
        let Patient { mut agent, recording, stages, .. } = patient;
        assert_readers_are_safe(&recording.witness, &legitimate(&stages));
        agent.maps = recording.maps;
        prop_assert!(agent.known.is_settled());
        assert_exact(&agent);
        prop_assert!(agent.resync().is_empty(), "a resync of what is there writes");
    }

    #[test]
    fn r01_an_agent_that_dies_beside_a_barrier_leaves_nothing_that_the_next_does_not_find(
        events in events(), later in world()
    ) {
        let mut patient = Patient::start();
        for event in &events {
            patient.happens(event);
        }
        let mut restarted = Agent::start(patient.recording.maps, &later.snapshot());
        let plan = restarted.plan(&restarted.desired.everything());
        apply_under_readers(&plan, &mut restarted.maps);
        assert_exact(&restarted);
        prop_assert!(restarted.resync().is_empty());
    }
}

/// An endpoint that leaves and comes back before the barrier is over has its record, and one that
/// is deleted meanwhile is told as such.
#[test]
fn d03_what_comes_back_from_the_limbo_stays() {
    let states = |agent: &mut Agent, states: &str| {
        let change = agent.desired.update(&gone::cluster(states), &NodeFacts::default());
        let plan = diff(&change, &mut agent.known);
        apply(&plan, &mut agent.maps).unwrap();
    };
    let mut agent = Agent::start(MemoryMaps::default(), &gone::cluster("rr"));
    let _ = agent.resync();
    let before = agent.maps.tables().backends4.clone();
    states(&mut agent, "tr");
    assert_eq!(agent.known.awaits(), Awaits::Barrier { urgent: false });
    agent.known.begin();
    states(&mut agent, "rr");
    let plan = agent.known.reap();
    apply(&plan, &mut agent.maps).unwrap();
    assert_eq!(agent.maps.tables().backends4, before, "its record was not freed");
    let plan = agent.known.settle();
    apply(&plan, &mut agent.maps).unwrap();
    assert_exact(&agent);
}

/// Likewise the set of a service that is back.
#[test]
fn d03_a_set_that_is_back_from_the_limbo_is_led_to() {
    let mut agent = Agent::start(MemoryMaps::default(), &gone::cluster("rr"));
    let _ = agent.resync();
    let mut without = gone::cluster("rr");
    without.services.clear();
    for snapshot in [without, gone::cluster("rr")] {
        let change = agent.desired.update(&snapshot, &NodeFacts::default());
        let plan = diff(&change, &mut agent.known);
        apply(&plan, &mut agent.maps).unwrap();
        if snapshot.services.is_empty() {
            agent.known.begin();
        }
    }
    let plan = agent.known.reap();
    apply(&plan, &mut agent.maps).unwrap();
    let plan = agent.known.settle();
    apply(&plan, &mut agent.maps).unwrap();
    assert_exact(&agent);
    assert!(agent.resync().is_empty());
}

/// Likewise a source range that is asked for again.
#[test]
fn b56_a_source_range_that_is_back_from_the_limbo_stays() {
    use super::restricted::{admitted, cluster};
    let mut agent = Agent::start(MemoryMaps::default(), &cluster(1, Some(&["10.0.0.0/8"])));
    let _ = agent.resync();
    for (revision, range) in [(2, "172.16.0.0/12"), (3, "10.0.0.0/8")] {
        let next = Snapshot { revision, ..cluster(1, Some(&[range])) };
        let change = agent.desired.update(&next, &NodeFacts::default());
        let plan = diff(&change, &mut agent.known);
        apply(&plan, &mut agent.maps).unwrap();
        if revision == 2 {
            agent.known.begin();
        }
    }
    let plan = agent.known.reap();
    apply(&plan, &mut agent.maps).unwrap();
    assert_eq!(admitted(&agent, 1, "10.0.0.1"), Some(true), "it was asked for again");
    let plan = agent.known.settle();
    apply(&plan, &mut agent.maps).unwrap();
    assert_eq!(admitted(&agent, 1, "172.16.0.1"), Some(false));
    assert_exact(&agent);
}
