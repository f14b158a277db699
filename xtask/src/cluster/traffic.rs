//! Is the cluster alive? Real requests by every way that the example offers.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    Layout,
    api::Api,
    exec::{self, Place},
    up,
};

/// How many requests a check makes before it gives up on meeting every backend.
const REQUESTS: usize = 60;

/// One way to the service, and who answered.
#[derive(Debug)]
pub struct Checked {
    /// The way, as a person would say it.
    pub way: String,
    /// The pods that answered.
    pub pods: BTreeSet<String>,
    /// The nodes that they are on.
    pub nodes: BTreeSet<String>,
    /// How long the first answer took.
    pub first: Duration,
}

/// Asks `hello` by ClusterIP, node port and name, over both families.
pub fn check_hello(layout: &Layout, api: &Api) -> Result<Vec<Checked>> {
    let service = api.get("/api/v1/namespaces/default/services/hello")?;
    let port =
        service["spec"]["ports"][0]["nodePort"].as_u64().context("hello has no node port")?;
    let pods = hello_pods(api)?;
    let pod = Place::Pod(name_of_first(&pods)?);
    let nodes = nodes_of(&pods);
    let client = Place::Host("client".into());
    let mut done = Vec::new();
    for ip in service["spec"]["clusterIPs"].as_array().into_iter().flatten() {
        let ip = ip.as_str().unwrap_or_default();
        let url = format!("http://{}/", host(ip));
        done.push(ask(layout, &pod, "ClusterIP, from a pod", &url, &nodes)?);
    }
    let name = "http://hello.default.svc.cluster.local/";
    done.push(ask(layout, &pod, "name, from a pod", name, &nodes)?);
    for node in layout.node_hosts() {
        for ip in [node.ipv4.to_string(), node.ipv6.to_string()] {
            let url = format!("http://{}:{port}/", host(&ip));
            done.push(ask(layout, &client, "node port, from the client", &url, &nodes)?);
        }
    }
    Ok(done)
}

/// Asks until pods on all of `nodes` have answered; waits where the service is not programmed yet.
fn ask(
    layout: &Layout,
    place: &Place,
    way: &str,
    url: &str,
    nodes: &BTreeSet<String>,
) -> Result<Checked> {
    let way = format!("{way}: {url}");
    let start = Instant::now();
    up::wait(layout, &way, || {
        Ok(get(layout, place, url).map(drop).map_err(|error| format!("{error:#}")))
    })?;
    let first = start.elapsed();
    let mut checked = Checked { way, pods: BTreeSet::new(), nodes: BTreeSet::new(), first };
    for _ in 0..REQUESTS {
        let answer = get(layout, place, url)?;
        checked.pods.insert(answer["pod"].as_str().unwrap_or_default().to_owned());
        checked.nodes.insert(answer["node"].as_str().unwrap_or_default().to_owned());
        if checked.nodes.is_superset(nodes) {
            return Ok(checked);
        }
    }
    bail!(
        "{}: {REQUESTS} answers, all from pods on {:?}; there are ready pods on {nodes:?}",
        checked.way,
        checked.nodes
    )
}

/// One request to the hello server.
pub fn get(layout: &Layout, place: &Place, url: &str) -> Result<Value> {
    let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", url];
    let text = exec::capture(layout, place, &curl)?;
    serde_json::from_str(&text).with_context(|| format!("{url} answered {text:?}"))
}

/// The name of a pod of the example that is not being deleted.
pub fn first_pod(api: &Api) -> Result<String> {
    name_of_first(&hello_pods(api)?)
}

/// The pods of the example, as a list of the API.
fn hello_pods(api: &Api) -> Result<Value> {
    api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dhello")
}

fn name_of_first(pods: &Value) -> Result<String> {
    let name = staying(pods).find_map(|pod| pod["metadata"]["name"].as_str());
    name.map(str::to_owned).context("hello has no pods")
}

/// The nodes that pods are on. There may be more nodes than pods, or one that joined later.
fn nodes_of(pods: &Value) -> BTreeSet<String> {
    staying(pods).filter_map(|pod| pod["spec"]["nodeName"].as_str()).map(str::to_owned).collect()
}

/// Those of a list that are not being deleted.
fn staying(pods: &Value) -> impl Iterator<Item = &Value> {
    let items = pods["items"].as_array().into_iter().flatten();
    items.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
}

/// An address as a URL has it.
pub fn host(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_with_pods_that_stay_have_to_answer() {
        let pods = serde_json::json!({"items": [
            {"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"},
             "spec": {"nodeName": "node-1"}},
            {"metadata": {"name": "b"}, "spec": {"nodeName": "node-2"}},
            {"metadata": {"name": "c"}, "spec": {}},
        ]});
        assert_eq!(nodes_of(&pods), BTreeSet::from(["node-2".to_owned()]));
        assert_eq!(name_of_first(&pods).expect("b"), "b");
        assert!(name_of_first(&Value::Null).is_err());
    }
}
