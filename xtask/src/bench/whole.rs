//! The whole product on two nodes, as `up` starts it: how long until it answers, what it takes.

use std::time::Instant;

use anyhow::{Context, Result};

use super::{Figure, interrupt, statistics};
use crate::cluster::{Layout, api::Api, exec::Place, process, traffic, up};

const MIB: f64 = 1024.0 * 1024.0;

/// The names of the figures.
pub const NAMES: &[&str] = &["up-to-first-answer", "agent-rss", "control-plane-rss"];

/// Starts a cluster with the example, and measures it.
pub fn measure(layout: &Layout) -> Result<Vec<Figure>> {
    let start = Instant::now();
    let api = up::up(layout)?;
    interrupt::check()?;
    up::apply_hello(layout, &api)?;
    first_answer(layout, &api)?;
    let first = start.elapsed().as_secs_f64();
    let mut figures = vec![Figure::once("up-to-first-answer", first, "s", "mizzen, two nodes")];
    figures.extend(memory(layout)?);
    Ok(figures)
}

/// The first answer that the client outside gets at a node port.
fn first_answer(layout: &Layout, api: &Api) -> Result<()> {
    let service = api.get("/api/v1/namespaces/default/services/hello")?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("no node port")?;
    let url = format!("http://{}:{port}/", layout.node_hosts()[0].ipv4);
    let client = Place::Host("client".into());
    up::wait(layout, "the first answer", || {
        Ok(traffic::get(layout, &client, &url).map(drop).map_err(|error| error.to_string()))
    })
}

fn memory(layout: &Layout) -> Result<Vec<Figure>> {
    #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
    let resident = |name: &str| -> Result<f64> {
        let process = process::running(layout, name).with_context(|| format!("no {name}"))?;
        Ok(process.resident_bytes()? as f64 / MIB)
    };
    let agents: Vec<f64> = layout
        .node_hosts()
        .iter()
        .map(|host| resident(&up::agent(&host.name)))
        .collect::<Result<_>>()?;
    let agent = statistics::median(&agents);
    let control_plane = resident(up::CONTROL_PLANE)?;
    Ok(vec![
        Figure::once("agent-rss", agent, "MiB", "mizzen-agent, five services"),
        Figure::once("control-plane-rss", control_plane, "MiB", "mizzen-control-plane"),
    ])
}
