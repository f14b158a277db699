//! `packet-path-cpu`: CPU time of a packet from the client outside, through a node port, to a
//! backend, less what its plain forwarding costs.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::{
    Figure, catalogue,
    contender::Seat,
    sockets,
    triple::{At, BACKENDS, CPU, Triple},
    turns::{self, REFERENCE},
};
use crate::{
    cluster::{Layout, cgroup, process},
    invoke,
    load::Measured,
};

/// The name of the figure.
pub const NAME: &str = "packet-path-cpu";
/// How many services there are.
pub const SIZE: u32 = sockets::SIZE;

/// Packets per second.
const RATE: &str = "50000";
/// How long a turn is.
const MILLIS: &str = "1000";
/// Packets that may be missing at the backend: of a thousand.
const LOST_MAX: u64 = 10;

/// A way from the client outside to the sink.
struct Way {
    label: String,
    triple: Triple,
    target: SocketAddr,
}

/// Measures all. The first two seats are the reference: plain forwarding, for which the client
/// outside knows the way to one backend by each.
pub fn measure(layout: &Layout, seats: &[Seat], rounds: u32) -> Result<Vec<Figure>> {
    let mut ways = Vec::new();
    for (seat, backend) in seats.iter().zip(BACKENDS) {
        let netns = layout.client().netns;
        let line = format!("-n {netns} route replace {backend}/32 via {}", seat.triple.host.ipv4);
        invoke::capture(&mut invoke::command("ip", line.split(' ')))?;
        ways.push(Way {
            label: "plain forwarding".into(),
            triple: seat.triple.clone(),
            target: (backend, catalogue::SINK_PORT).into(),
        });
    }
    ways.extend(seats[2..].iter().map(|seat| Way {
        label: seat.label.clone(),
        triple: seat.triple.clone(),
        target: (seat.triple.host.ipv4, catalogue::SINK_NODE_PORT).into(),
    }));
    let cpu = |measured: &Measured| measured.cpu_us;
    let taken = turns::quiet(NAME, &ways, rounds, cpu, |way| blast(layout, way))?;

    let mut figures = Vec::new();
    let find = |label: &str| ways.iter().position(|way| way.label.starts_with(label));
    if let (Some(ours), Some(nft)) = (find("mizzen"), find("nftables")) {
        let ratio = taken.over(|round| {
            let plain = f64::midpoint(cpu(&round[REFERENCE]), cpu(&round[REFERENCE + 1]));
            (cpu(&round[ours]) - plain) / (cpu(&round[nft]) - plain)
        });
        let contender = "mizzen / nftables, each less plain forwarding";
        figures.push(Figure::ratio(NAME, ratio, contender, rounds).at_most(0.5, 0.0));
    }
    let aa = taken.noise(cpu);
    figures.push(Figure::ratio(format!("{NAME}-aa"), aa, "plain / plain", rounds));
    for (at, way) in ways.iter().enumerate().filter(|(at, _)| *at != REFERENCE + 1) {
        let name = format!("{NAME}-each");
        figures.push(Figure::of(name, taken.plain(at, cpu), "us", way.label.clone(), rounds));
    }
    Ok(figures)
}

/// A turn: the whole way of a packet is walked in the context of who sends it, so the sender's CPU
/// time is the machine's.
fn blast(layout: &Layout, way: &Way) -> Result<Measured> {
    let before = arrived(&way.triple)?;
    let dir = cgroup::cluster_dir(layout)?.join("client").join("load");
    cgroup::make(&dir)?;
    let (cpu, target) = (CPU.to_string(), way.target.to_string());
    let stat = dir.join("cpu.stat").display().to_string();
    let xtask = std::env::current_exe()?.display().to_string();
    let argv = [
        xtask.as_str(),
        "load",
        "blast",
        &target,
        "--rate",
        RATE,
        "--millis",
        MILLIS,
        "--cpu",
        &cpu,
        "--cpu-stat",
        &stat,
    ];
    let argv = argv.map(str::to_owned);
    let line = process::enter(Some(&layout.client().netns), &dir, &argv);
    let (program, args) = line.split_first().context("no command was given")?;
    let text = invoke::capture(&mut invoke::command(program, args))
        .with_context(|| format!("{}, {}", way.label, way.target))?;
    let measured: Measured = serde_json::from_str(&text)?;
    let came = arrived(&way.triple)? - before;
    let lost = measured.operations.saturating_sub(came);
    ensure!(
        lost * 1_000 <= measured.operations * LOST_MAX,
        "{}: only {came} of {} datagrams to {} arrived",
        way.label,
        measured.operations,
        way.target
    );
    Ok(measured)
}

/// Datagrams that came to a socket of the backend: those read, and those for which its buffer had
/// no room.
fn arrived(triple: &Triple) -> Result<u64> {
    let text = triple.capture(At::Backend, &["cat", "/proc/net/snmp"])?;
    udp_arrivals(&text).context("/proc/net/snmp has no line of UDP")
}

fn udp_arrivals(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |name: &str| {
        names.split(' ').zip(values.split(' ')).find(|(n, _)| *n == name)?.1.parse::<u64>().ok()
    };
    Some(value("InDatagrams")? + value("InErrors")?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn arrivals_are_read_and_unread() {
        let text = "Tcp: A\nTcp: 1\nUdp: InDatagrams NoPorts InErrors OutDatagrams\nUdp: 5 6 7 8\n";
        assert_eq!(super::udp_arrivals(text), Some(12));
    }
}
