//! Is the cluster alive? Real requests by every way that the example offers.

use std::collections::BTreeSet;

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
}

/// Asks `hello` by ClusterIP, node port and name, over both families.
pub fn check_hello(layout: &Layout, api: &Api) -> Result<Vec<Checked>> {
    let service = api.get("/api/v1/namespaces/default/services/hello")?;
    let port =
        service["spec"]["ports"][0]["nodePort"].as_u64().context("hello has no node port")?;
    let pod = Place::Pod(first_pod(api)?);
    let client = Place::Host("client".into());
    let mut done = Vec::new();
    for ip in service["spec"]["clusterIPs"].as_array().into_iter().flatten() {
        let ip = ip.as_str().unwrap_or_default();
        done.push(ask(layout, &pod, "ClusterIP, from a pod", &format!("http://{}/", host(ip)))?);
    }
    let name = "http://hello.default.svc.cluster.local/";
    done.push(ask(layout, &pod, "name, from a pod", name)?);
    for node in layout.node_hosts() {
        for ip in [node.ipv4.to_string(), node.ipv6.to_string()] {
            let url = format!("http://{}:{port}/", host(&ip));
            done.push(ask(layout, &client, "node port, from the client", &url)?);
        }
    }
    Ok(done)
}

/// Asks until every node has answered; waits where the service is not programmed yet.
fn ask(layout: &Layout, place: &Place, way: &str, url: &str) -> Result<Checked> {
    let mut checked =
        Checked { way: format!("{way}: {url}"), pods: BTreeSet::new(), nodes: BTreeSet::new() };
    let wanted = layout.node_hosts().len();
    up::wait(layout, &checked.way.clone(), || {
        Ok(get(layout, place, url).map(drop).map_err(|error| format!("{error:#}")))
    })?;
    for _ in 0..REQUESTS {
        let answer = get(layout, place, url)?;
        checked.pods.insert(answer["pod"].as_str().unwrap_or_default().to_owned());
        checked.nodes.insert(answer["node"].as_str().unwrap_or_default().to_owned());
        if checked.nodes.len() >= wanted {
            return Ok(checked);
        }
    }
    bail!("{}: {REQUESTS} answers, all from {:?}", checked.way, checked.nodes)
}

/// One request to the hello server.
pub fn get(layout: &Layout, place: &Place, url: &str) -> Result<Value> {
    let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", url];
    let text = exec::capture(layout, place, &curl)?;
    serde_json::from_str(&text).with_context(|| format!("{url} answered {text:?}"))
}

/// The name of a ready pod of the example.
pub fn first_pod(api: &Api) -> Result<String> {
    let pods = api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dhello")?;
    pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .and_then(|pod| pod["metadata"]["name"].as_str())
        .map(str::to_owned)
        .context("hello has no pods")
}

/// An address as a URL has it.
pub fn host(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }
}
