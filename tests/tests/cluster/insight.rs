//! What an operator is shown of a node: one screen, a log that can be turned up, a file for maintainers,
//! and metrics for the dashboard and the alert rules that we ship.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::{
    checkout,
    cluster::{
        exec::{self, Place},
        traffic, up,
    },
    monitoring,
};

use super::{
    Check, World,
    explain::{mizzen, seen},
    traffic::hello,
};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("status_is_one_screen_that_says_healthy", status),
    ("log_levels_change_while_the_agent_runs", log),
    ("a_bugreport_has_what_is_needed_and_no_secrets", bugreport),
    ("dashboard_and_alerts_use_what_a_real_agent_exports", metrics),
    ("flows_are_followed_by_service_and_verdict", follow_a_refusal),
];

fn status(world: &World) -> Result<()> {
    for host in world.layout.node_hosts() {
        up::wait(&world.layout, "the node to be healthy", || {
            let (said, code) = mizzen(world, &host.name, &["status"])?;
            let first = said.lines().next().unwrap_or_default();
            seen(code == 0 && first.ends_with(": healthy"), &said)
        })?;
        let (said, _) = mizzen(world, &host.name, &["status", "-o", "json"])?;
        let said: Value = serde_json::from_str(&said)?;
        ensure!(said["healthy"] == true && said["findings"].is_array(), "{said:#}");
    }
    Ok(())
}

/// A filter with what looks like a secret in it.
const FILTER: &str = "debug,hyper=off,[{password=hunter2hunter2}]=trace";

fn log(world: &World) -> Result<()> {
    let node = world.layout.node_hosts()[0].name.clone();
    let debug = |text: &str| text.lines().filter(|line| line.contains(" DEBUG ")).count();
    let (before, _) = mizzen(world, &node, &["log", "tail"])?;
    let (said, code) = mizzen(world, &node, &["log", "set", FILTER])?;
    ensure!(code == 0 && said.starts_with(FILTER), "exit code {code}: {said}");
    let turned_up = up::wait(&world.layout, "lines of the level debug", || {
        let (tail, _) = mizzen(world, &node, &["log", "tail"])?;
        seen(debug(&tail) > debug(&before), &tail)
    });
    let (said, code) = mizzen(world, &node, &["log", "reset"])?;
    turned_up?;
    ensure!(code == 0 && !said.contains("hunter"), "exit code {code}: {said}");
    let (said, code) = mizzen(world, &node, &["log", "set", "mizzen_agent=loud"])?;
    ensure!(code == 1 && said.contains("it is a level"), "exit code {code}: {said}");
    Ok(())
}

fn bugreport(world: &World) -> Result<()> {
    let node = world.layout.node_hosts()[0].name.clone();
    let folder = world.layout.dir.join("bugreport");
    fs::create_dir_all(&folder)?;
    let file = folder.join("report.tar.gz");
    let path = file.to_str().context("a path")?;
    // What looks like a secret gets into the log.
    mizzen(world, &node, &["log", "set", FILTER])?;
    mizzen(world, &node, &["log", "reset"])?;
    let (tail, _) = mizzen(world, &node, &["log", "tail"])?;
    ensure!(tail.contains("hunter2hunter2"), "nothing to be removed: {tail}");
    let packed = mizzen(world, &node, &["bugreport", "--file", path]);
    let unpacked = packed.and_then(|(said, code)| {
        ensure!(code == 0, "exit code {code}: {said}");
        let place = Place::Host(node.clone());
        exec::capture(
            &world.layout,
            &place,
            &["tar", "--extract", "--gzip", "--to-stdout", "--file", path],
        )
    });
    fs::remove_dir_all(&folder)?;
    let text = unpacked?;
    for part in [
        "\"parts\":",
        "\"findings\":",
        "nodeName:",
        "mizzen_map_pressure",
        "CapEff",
        "Linux version",
        "connect4",
    ] {
        ensure!(text.contains(part), "nothing of {part} is in it");
    }
    ensure!(text.contains("(removed)") && !text.contains("hunter2"), "a secret is in it");
    let kubeconfig = fs::read_to_string(world.layout.kubeconfig())?;
    for secret in kubeconfig.lines().filter_map(|line| line.trim().split_once("-data: ")) {
        ensure!(!text.contains(secret.1), "{} of the kubeconfig is in it", secret.0);
    }
    Ok(())
}

