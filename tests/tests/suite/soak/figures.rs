//! The tables at the size of a large cluster. `cargo xtask soak figures` shows what they cost; for
//! figures that count, build with `--release` and run it alone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mizzen_agent::{
    apply::{
        apply,
        audit::audit,
        maps::{Maps as _, Room},
    },
    desired::Desired,
    diff::{Known, diff},
    model::ObjectKey,
};
use mizzen_tests::{node::TestNode, soak::share};

use super::cluster::{add_service, empty, facts, set_endpoints, settings};

/// Services of two ports each, in full.
const SERVICES: u64 = 15_000;
/// How often each look is taken.
const LOOKS: u32 = 20;

/// What this thread has had of a core.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn r04_figures_of_a_look_at_tables_that_nobody_altered() {
    let node = TestNode::new("figures");
    let datapath = node.open();
    let mut snapshot = empty();
    for n in 0..u16::try_from(share(SERVICES)).unwrap() {
        let [high, low] = n.to_be_bytes();
        let name = format!("s{n}");
        add_service(&mut snapshot, &name, [10, 96, high, low].into());
        // With a source range, which is one for each port.
        let key = ObjectKey::new("default", &name);
        let service = Arc::make_mut(&mut snapshot.services[&key]);
        service.load_balancer_ips = vec![[192, 0, high, low].into()];
        service.source_ranges = Some(vec!["198.51.100.0/24".parse().unwrap()]);
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

    let (start, cpu) = (Instant::now(), cpu_time());
    for _ in 0..LOOKS {
        assert!(audit(&known, &mut maps).unwrap().is_empty());
    }
    let (look, cpu) = (start.elapsed() / LOOKS, cpu_time().saturating_sub(cpu) / LOOKS);
    println!("a look at all of it: {look:?}, {cpu:?} of a core; {:?}", maps.capacities());
}
