//! `pod-to-pod-*`: packets between two pods of a node, beside a veth between two namespaces and
//! nothing else, and beside pods of Debian's `ptp`.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;

use super::plugin::{MIZZEN, Plugin};
use crate::{
    bench::{
        Figure,
        triple::{CPU, ip, other_cpu},
        turns::{self, Quantity, Rounds},
        world::World,
    },
    cluster::{Layout, cgroup, layout::Host, process, up},
    invoke,
    load::Measured,
};

/// A byte there and back on one connection, as often as fits.
pub const RR: &str = "pod-to-pod-rr";
/// One stream.
pub const THROUGHPUT: &str = "pod-to-pod-throughput";

const ECHO_PORT: u16 = 7777;
const IPERF_PORT: u16 = 5201;
const MILLIS: &str = "500";
/// What a veth and nothing else is called in the figures.
const VETH: &str = "veth";

/// From a client to a server, each in a namespace.
#[derive(Clone, Debug)]
pub struct Way {
    /// What it is called in the figures.
    pub label: &'static str,
    client: String,
    target: Ipv4Addr,
    layout: Layout,
}

impl Way {
    /// A way to an address of `server`, where servers are started.
    pub fn to_server(
        layout: &Layout,
        label: &'static str,
        client: &str,
        server: &str,
        target: Ipv4Addr,
    ) -> Result<Self> {
        let xtask = std::env::current_exe()?.display().to_string();
        let (cpu, echo) = (CPU.to_string(), format!("{target}:{ECHO_PORT}"));
        let echo = [&xtask, "load", "serve", "--cpu", &cpu, &echo].map(str::to_owned).to_vec();
        let iperf = format!("iperf3 --server --port {IPERF_PORT} --affinity {}", other_cpu());
        let iperf = iperf.split(' ').map(str::to_owned).collect();
        let dir = cgroup_of_load(layout)?;
        // Named as the triples' servers, which are not asked to end.
        for (name, argv) in [("echo", echo), ("iperf", iperf)] {
            let spec = process::Spec {
                name: format!("{name}-{server}"),
                netns: Some(server.to_owned()),
                cgroup: dir.clone(),
                argv,
                env: Vec::new(),
            };
            process::ensure(layout, &spec)?;
        }
        let way = Self { label, client: client.to_owned(), target, layout: layout.clone() };
        up::wait(layout, "the first answer between pods", || {
            Ok(way.rr("1").map(drop).map_err(|error| format!("{error:#}")))
        })?;
        Ok(way)
    }

    /// Round trips for so many milliseconds.
    fn rr(&self, millis: &str) -> Result<Measured> {
        let xtask = std::env::current_exe()?.display().to_string();
        let (cpu, target) =
            (CPU.to_string(), SocketAddr::from((self.target, ECHO_PORT)).to_string());
        let text =
            self.capture(&[&xtask, "load", "rr", &target, "--millis", millis, "--cpu", &cpu])?;
        serde_json::from_str(&text).with_context(|| format!("the load generator printed {text:?}"))
    }

