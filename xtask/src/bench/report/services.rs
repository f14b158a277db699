//! The section of the services.

use std::fmt::Write;

use super::{Section, all, bars};
use crate::bench::{Area, Figure, contender::BESIDE, packet, plot, results::Results, sockets};

const INTRODUCTION: &str = "Each contender has a client, a node and a backend of its own: three network namespaces in a row, the same for all. `bare` is such a row without any service, where the client calls the backend itself, and is the reference. `direct beside X` calls the backend itself on a node that X serves. `nftables` and `iptables` are rule sets in the shape that kube-proxy gives them, with conntrack; `mizzen` is the agent without its CNI and DNS, with its packet programs at every link of the node.
Client and echo server share one CPU, so that a round trip is what it costs; CPU time is that of both and of the kernel in their context. Connections are: connect, a byte there and back, reset.
`watch-to-map-p99` is judged at the rate of changes that `watch-to-map-rate` says: where that is below its bar, the p99 is not judged.
";

/// The section.
pub(super) fn section(results: &Results, machine: &str) -> Section {
    let mut text = String::from(INTRODUCTION);
    // Writing to a String can't fail.
    let _ = write_text(&mut text, results, machine);
    Section { title: Area::Services.title(), text, plots: plots(results) }
}

fn plots(results: &Results) -> Vec<(&'static str, String)> {
    let sockets: Vec<&str> = sockets::names().collect();
    let ratio = |figure: &&Figure| figure.unit == "ratio";
    let of_sockets: Vec<&Figure> = results
        .figures
        .iter()
        .filter(ratio)
        .filter(|figure| sockets.contains(&figure.name.as_str()))
        .filter(|figure| !figure.contender.starts_with(BESIDE))
        .collect();
    let of_packets: Vec<&Figure> =
        results.figures.iter().filter(|f| f.name == format!("{}-each", packet::NAME)).collect();
    vec![
        ("connect-latency.svg", plot::latency(&results.points)),
        ("sockets.svg", plot::bars("By a service (1 is a direct connection)", &of_sockets)),
        ("packet-cpu.svg", plot::bars("CPU time of a forwarded packet, microseconds", &of_packets)),
    ]
}

fn write_text(text: &mut String, results: &Results, machine: &str) -> std::fmt::Result {
    writeln!(text, "\n{machine}\n")?;
    bars(text, &results.figures)?;
    text.push_str("\n![Latency of connections](benchmarks/connect-latency.svg)\n\n");
    text.push_str("![Services at the socket](benchmarks/sockets.svg)\n\n");
    text.push_str("![CPU time of packets](benchmarks/packet-cpu.svg)\n");
    points(text, results)?;
    all(text, &results.figures)
}

fn points(text: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(text, "\n### Connections over the number of services\n")?;
    writeln!(text, "| contender | services | p50, us | spread | p99, us | CPU, us |")?;
    writeln!(text, "|---|---|---|---|---|---|")?;
    for point in &results.points {
        writeln!(
            text,
            "| {} | {} | {:.1} | {:.1} | {:.1} | {:.1} |",
            point.label, point.size, point.p50_us, point.spread, point.p99_us, point.cpu_us
        )?;
    }
    Ok(())
}