/// Everything that an agent's metrics ports say after traffic of every kind.
fn exported(world: &World, node: &str) -> Result<String> {
    let place = Place::Host(node.to_owned());
    let mut all = String::new();
    for path in ["metrics", "metrics/services"] {
        let url = format!("http://127.0.0.1:10249/{path}");
        all += &exec::capture(&world.layout, &place, &["curl", "--silent", "--fail", &url])?;
    }
    Ok(all)
}

fn metrics(world: &World) -> Result<()> {
    let node = world.layout.node_hosts()[0].name.clone();
    let wanted = monitoring::metrics(&checkout())?;
    ensure!(wanted.len() > 15, "the dashboard and the rules need more than {wanted:?}");
    let (ips, _) = hello(world)?;
    let name = "hello.default.svc.cluster.local";
    up::wait(&world.layout, "every metric to be there", || {
        let url = format!("http://{}/", traffic::host(&ips[0]));
        traffic::get(&world.layout, &Place::Host(node.clone()), &url)?;
        let (_, _) = mizzen(world, &node, &["dns", name])?;
        let text = exported(world, &node)?;
        // By a sample, or by its head where what it counts did not happen.
        let is_there = |metric: &String| {
            text.lines().any(|line| {
                let line = line.strip_prefix("# TYPE ").unwrap_or(line);
                line.strip_prefix(metric.as_str()).is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
        };
        let missing: Vec<_> = wanted.iter().filter(|metric| !is_there(metric)).collect();
        seen(missing.is_empty(), &format!("{missing:?}"))
    })
}

/// A connection to a service without endpoints, followed from its own node.
fn follow_a_refusal(world: &World) -> Result<()> {
    let empty = "{apiVersion: v1, kind: Service, metadata: {name: followed, namespace: default},
        spec: {selector: {app: nobody}, ports: [{port: 80}]}}";
    world.api.apply(empty)?;
    let told = refusal(world);
    world.api.expect("DELETE", "/api/v1/namespaces/default/services/followed", None)?;
    told
}

fn refusal(world: &World) -> Result<()> {
    let service = world.api.get("/api/v1/namespaces/default/services/followed")?;
    let ip = service["spec"]["clusterIPs"][0].as_str().context("no clusterIP")?.to_owned();
    let node = world.layout.node_hosts()[0].name.clone();
    let layout = &world.layout;
    // Bounded, for it ends by what it waits for.
    let argv = "timeout 120 mizzen flows --follow --limit 1 -o json --service default/followed \
                --verdict refused";
    let argv: Vec<&str> = argv.split_whitespace().collect();
    let place = Place::Host(node);
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| exec::capture(layout, &place, &argv));
        let url = format!("http://{}/", traffic::host(&ip));
        up::wait(layout, "a refusal to be told of", || {
            let dialled = traffic::get(layout, &place, &url);
            ensure!(dialled.is_err(), "somebody answered");
            seen(follower.is_finished(), &"nothing yet")
        })?;
        let said = follower.join().map_err(|_| anyhow::anyhow!("the follower panicked"))??;
        let event: Value = serde_json::from_str(said.trim()).context(said.clone())?;
        ensure!(event["verdict"] == "refused" && event["reason"] == "socket_refused", "{event:#}");
        ensure!(event["service"] == "default/followed", "{event:#}");
        ensure!(event["destination"] == format!("{ip}:80"), "{event:#}");
        Ok(())
    })
}
