//! What the pod network does for pods and nodes beyond connecting them.

use anyhow::{Context as _, Result, ensure};
use xtask::cluster::{
    exec::{self, Place},
    traffic, up,
};

use super::{Check, World, containerd::delete_pod};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("cni_31_a_host_port_of_a_pod_answers_at_its_node", host_port),
    ("nodes_are_said_to_have_a_network", condition),
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
