//! Writes `docs/benchmarks.md` and its plots from the figures of a run.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{Figure, contender::BESIDE, packet, plot, services::Results, sockets};
use crate::invoke;

const INTRODUCTION: &str = "# Benchmarks

Written by `cargo xtask bench services`; do not edit.

Each contender has a client, a node and a backend of its own: three network namespaces in a row, the same for all. `bare` is such a row without any service, where the client calls the backend itself, and stands twice (A/A): the ratio of the two says how noisy the machine was. `direct beside X` calls the backend itself on a node that X serves. `nftables` and `iptables` are rule sets in the shape that kube-proxy gives them, with conntrack; `mizzen` is the agent without its CNI and DNS, with its packet programs at every link of the node. All take turns within a round; ratios are taken within a round. A value is the median over the rounds, the spread half of the distance between the quartiles.
Client and echo server share one CPU, so that a round trip is what it costs; CPU time is that of both and of the kernel in their context. Connections are: connect, a byte there and back, reset.
";

const BARS: &str = "## What must be

A ratio passes when it is no further beyond its bound than the half-spread of A/A.

| figure | contender | value | spread | must be | met |
|---|---|---|---|---|---|
";

/// Replaces the page and its plots in a folder, and names the page.
pub fn write(results: &Results, docs: &Path) -> Result<PathBuf> {
    let folder = docs.join("benchmarks");
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let path = docs.join("benchmarks.md");
    let page = page(results, &machine()?);
    for (name, text) in plots(results).into_iter().chain([("../benchmarks.md", page)]) {
        fs::write(folder.join(name), text)
            .with_context(|| format!("can't write {name} at {}", path.display()))?;
    }
    Ok(path)
}

/// The plots by the names of their files.
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

/// The page.
fn page(results: &Results, machine: &str) -> String {
    let mut page = String::from(INTRODUCTION);
    // Writing to a String can't fail.
    let _ = write_page(&mut page, results, machine);
    page
}

fn write_page(page: &mut String, results: &Results, machine: &str) -> std::fmt::Result {
    writeln!(page, "\n{machine}\n")?;
    page.push_str(BARS);
    for figure in &results.figures {
        let (Some(bar), Some(met)) = (figure.bar, figure.is_met()) else { continue };
        let Figure { name, contender, value, unit, spread, .. } = figure;
        let unit = if *unit == "ratio" { String::new() } else { format!(" {unit}") };
        let met = if met { "yes" } else { "**no**" };
        writeln!(
            page,
            "| `{name}` | {contender} | {value:.3}{unit} | {spread:.3} | {bar}{unit} | {met} |"
        )?;
    }
    page.push_str("\n![Latency of connections](benchmarks/connect-latency.svg)\n\n");
    page.push_str("![Services at the socket](benchmarks/sockets.svg)\n\n");
    page.push_str("![CPU time of packets](benchmarks/packet-cpu.svg)\n");
    write_points(page, results)?;
    writeln!(page, "\n## All figures\n")?;
    writeln!(page, "| figure | value | unit | spread | contender | rounds |")?;
    writeln!(page, "|---|---|---|---|---|---|")?;
    for figure in &results.figures {
        let Figure { name, value, unit, spread, contender, rounds, .. } = figure;
        writeln!(
            page,
            "| `{name}` | {value:.3} | {unit} | {spread:.3} | {contender} | {rounds} |"
        )?;
    }
    Ok(())
}

fn write_points(page: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(page, "\n## Connections over the number of services\n")?;
    writeln!(page, "| contender | services | p50, us | spread | p99, us | CPU, us |")?;
    writeln!(page, "|---|---|---|---|---|---|")?;
    for point in &results.points {
        writeln!(
            page,
            "| {} | {} | {:.1} | {:.1} | {:.1} | {:.1} |",
            point.label, point.size, point.p50_us, point.spread, point.p99_us, point.cpu_us
        )?;
    }
    Ok(())
}

fn machine() -> Result<String> {
    let kernel = invoke::capture(Command::new("uname").arg("-sr"))?;
    let date = invoke::capture(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, name)| name);
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    Ok(format!("{}, {count} x {model}, {}.", kernel.trim(), date.trim()))
}

#[cfg(test)]
mod tests {
    use super::{super::turns::Summary, *};

    #[test]
    fn a_bar_that_is_missed_says_so() {
        let summary = Summary { value: 0.9, spread: 0.01 };
        let figure = Figure::ratio("socket-rr", summary, "mizzen / direct", 7).at_least(0.99, 0.02);
        let results = Results { figures: vec![figure], ..Results::default() };
        let page = page(&results, "a machine");
        let row = "| `socket-rr` | mizzen / direct | 0.900 | 0.010 | >= 0.99 | **no** |";
        assert!(page.contains(row), "{page}");
    }
}
