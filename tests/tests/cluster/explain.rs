//! What an operator asks a node: where a connection goes, whether the tables are right, how long
//! changes take, and whether load balancers may use the node.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::cluster::{
    exec::{self, Place},
    traffic, up,
};

use super::{
    Check, World,
    traffic::{hello, pod},
};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("u16_why_names_the_pods_that_a_pod_may_reach", why_from_a_pod),
    ("u16_why_knows_how_clients_outside_are_masqueraded", why_from_outside),
    ("u16_why_tells_a_refusal_by_its_exit_code", why_not),
    ("flows_show_the_connections_of_the_packet_path", flows),
    ("what_a_service_was_sent_is_told_by_both_paths", traffic_of_a_service),
    ("diff_is_empty_while_all_is_well", no_difference),
    ("check_finds_a_healthy_node_healthy_and_says_what_is_not", check_of_a_node),
    ("f44_latencies_of_changes_are_counted", latencies),
    ("f21_a_node_that_is_about_to_be_removed_fails_healthz", leaving_node),
];

/// For a wait: done where `good`, else what was seen instead.
#[expect(clippy::unnecessary_wraps, reason = "the form of a wait's answer")]
pub(super) fn seen(good: bool, seen: &dyn ToString) -> Result<Result<(), String>> {
    Ok(if good { Ok(()) } else { Err(seen.to_string()) })
}

/// What `mizzen` prints on a node, and its exit code.
pub(super) fn mizzen(world: &World, node: &str, words: &[&str]) -> Result<(String, i32)> {
    let argv: Vec<String> =
        std::iter::once("mizzen").chain(words.iter().copied()).map(str::to_owned).collect();
    let place = Place::Host(node.to_owned());
    let output = exec::command(&world.layout, &place, &argv)?.output()?;
    let code = output.status.code().context("mizzen was killed")?;
    let said =
        String::from_utf8(if code == 1 || code == 2 { output.stderr } else { output.stdout })?;
    Ok((said, code))
}

/// The answers of `mizzen why`, all of which it must give.
pub(super) fn why(
    world: &World,
    node: &str,
    source: &str,
    destination: &str,
) -> Result<Vec<Value>> {
    let (said, code) = mizzen(world, node, &["why", source, destination, "-o", "json"])?;
    ensure!(code == 0 || code == 3, "mizzen why {source} {destination}: exit code {code}: {said}");
    let said: Value = serde_json::from_str(&said)?;
    ensure!(said["node"] == node, "the answer is of node {}", said["node"]);
    said["answers"].as_array().cloned().context("no answers")
}

/// Names of the pods that an answer's deciding path may choose, whose shares must add up to 1.
pub(super) fn candidates(answer: &Value) -> Result<BTreeSet<String>> {
    let paths = answer["paths"].as_array().context("no paths")?;
    let path = paths.iter().find(|path| path["path"] == answer["decides"]).context("no path")?;
    let candidates = path["candidates"].as_array().context("no candidates")?;
    let sum: f64 = candidates.iter().filter_map(|one| one["probability"].as_f64()).sum();
    ensure!((sum - 1.0).abs() < 1e-9, "the shares add up to {sum}: {answer:#}");
    Ok(candidates.iter().filter_map(|one| one["pod"].as_str()).map(str::to_owned).collect())
}

/// The pods of hello, each with its node.
fn hello_pods(world: &World) -> Result<Vec<(String, String)>> {
    let pods = world.api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dhello")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| {
            let name = format!("default/{}", text(&pod["metadata"]["name"]));
            (name, text(&pod["spec"]["nodeName"]))
        })
        .collect())
}