    /// One stream for a second, in bits per second.
    pub fn throughput(&self) -> Result<Measured> {
        let (ip, port) = (self.target.to_string(), IPERF_PORT.to_string());
        let cpus = format!("{CPU},{}", other_cpu());
        let text =
            self.capture(&["iperf3", "-c", &ip, "-p", &port, "-t", "1", "-A", &cpus, "-J"])?;
        let result: Value = serde_json::from_str(&text)?;
        let rate = result["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(Measured { rate: rate.context("iperf3 gave no rate")?, ..Measured::default() })
    }

    fn capture(&self, argv: &[&str]) -> Result<String> {
        let argv: Vec<_> = argv.iter().map(|&word| word.to_owned()).collect();
        let line = process::enter(Some(&self.client), &cgroup_of_load(&self.layout)?, &argv);
        let (program, args) = line.split_first().context("no command was given")?;
        invoke::capture(&mut invoke::command(program, args))
            .with_context(|| format!("{}, {}", self.label, self.target))
    }
}

/// A cgroup that no program of ours is attached to: pods' addresses are dialled, no services.
fn cgroup_of_load(layout: &Layout) -> Result<std::path::PathBuf> {
    let dir = cgroup::cluster_dir(layout)?.join("load");
    cgroup::make(&dir)?;
    Ok(dir)
}

/// Measures what is wanted. The first two plugins are the same peer.
pub fn measure(
    world: &World,
    plugins: &[Plugin],
    rounds: u32,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Figure>> {
    let layout = &world.layout;
    let mut ways = Vec::new();
    for (number, plugin) in plugins[..2].iter().enumerate() {
        ways.push(veth(layout, &plugin.host, number)?);
    }
    let ours = plugins.iter().find(|plugin| plugin.label == MIZZEN).context("no mizzen")?;
    for plugin in [ours, &plugins[0]] {
        let pods = plugin.pods(2)?;
        plugin.connect(&pods[0])?;
        let target = plugin.connect(&pods[1])?;
        let (client, server) = (&pods[0].netns, &pods[1].netns);
        ways.push(Way::to_server(layout, plugin.label, client, server, target)?);
    }
    let rate = |measured: &Measured| measured.rate;
    let mut figures = Vec::new();
    if wanted(RR) {
        let taken = turns::quiet(RR, &ways, rounds, rate, |way| way.rr(MILLIS))?;
        figures.extend(ratios(RR, &ways, &taken, rounds, (rate, 0.95)));
        let over_ptp = taken.ratio(2, 3, rate);
        let noise = taken.noise(rate).spread;
        figures.push(
            Figure::ratio("pod-to-pod-rr-ptp", over_ptp, "mizzen / ptp", rounds)
                .at_least(1.10, noise),
        );
    }
    if wanted(THROUGHPUT) {
        let taken = turns::quiet(THROUGHPUT, &ways, rounds, rate, Way::throughput)?;
        figures.extend(ratios(THROUGHPUT, &ways, &taken, rounds, (rate, 0.97)));
    }
    Ok(figures)
}

/// Ratios to the reference, with the bar for ours.
pub fn ratios(
    name: &str,
    ways: &[Way],
    taken: &Rounds,
    rounds: u32,
    (quantity, bar): (Quantity, f64),
) -> Vec<Figure> {
    let noise = taken.noise(quantity);
    let reference = ways[turns::REFERENCE].label;
    let ratio = |(at, way): (usize, &Way)| {
        let contender = format!("{} / {reference}", way.label);
        let ratio = Figure::ratio(name, taken.to_reference(at, quantity), contender, rounds);
        if way.label == MIZZEN { ratio.at_least(bar, noise.spread) } else { ratio }
    };
    let mut figures: Vec<Figure> = ways.iter().enumerate().skip(2).map(ratio).collect();
    let both = format!("{reference} / {reference}");
    figures.push(Figure::ratio(format!("{name}-aa"), noise, both, rounds));
    figures
}

/// Two namespaces with a veth between them.
fn veth(layout: &Layout, host: &Host, number: usize) -> Result<Way> {
    let [client, server] = ["vc", "vs"].map(|end| format!("{}-{end}", host.netns));
    for netns in [&client, &server] {
        ip(&format!("netns add {netns}"))?;
        ip(&format!("-n {netns} link set lo up"))?;
    }
    ip(&format!("-n {client} link add eth0 type veth peer name eth0 netns {server}"))?;
    for (netns, last) in [(&client, 1), (&server, 2)] {
        ip(&format!("-n {netns} addr add 10.242.{number}.{last}/24 dev eth0"))?;
        ip(&format!("-n {netns} link set eth0 up"))?;
    }
    let number = u8::try_from(number)?;
    Way::to_server(layout, VETH, &client, &server, Ipv4Addr::new(10, 242, number, 2))
}
