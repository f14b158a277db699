//! The tables at the size of a large cluster. `cargo xtask soak figures` shows what they cost; for
//! figures that count, build with `--release` and run it alone.

use std::time::{Duration, Instant};

use mizzen_agent::{
    apply::{
        apply,
        audit::audit,
        maps::{Maps as _, Room},
    },
    desired::Desired,
    diff::{Known, diff},
};
use mizzen_tests::{node::TestNode, soak::share};

use super::cluster::{add_service, empty, facts, set_endpoints, settings};

/// Services of two ports each, in full.
const SERVICES: u64 = 15_000;
/// How often each look is taken.
const LOOKS: u32 = 20;

#[test]
fn r04_figures_of_a_look_at_tables_that_nobody_altered() {
    let node = TestNode::new("figures");
    let datapath = node.open();
    let mut snapshot = empty();
    for n in 0..u16::try_from(share(SERVICES)).unwrap() {
        let [high, low] = n.to_be_bytes();
        let name = format!("s{n}");
        add_service(&mut snapshot, &name, [10, 96, high, low].into());
        let pod = |net| ([10, net, high, low], 8080).into();
        set_endpoints(&mut snapshot, &name, &[pod(244), pod(245)]);
    }
    let told = |what, since: Instant| println!("{what}: {:?}", since.elapsed());
    let (mut desired, mut known) = (Desired::new(settings()), Known::empty(Room::default()));
    let mut maps = datapath.maps().unwrap();

    let start = Instant::now();
    let change = desired.update(&snapshot, &facts());
    told("what is desired", start);
    let start = Instant::now();
    let plan = diff(&change, &mut known);
    told("the plan", start);
    let start = Instant::now();
    apply(&plan, &mut maps).unwrap();
    told("its steps", start);
    assert!(plan.refused.is_empty(), "{plan}");

    let start = Instant::now();
    for _ in 0..LOOKS {
        assert!(audit(&known, &mut maps).unwrap().is_empty());
    }
    let look: Duration = start.elapsed() / LOOKS;
    println!("a look at all of it: {look:?}; {:?}", maps.capacities());
}
