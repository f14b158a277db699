//! Names, from where pods ask for them.

use anyhow::{Context, Result, ensure};
use xtask::cluster::{
    exec::{self, Place},
    process, up,
};

use super::{
    Check, World,
    restart::wait_ready,
    traffic::{hello, pod},
};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("dns_01_a_and_aaaa_of_a_service_over_udp_and_tcp", addresses_of_a_service),
    ("dns_the_search_list_of_a_pod_finds_short_names", short_names),
    ("dns_a_name_that_is_not_there_is_nxdomain", missing_names),
    ("dns_73_clients_of_a_node_without_resolver_are_led_to_the_others", others_answer),
];

const SERVERS: [&str; 2] = ["@10.96.0.10", "@fd00:96::a"];

fn dig(world: &World, words: &[&str]) -> Result<String> {
    dig_at(world, &pod(world)?, words)
}

fn dig_at(world: &World, place: &Place, words: &[&str]) -> Result<String> {
    let mut argv = vec!["dig", "+tries=2", "+time=2"];
    argv.extend_from_slice(words);
    exec::capture(&world.layout, place, &argv)
}

fn addresses_of_a_service(world: &World) -> Result<()> {
    let (ips, _) = hello(world)?;
    let name = "hello.default.svc.cluster.local";
    for server in SERVERS {
        for transport in ["+notcp", "+tcp"] {
            for (record, ip) in [("A", &ips[0]), ("AAAA", &ips[1])] {
                let said = dig(world, &[server, transport, "+short", name, record])?;
                ensure!(said.trim() == ip, "{server} {transport} {record}: {said:?}, not {ip}");
            }
        }
    }
    Ok(())
}

fn short_names(world: &World) -> Result<()> {
    let (ips, _) = hello(world)?;
    let argv = ["getent", "ahostsv4", "hello"];
    let said = exec::capture(&world.layout, &pod(world)?, &argv)?;
    ensure!(said.starts_with(&ips[0]), "getent says {said:?}, not {}", ips[0]);
    Ok(())
}

fn missing_names(world: &World) -> Result<()> {
    for server in SERVERS {
        let said = dig(world, &[server, "nobody.default.svc.cluster.local", "A"])?;
        ensure!(said.contains("status: NXDOMAIN"), "{server}: {said}");
    }
    Ok(())
}

/// A node's agent is killed: its pods and the node itself are answered all the same.
fn others_answer(world: &World) -> Result<()> {
    let (ips, _) = hello(world)?;
    let pod = pod(world)?;
    let Place::Pod(name) = &pod else { unreachable!("a pod was asked for") };
    let (_, node) = exec::sandbox(&world.layout, name)?;
    let host = world.layout.node_hosts().into_iter().find(|host| host.name == node);
    let host = host.context("the pod's node")?;
    let agent = process::running(&world.layout, &up::agent(&node)).context("no agent runs")?;
    process::kill_hard(&agent);
    let asked = [pod.clone(), Place::Host(node.clone())].iter().try_for_each(|place| {
        for server in SERVERS {
            for transport in ["+notcp", "+tcp"] {
                let words = [server, transport, "+short", "hello.default.svc.cluster.local", "A"];
                let said = dig_at(world, place, &words)?;
                ensure!(said.trim() == ips[0], "{place:?} {server} {transport}: {said:?}");
            }
        }
        Ok(())
    });
    up::start_agent(&world.layout, &host)?;
    wait_ready(world, &node)?;
    asked
}
