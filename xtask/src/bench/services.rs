//! The figures of service load balancing, on a cluster as `up` makes it.
//!
//! Contenders: `direct` (client pod to the server pod's own address, twice a round), and
//! `clusterip` (the same client to the same server by its Service). Client and server are pods of
//! one node, so that nothing but the translation differs.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Figure, statistics};
use crate::{
    cluster::{
        Layout,
        api::Api,
        down,
        exec::{self, Place},
        layout::NODES_MAX,
        process, traffic, up,
    },
    product::{self, Profile},
    step::{note, step},
    target_dir,
};

const SERVER_PORT: u16 = 7777;
const IPERF_PORT: u16 = 5201;
/// How often a figure is measured in search of a quiet time.
const ATTEMPTS: u32 = 4;
/// Where the median of direct/direct lies on a quiet machine.
const QUIET: std::ops::RangeInclusive<f64> = 0.98..=1.02;
const MIB: f64 = 1024.0 * 1024.0;

/// Measures one way once.
type Measure = fn(&Layout, Way<'_>) -> Result<f64>;

/// A way to the server.
#[derive(Clone, Copy, Debug)]
struct Way<'a> {
    label: &'a str,
    ip: &'a str,
}

/// Starts a cluster of its own, measures, and removes it.
pub fn measure(rounds: u32) -> Result<Vec<Figure>> {
    let layout = Layout {
        name: "bench".into(),
        subnet: (29, 0),
        nodes: 2,
        dir: target_dir().join("bench-cluster"),
        bin_dir: product::bin_dir(Profile::Release),
        loopback_api: false,
    };
    down::down(&Layout { nodes: NODES_MAX, ..layout.clone() })?;
    let measured = measure_on(&layout, rounds);
    if measured.is_ok() {
        down::down(&layout)?;
    }
    measured
}

fn measure_on(layout: &Layout, rounds: u32) -> Result<Vec<Figure>> {
    let start = Instant::now();
    let api = up::up(layout)?;
    up::apply_hello(layout, &api)?;
    first_answer(layout, &api)?;
    let first = start.elapsed().as_secs_f64();
    let mut figures = vec![figure("up-to-first-answer", first, "s", "mizzen, two nodes", 1)];
    figures.extend(memory(layout)?);
    figures.push(step("calls per endpoint change", || calls_per_change(layout, &api, rounds))?);
    figures.extend(step("sockets", || sockets(layout, &api, rounds))?);
    Ok(figures)
}

fn figure(
    name: &'static str,
    value: f64,
    unit: &'static str,
    contender: &'static str,
    rounds: u32,
) -> Figure {
    Figure { area: "services", name, value, unit, contender, rounds, spread: 0.0 }
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
    Ok(vec![
        figure("agent-rss", statistics::median(&agents), "MiB", "mizzen-agent", 1),
        figure("control-plane-rss", resident(up::CONTROL_PLANE)?, "MiB", "mizzen", 1),
    ])
}

/// Scales `hello` up and down by one and reads how many calls the agents made for it.
///
/// Every change concerns four sets: two ports of two families. How many endpoints changed is read
/// from the flips: a pod that starts is two changes, not ready and ready.
fn calls_per_change(layout: &Layout, api: &Api, rounds: u32) -> Result<Figure> {
    const SETS: f64 = 4.0;
    let mut samples = Vec::new();
    for round in 0..rounds {
        let before = calls_and_flips(layout)?;
        api.scale("hello", if round % 2 == 0 { 5 } else { 4 })?;
        up::wait(layout, "hello", || up::deployment_ready(api, "hello"))?;
        let after = up::wait(layout, "the change in the maps", || {
            let now = calls_and_flips(layout)?;
            let flips = now.1 - before.1;
            Ok(if flips >= SETS { Ok(now) } else { Err(format!("{flips} flips")) })
        })?;
        samples.push(SETS * (after.0 - before.0) / (after.1 - before.1));
    }
    let mut figure = figure(
        "calls-per-endpoint-change",
        statistics::median(&samples),
        "calls",
        "mizzen-agent, two ports of two families",
        rounds,
    );
    figure.spread = statistics::half_spread(&samples);
    Ok(figure)
}

/// Map calls and set flips of the first node's agent since it started.
fn calls_and_flips(layout: &Layout) -> Result<(f64, f64)> {
    let node = Place::Host("node-1".into());
    let argv = ["curl", "--silent", "--fail", "http://127.0.0.1:10249/metrics"];
    let text = exec::capture(layout, &node, &argv)?;
    let metric = |name: &str| -> Result<f64> {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
            .with_context(|| format!("the agent has no metric {name}"))
    };
    Ok((metric("mizzen_map_calls_total")?, metric("mizzen_map_set_flips_total")?))
}

