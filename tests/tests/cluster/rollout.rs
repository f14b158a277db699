//! A rolling update under load: pods go and come, and no client notices.

use anyhow::{Result, ensure};
use mizzen_tests::soak;
use xtask::cluster::{exec::Place, traffic, up};

use super::{
    Check, World,
    soak::{finish_loads, start_load},
    traffic::hello,
};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] =
    &[("soak_b89_r08_a_rolling_update_fails_no_request", no_request_fails)];

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/hello";
/// New connections a second of each load; there are four.
const OPTIONS: [&str; 4] = ["--rate", "200", "--lasting", "0"];

/// By cluster IP and node port, both families, TCP by new connections and UDP by one socket.
fn no_request_fails(world: &World) -> Result<()> {
    let (ips, port) = hello(world)?;
    let nodes = world.layout.node_hosts();
    let client = Place::Host("client".into());
    let mut loads = Vec::new();
    for (ip, node) in ips.iter().zip(&nodes) {
        let target = format!("{}:80", traffic::host(ip));
        loads.push(start_load(world, &Place::Host(node.name.clone()), &target, &OPTIONS)?);
    }
    for ip in [nodes[0].ipv4.to_string(), nodes[1].ipv6.to_string()] {
        let target = format!("{}:{port}", traffic::host(&ip));
        loads.push(start_load(world, &client, &target, &OPTIONS)?);
    }
    // The last one leaves the deployment as it was.
    let rollouts = if soak::in_full() { 10 } else { 2 };
    let rolled = (1..=rollouts).try_for_each(|rollout| {
        let mark = if rollout == rollouts { "null".to_owned() } else { format!("\"{rollout}\"") };
        roll(world, &mark)
    });
    let finished = finish_loads(loads);
    rolled.and(finished)
}

/// Replaces every pod, and waits until none of the old ones is left.
fn roll(world: &World, mark: &str) -> Result<()> {
    let before = pods(world)?;
    let body =
        format!(r#"{{"spec":{{"template":{{"metadata":{{"annotations":{{"mark":{mark}}}}}}}}}}}"#);
    world.api.expect("PATCH", DEPLOYMENT, Some(("application/merge-patch+json", &body)))?;
    up::wait(&world.layout, "every pod to be another", || {
        let now = pods(world)?;
        let old = now.iter().filter(|uid| before.contains(uid)).count();
        if old > 0 || now.len() != before.len() {
            return Ok(Err(format!("{} pods, {old} of them old", now.len())));
        }
        up::deployment_ready(&world.api, "hello")
    })?;
    ensure!(!before.is_empty(), "hello has no pods");
    Ok(())
}

/// The uids of hello's pods, those that go included.
fn pods(world: &World) -> Result<Vec<String>> {
    let list = world.api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dhello")?;
    let pods = list["items"].as_array().into_iter().flatten();
    Ok(pods.filter_map(|pod| pod["metadata"]["uid"].as_str()).map(str::to_owned).collect())
}