fn why_from_a_pod(world: &World) -> Result<()> {
    let pods = hello_pods(world)?;
    let all: BTreeSet<_> = pods.iter().map(|(name, _)| name.clone()).collect();
    let (client, node) = pods.first().context("hello has no pods")?;
    let answers = why(world, node, client, "default/hello:80/tcp")?;
    ensure!(answers.len() == 2, "an answer for each family: {answers:?}");
    for answer in &answers {
        ensure!(answer["decides"] == "socket" && answer["outcome"] == "balanced", "{answer:#}");
        ensure!(answer["service"]["name"] == "hello", "{answer:#}");
        ensure!(answer["source"]["pod"] == client.as_str(), "{answer:#}");
        let named = candidates(answer)?;
        ensure!(named == all, "{named:?} may answer, the pods are {all:?}");
    }
    let (text, code) = mizzen(world, node, &["why", client, "default/hello:80/tcp"])?;
    ensure!(code == 0 && text.contains("socket path"), "{text}");
    Ok(())
}

fn why_from_outside(world: &World) -> Result<()> {
    let (_, port) = hello(world)?;
    let all: BTreeSet<_> = hello_pods(world)?.into_iter().map(|(name, _)| name).collect();
    for node in world.layout.node_hosts() {
        for (client, ip) in
            [("198.51.100.7", node.ipv4.to_string()), ("2001:db8::7", node.ipv6.to_string())]
        {
            let dialled = format!("{}:{port}", traffic::host(&ip));
            let answers = why(world, &node.name, client, &dialled)?;
            let [answer] = &answers[..] else { anyhow::bail!("one answer: {answers:?}") };
            ensure!(answer["decides"] == "packet" && answer["outcome"] == "balanced", "{answer:#}");
            ensure!(candidates(answer)? == all, "{answer:#}");
            let seen = &answer["paths"][1]["masquerade"]["address"];
            ensure!(*seen == ip, "backends see {seen}, not {ip}");
        }
    }
    Ok(())
}

fn why_not(world: &World) -> Result<()> {
    let empty = "{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: default},
        spec: {selector: {app: nobody}, ports: [{port: 80}]}}";
    world.api.apply(empty)?;
    let refused = || {
        let (said, code) = mizzen(world, "node-1", &["why", "node", "default/nobody"])?;
        seen(code == 3 && said.contains("no usable endpoint"), &said)
    };
    let followed = up::wait(&world.layout, "why to tell of no endpoints", refused);
    world.api.expect("DELETE", "/api/v1/namespaces/default/services/nobody", None)?;
    followed?;
    for (source, destination, code, said) in [
        ("default/stranger", "default/hello", 1, "give its address"),
        ("node", "default/nothing", 1, "there is no service"),
        ("node", "10.96.0.1", 2, "needs a port"),
    ] {
        let (text, got) = mizzen(world, "node-1", &["why", source, destination])?;
        ensure!(got == code && text.contains(said), "exit code {got}: {text}");
    }
    for command in ["services", "backends", "pods"] {
        for (name, code, said) in [
            ("default/nothing", 1, "default/nothing"),
            ("default/hello/x", 2, "neither a namespace"),
        ] {
            let (text, got) = mizzen(world, "node-1", &[command, name, "-o", "json"])?;
            ensure!(got == code && text.contains(said), "{command}: exit code {got}: {text}");
        }
    }
    Ok(())
}

fn flows(world: &World) -> Result<()> {
    let (_, port) = hello(world)?;
    let node = &world.layout.node_hosts()[0];
    let dialled = format!("{}:{port}", node.ipv4);
    traffic::get(&world.layout, &Place::Host("client".into()), &format!("http://{dialled}/"))?;
    let (said, code) = mizzen(world, &node.name, &["flows", "-o", "json"])?;
    ensure!(code == 0, "mizzen flows: exit code {code}: {said}");
    let said: Value = serde_json::from_str(&said)?;
    let flows = said["flows"].as_array().context("no flows")?;
    let ours = flows.iter().find(|flow| flow["destination"] == dialled.as_str());
    let flow = ours.with_context(|| format!("no flow to {dialled}: {said:#}"))?;
    ensure!(flow["service"] == "default/hello", "{flow:#}");
    Ok(())
}