/// Throughput, round trips and connections by Service and direct, in turn.
fn sockets(layout: &Layout, api: &Api, rounds: u32) -> Result<Vec<Figure>> {
    start_pods(layout, api)?;
    let pod = api.get("/api/v1/namespaces/default/pods/bench-server")?;
    let service = api.get("/api/v1/namespaces/default/services/bench")?;
    let direct = pod["status"]["podIP"].as_str().context("no pod address")?;
    let cluster_ip = service["spec"]["clusterIP"].as_str().context("no ClusterIP")?;
    let ways = [
        Way { label: "direct", ip: direct },
        Way { label: "clusterip", ip: cluster_ip },
        Way { label: "direct again", ip: direct },
    ];
    let measures: [(&'static str, &'static str, Measure); 3] = [
        ("socket-throughput", "socket-throughput-aa", throughput),
        ("socket-rr", "socket-rr-aa", |layout, way| load(layout, way, "rr")),
        ("socket-connect-rate", "socket-connect-rate-aa", |layout, way| {
            load(layout, way, "connect")
        }),
    ];
    let mut figures = Vec::new();
    for (name, name_aa, measure) in measures {
        let turns = quiet_turns(layout, name, &ways, measure, rounds)?;
        note(&format!("{name}: {:.3}", statistics::median(&turns.ratios)));
        for (name, samples, contender) in [
            (name, &turns.ratios, "ClusterIP / direct"),
            (name_aa, &turns.reference, "direct / direct"),
        ] {
            let mut figure = figure(name, statistics::median(samples), "ratio", contender, rounds);
            figure.spread = statistics::half_spread(samples);
            figures.push(figure);
        }
    }
    Ok(figures)
}

/// The ratios of one figure, a value per round.
struct Turns {
    /// ClusterIP to the mean of both direct turns.
    ratios: Vec<f64>,
    /// The second direct turn to the first: what the machine's noise alone does.
    reference: Vec<f64>,
}

/// Measures until the reference says that the machine was quiet, a few times at most.
fn quiet_turns(
    layout: &Layout,
    name: &str,
    ways: &[Way<'_>; 3],
    measure: Measure,
    rounds: u32,
) -> Result<Turns> {
    let mut turns = take_turns(layout, name, ways, measure, rounds)?;
    for _again in 1..ATTEMPTS {
        let reference = statistics::median(&turns.reference);
        if QUIET.contains(&reference) {
            break;
        }
        note(&format!("{name}: the machine is noisy (direct/direct {reference:.3}), once more"));
        turns = take_turns(layout, name, ways, measure, rounds)?;
    }
    Ok(turns)
}

fn take_turns(
    layout: &Layout,
    name: &str,
    ways: &[Way<'_>; 3],
    measure: Measure,
    rounds: u32,
) -> Result<Turns> {
    let mut turns = Turns { ratios: Vec::new(), reference: Vec::new() };
    for round in 0..rounds {
        let mut got = [0.0; 3];
        // Who begins changes: what the first of a round warms up favours nobody.
        for turn in 0..ways.len() {
            let at = (turn + round as usize) % ways.len();
            got[at] =
                measure(layout, ways[at]).with_context(|| format!("{name}, {}", ways[at].label))?;
        }
        turns.ratios.push(2.0 * got[1] / (got[0] + got[2]));
        turns.reference.push(got[2] / got[0]);
    }
    Ok(turns)
}

fn start_pods(layout: &Layout, api: &Api) -> Result<()> {
    let xtask = std::env::current_exe()?.display().to_string();
    let serve = format!("{xtask} load serve [::]:{SERVER_PORT} & exec iperf3 -s -p {IPERF_PORT}");
    let pod = |name: &str, script: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "nodeName": "node-1",
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "image": "none", "command": ["sh", "-c", script]}],
            },
        })
    };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "bench"},
        "spec": {
            "selector": {"app": "bench-server"},
            "ports": [
                {"name": "load", "port": SERVER_PORT}, {"name": "iperf", "port": IPERF_PORT},
            ],
        },
    });
    for object in [pod("bench-server", &serve), pod("bench-client", "sleep infinity"), service] {
        api.apply(&object.to_string())?;
    }
    up::wait(layout, "the benchmark's pods", || {
        let list = api.get(
            "/api/v1/namespaces/default/pods?labelSelector=app+in+(bench-server,bench-client)",
        )?;
        let running = |pod: &Value| pod["status"]["phase"] == "Running";
        let count = list["items"].as_array().into_iter().flatten().filter(|p| running(p)).count();
        Ok(if count == 2 { Ok(()) } else { Err(format!("{count} of 2 run")) })
    })?;
    let service = api.get("/api/v1/namespaces/default/services/bench")?;
    let ip = service["spec"]["clusterIP"].as_str().context("no ClusterIP")?.to_owned();
    up::wait(layout, "the benchmark's service", || {
        let way = Way { label: "clusterip", ip: &ip };
        Ok(load(layout, way, "connect").map(drop).map_err(|error| format!("{error:#}")))
    })
}

fn client() -> Place {
    Place::Pod("bench-client".into())
}

fn load(layout: &Layout, way: Way<'_>, mode: &str) -> Result<f64> {
    let xtask = std::env::current_exe()?.display().to_string();
    let target = format!("{}:{SERVER_PORT}", traffic::host(way.ip));
    let text = exec::capture(layout, &client(), &[&xtask, "load", mode, &target])?;
    text.trim().parse().with_context(|| format!("the load generator printed {text:?}"))
}

fn throughput(layout: &Layout, way: Way<'_>) -> Result<f64> {
    let port = IPERF_PORT.to_string();
    let argv = ["iperf3", "-c", way.ip, "-p", &port, "-t", "1", "-J"];
    let result: Value = serde_json::from_str(&exec::capture(layout, &client(), &argv)?)?;
    result["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 gave no rate")
}
