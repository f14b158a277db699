//! Windows of backends move under packets and sockets: endpoints come, go, terminate and change their
//! node, traffic policies change, while everything is in use. Nothing fails, and no program ever meets
//! a slot that leads astray (reference R7).

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use mizzen_agent::model::{
    ObjectKey,
    endpoints::{Endpoint, Site},
    service::{Service, TrafficPolicy},
    snapshot::Snapshot,
};
use mizzen_tests::{
    lab::{CLIENT, FAMILIES, Lab},
    soak::{Dice, share},
};

use super::{
    cluster::{Agent, endpoint, set_states},
    whole_load::{Load, PODS},
};

/// Each endpoint in a state of its own; one at least is ready and on this node, so that every policy
/// has a backend.
fn states(pool: &[SocketAddr], dice: &mut Dice) -> Vec<Endpoint> {
    let certain = dice.below(pool.len());
    let state = |(index, addr): (usize, &SocketAddr)| {
        let here = endpoint(*addr);
        if index == certain {
            return Some(here);
        }
        let site = if dice.once_in(2) { Site::on("node-2") } else { Arc::clone(&here.site) };
        let any = Endpoint { site, ..here };
        match dice.below(4) {
            0 => None,
            1 => Some(Endpoint { ready: false, terminating: true, ..any }),
            2 => Some(Endpoint { ready: false, serving: false, ..any }),
            _ => Some(any),
        }
    };
    pool.iter().enumerate().filter_map(state).collect()
}

/// Another policy for inside and outside. Endpoints that were terminating and are gone are alive here,
/// and so are not to be reset.
fn set_policies(snapshot: &mut Snapshot, name: &str, dice: &mut Dice) {
    let key = ObjectKey::new("default", name);
    let mut policy = || if dice.once_in(2) { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    let (internal_policy, external_policy) = (policy(), policy());
    let before = Service::clone(&snapshot.services[&key]);
    let service = Service { internal_policy, external_policy, reset_on_delete: false, ..before };
    snapshot.services.insert(key, Arc::new(service));
}

/// Each flip of a set is a step.
#[test]
fn r07_no_step_of_moving_windows_leads_packets_astray() {
    for family in FAMILIES {
        let mut dice = Dice::new();
        let told = format!("{family:?}, seed {}", dice.seed);
        let lab = Lab::new([PODS, PODS]);
        lab.route_out();
        // What keeps its address has to find its way back.
        let (client, node) = (family.wire(CLIENT), lab.address_of_node(0, family));
        let ip = if client.is_ipv6() { "-6 " } else { "" };
        lab.nodes[1].node.netns.ip(&format!("{ip}route add {client} via {node}"));
        lab.nodes[0].datapath.attach_sockets().unwrap();
        let mut load = Load::new(lab, family);
        let mut snapshot = load.snapshot();
        let mut agent = load.agent(None);
        assert!(agent.follow(&snapshot), "{told}");
        load.start();
        while agent.metrics.set_flips.load(Relaxed) < share(50_000) {
            for (name, _, pool) in load.services() {
                set_states(&mut snapshot, &name, pool[0].port(), states(&pool, &mut dice));
                set_policies(&mut snapshot, &name, &mut dice);
            }
            snapshot.revision += 1;
            assert!(agent.follow(&snapshot), "{told}");
            if dice.once_in(20) {
                let maps = load.lab.nodes[0].datapath.maps().unwrap();
                agent = Agent::resumed(&agent, Box::new(maps));
            }
        }
        load.end(&told);
    }
}