/// One request by a socket of the node and one by packets that it translates; both are told by
/// service, by backend, and as metrics.
fn traffic_of_a_service(world: &World) -> Result<()> {
    let (cluster_ips, port) = hello(world)?;
    let node = &world.layout.node_hosts()[0];
    let of_node = Place::Host(node.name.clone());
    for cluster_ip in cluster_ips {
        let host = if cluster_ip.contains(':') { format!("[{cluster_ip}]") } else { cluster_ip };
        traffic::get(&world.layout, &of_node, &format!("http://{host}/"))?;
    }
    for host in [node.ipv4.to_string(), format!("[{}]", node.ipv6)] {
        let client = Place::Host("client".into());
        traffic::get(&world.layout, &client, &format!("http://{host}:{port}/"))?;
    }
    up::wait(&world.layout, "the traffic of hello to be told", || {
        let (said, _) = mizzen(world, &node.name, &["services", "default/hello", "-o", "json"])?;
        let rows: Value = serde_json::from_str(&said)?;
        let families: Vec<_> =
            rows.as_array().into_iter().flatten().filter(|row| row["protocol"] == "TCP").collect();
        let told = |row: &Value, path: &str| row.pointer(path).and_then(Value::as_u64) > Some(0);
        let paths = ["/traffic/sockets/receivedBytes", "/traffic/packets/receivedBytes"];
        let all = families.iter().all(|row| paths.iter().all(|path| told(row, path)));
        seen(families.len() == 2 && all, &said)
    })?;
    let (said, code) = mizzen(world, &node.name, &["backends", "--traffic", "default/hello"])?;
    ensure!(code == 0 && said.contains("RETRANSMITS") && said.contains("default/hello"), "{said}");
    for (path, name) in [("services", "mizzen_service"), ("backends", "mizzen_backend")] {
        let url = format!("http://127.0.0.1:10249/metrics/{path}");
        let text = exec::capture(&world.layout, &of_node, &["curl", "--silent", "--fail", &url])?;
        let head = format!("{name}_bytes_total{{namespace=\"default\",service=\"hello\",");
        for way in ["path=\"socket\",direction=\"received\"", "path=\"packet\",direction=\"sent\""]
        {
            let found = text.lines().any(|line| line.starts_with(&head) && line.contains(way));
            ensure!(found, "no {head}…{way} in {text}");
        }
    }
    Ok(())
}

/// Forwarding is switched off on a node for a moment; nothing passes it in this check.
fn check_of_a_node(world: &World) -> Result<()> {
    for host in world.layout.node_hosts() {
        up::wait(&world.layout, "the check to find nothing", || {
            let (said, code) = mizzen(world, &host.name, &["check"])?;
            let looked = ["sockets", "packets", "tables", "settings", "ports"];
            seen(code == 0 && looked.iter().all(|check| said.contains(check)), &said)
        })?;
    }
    let node = &world.layout.node_hosts()[0];
    let forward = |value: &str| {
        let write = format!("echo {value} > /proc/sys/net/ipv6/conf/all/forwarding");
        let place = Place::Host(node.name.clone());
        exec::capture(&world.layout, &place, &["sh", "-c", &write])
    };
    forward("0")?;
    let found = mizzen(world, &node.name, &["check", "-o", "json"]);
    forward("1")?;
    let (said, code) = found?;
    let report: Value = serde_json::from_str(&said)?;
    ensure!(code == 3 && report["healthy"] == false && report["node"] == *node.name, "{report:#}");
    let findings = report["findings"].as_array().context("no findings")?;
    // The setting of all interfaces is that of each, those of pods among them.
    let failed = findings.iter().filter(|one| one["verdict"] == "fail");
    let (settings, others): (Vec<_>, Vec<_>) = failed.partition(|one| one["check"] == "settings");
    let [failed] = settings[..] else { anyhow::bail!("one failed setting: {report:#}") };
    let of_pods =
        |one: &&Value| one["check"] == "pods" && one["said"].to_string().contains("forwarding");
    ensure!(others.iter().all(of_pods), "{others:#?}");
    let remedy = failed["remedy"].as_str().unwrap_or_default();
    ensure!(remedy.contains("sysctl -w net.ipv6.conf.all.forwarding=1"), "{failed:#}");
    Ok(())
}

