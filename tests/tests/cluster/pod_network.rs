//! What the pod network does for pods and nodes beyond connecting them.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::cluster::{
    exec::{self, Place},
    traffic, up,
};

use super::{Check, World, containers::delete_pod};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("cni_31_a_host_port_of_a_pod_answers_at_its_node", host_port),
    ("cni_32_a_pod_is_limited_by_its_annotations", limited),
    ("nodes_are_said_to_have_a_network", condition),
    ("pods_and_routes_of_a_node_are_told_as_text_and_as_json", told),
];

const POD: &str = "/api/v1/namespaces/default/pods/host-port";
const PORT: u16 = 18_080;

fn host_port(world: &World) -> Result<()> {
    world.api.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: host-port, namespace: default}}
spec:
  nodeName: node-2
  terminationGracePeriodSeconds: 1
  containers:
    - name: hello
      image: hello
      imagePullPolicy: IfNotPresent
      ports: [{{containerPort: 8080, hostPort: {PORT}}}]
      env: [{{name: POD_NAME, value: host-port}}, {{name: NODE_NAME, value: node-2}}]
"
    ))?;
    up::wait(&world.layout, "the pod to run", || {
        let pod = world.api.get(POD)?;
        Ok(if pod["status"]["phase"] == "Running" { Ok(()) } else { Err(pod.to_string()) })
    })?;
    let node = world.layout.node_hosts().into_iter().nth(1).context("no second node")?;
    let urls = [node.ipv4.to_string(), node.ipv6.to_string()]
        .map(|ip| format!("http://{}:{PORT}/", traffic::host(&ip)));
    let places =
        [Place::Host("client".into()), Place::Host(node.name.clone()), super::traffic::pod(world)?];
    for (place, url) in places.iter().flat_map(|place| urls.iter().map(move |url| (place, url))) {
        let answer = up::wait(&world.layout, "the server in the pod", || {
            let answer = traffic::get(&world.layout, place, url);
            Ok(answer.map_err(|error| format!("{url}: {error:#}")))
        })?;
        ensure!(answer["pod"] == "host-port", "{url}: {answer}");
    }
    let own = Place::Host(node.name);
    let services = exec::capture(&world.layout, &own, &["mizzen", "services", "default"])?;
    ensure!(services.contains("pod/host-port") && services.contains("HostPort"), "{services}");
    delete_pod(world, "host-port")?;
    up::wait(&world.layout, "the host port to be closed", || {
        let answer = traffic::get(&world.layout, &places[0], &urls[0]);
        Ok(if answer.is_err() { Ok(()) } else { Err("it is open".to_owned()) })
    })
}

/// The runtime, whichever it is, hands what the pod says of itself to the plugin.
fn limited(world: &World) -> Result<()> {
    world.api.apply(
        "apiVersion: v1
kind: Pod
metadata:
  name: limited
  namespace: default
  annotations: {kubernetes.io/ingress-bandwidth: 100M, kubernetes.io/egress-bandwidth: 50M}
spec:
  nodeName: node-1
  terminationGracePeriodSeconds: 1
  containers:
    - {name: hello, image: hello, imagePullPolicy: IfNotPresent}
",
    )?;
    let place = Place::Host("node-1".into());
    let words = ["mizzen", "pods", "default/limited", "-o", "json"];
    up::wait(&world.layout, "the pod to be limited", || {
        // A pod that is not connected yet is unknown to its node's agent.
        let told = match exec::capture(&world.layout, &place, &words) {
            Ok(told) => serde_json::from_str::<Value>(&told)?,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        let limits = [&told[0]["ingress"], &told[0]["egress"]];
        Ok(if limits == [100_000_000, 50_000_000] { Ok(()) } else { Err(told.to_string()) })
    })?;
    delete_pod(world, "limited")
}

fn condition(world: &World) -> Result<()> {
    up::wait(&world.layout, "the nodes' conditions", || {
        let nodes = world.api.get("/api/v1/nodes")?;
        let conditions = nodes["items"].as_array().into_iter().flatten().map(|node| {
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            let mut named = conditions.filter(|one| one["type"] == "NetworkUnavailable");
            named.any(|one| one["status"] == "False")
        });
        let said: Vec<bool> = conditions.collect();
        Ok(if said == [true, true] { Ok(()) } else { Err(format!("{nodes}")) })
    })
}

/// Texts of a list.
fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// `mizzen pods` and `mizzen routes` of the first node, beside what the API has.
fn told(world: &World) -> Result<()> {
    let hosts = world.layout.node_hosts();
    let [own, other, ..] = &hosts[..] else { anyhow::bail!("no two nodes") };
    let place = Place::Host(own.name.clone());
    let text = |command: &str| exec::capture(&world.layout, &place, &["mizzen", command]);
    let rows = |command: &str| -> Result<Value> {
        let words = ["mizzen", command, "-o", "json"];
        Ok(serde_json::from_str(&exec::capture(&world.layout, &place, &words)?)?)
    };

    let path = format!(
        "/api/v1/pods?labelSelector=app%3Dhello&fieldSelector=spec.nodeName%3D{}",
        own.name
    );
    let pods = world.api.get(&path)?;
    let pods = pods["items"].as_array().context("no list of pods")?;
    ensure!(!pods.is_empty(), "no pod of hello is on {}", own.name);
    let (shown, told) = (text("pods")?, rows("pods")?);
    for pod in pods {
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
        let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
        let ips: Vec<&str> = ips.filter_map(|one| one["ip"].as_str()).collect();
        let row = told.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name));
        let row = row.with_context(|| format!("{name} is not in {told}"))?;
        ensure!(row["namespace"] == "default" && row["state"] == "connected", "{row}");
        ensure!(texts(&row["addresses"]) == ips && ips.len() == 2, "{row} {ips:?}");
        ensure!(row["ifname"] == "eth0" && row["damage"] == Value::Array(Vec::new()), "{row}");
        let link = row["hostIfname"].as_str().context("a pod without a link")?;
        let line = shown.lines().find(|line| line.contains(name));
        let words = [&ips.join(","), link, "connected"];
        ensure!(line.is_some_and(|line| words.iter().all(|word| line.contains(word))), "{shown}");
    }

    let node = world.api.get(&format!("/api/v1/nodes/{}", other.name))?;
    let ranges = texts(&node["spec"]["podCIDRs"]);
    let (shown, told) = (text("routes")?, rows("routes")?);
    ensure!(ranges.len() == 2, "{node}");
    for range in ranges {
        let row = told.as_array().and_then(|rows| rows.iter().find(|row| row["range"] == range));
        let row = row.with_context(|| format!("{range} is not in {told}"))?;
        ensure!(row["node"] == other.name.as_str() && row["way"] == "direct", "{row}");
        ensure!(row["state"] == "ok", "{row}");
        let via = row["via"].as_str().context("a way by nothing")?;
        let line = shown.lines().find(|line| line.contains(range));
        let words = [other.name.as_str(), "direct", via, "ok"];
        ensure!(line.is_some_and(|line| words.iter().all(|word| line.contains(word))), "{shown}");
    }
    Ok(())
}