fn no_difference(world: &World) -> Result<()> {
    for node in world.layout.node_hosts() {
        up::wait(&world.layout, "the tables to be as they should be", || {
            let (said, code) = mizzen(world, &node.name, &["diff"])?;
            seen(code == 0 && said.contains("as they should be"), &said)
        })?;
    }
    Ok(())
}

/// A metric's value on a node.
fn metric(world: &World, node: &str, name: &str) -> Result<f64> {
    let argv = ["curl", "--silent", "--fail", "http://127.0.0.1:10249/metrics"];
    let text = exec::capture(&world.layout, &Place::Host(node.to_owned()), &argv)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no metric {name} in {text}"))?.parse()?)
}

fn latencies(world: &World) -> Result<()> {
    let count = || metric(world, "node-1", "kubeproxy_network_programming_duration_seconds_count");
    let fine = || metric(world, "node-1", "mizzen_watch_to_map_seconds_count");
    let before = (count()?, fine()?);
    world.api.scale("hello", 5)?;
    let scaled = up::wait(&world.layout, "latencies to be counted", || {
        let now = (count()?, fine()?);
        seen(now.0 > before.0 && now.1 > before.1, &format!("{now:?} after {before:?}"))
    });
    world.api.scale("hello", 4)?;
    scaled?;
    up::wait(&world.layout, "hello", || up::deployment_ready(&world.api, "hello"))?;
    let pending = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
    up::wait(&world.layout, "nothing to be pending", || {
        let pending = metric(world, "node-1", pending)?;
        seen(pending < 1.0, &pending)
    })
}

/// Status and body of a health endpoint, asked by the client outside.
fn health(world: &World, path: &str) -> Result<(String, Value)> {
    let node = &world.layout.node_hosts()[0];
    let url = format!("http://{}:10256{path}", node.ipv4);
    let argv = ["curl", "--silent", "--write-out", "\n%{http_code}", &url];
    let said = exec::capture(&world.layout, &Place::Host("client".into()), &argv)?;
    let (body, status) = said.rsplit_once('\n').context("curl printed no status")?;
    Ok((status.to_owned(), serde_json::from_str(body)?))
}

fn leaving_node(world: &World) -> Result<()> {
    let node = world.layout.node_hosts()[0].name.clone();
    let taint = |taints: &str| {
        let body = format!("{{\"spec\":{{\"taints\":{taints}}}}}");
        let media = "application/merge-patch+json";
        world.api.expect("PATCH", &format!("/api/v1/nodes/{node}"), Some((media, &body)))
    };
    let until = |status: &str, eligible: bool| {
        up::wait(&world.layout, "health to follow the node", || {
            let (got, body) = health(world, "/healthz")?;
            seen(got == status && body["nodeEligible"] == eligible, &format!("{got} {body}"))
        })
    };
    until("200", true)?;
    taint(r#"[{"key":"ToBeDeletedByClusterAutoscaler","effect":"NoSchedule"}]"#)?;
    let drained = until("503", false).and_then(|()| {
        let (status, body) = health(world, "/livez")?;
        ensure!(status == "200" && body["currentTime"].is_string(), "/livez: {status} {body}");
        Ok(())
    });
    taint("null")?;
    drained?;
    until("200", true)?;
    // The pod that serves it goes on.
    traffic::get(&world.layout, &pod(world)?, &format!("http://{}/", hello(world)?.0[0]))?;
    Ok(())
}
