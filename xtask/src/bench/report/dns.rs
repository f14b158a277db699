//! The section of cluster DNS.

use std::fmt::Write;

use super::{Section, all, bars};
use crate::bench::{Area, Figure, plot, results::Results};

const INTRODUCTION: &str = "Each server runs alone in a network namespace, by hand, with its own configuration: the same names, one thread on one CPU, no log, answers of the least size. Its client, `dnsperf` on the other CPU, is in a second namespace behind a link, as a pod is. `unbound` (names as local data) is the reference; `dnsmasq` has host records, `named` (BIND 9) and `knot` a zone; `mizzen` is the agent with its DNS role alone, and follows an API server with as many Services. Before anything is measured, `dig` has the same answers from all: the address of each of 1,000 Services, a type that does not exist, a name that does not.
CPU time is that of the server's threads with the kernel's work in their context (`/proc/PID/task/*/schedstat`) for each answered question, with 100 questions under way. Latencies are those of 5,000 questions a second. A search storm asks for names outside by a pod's search path, until one of five names has an address. Under churn, endpoints become ready and cease to be, one of another Service each time, of 10,000 Services with 10 endpoints, through the API server, which runs when nobody else wants the client's CPU; `unbound` beside it answers while the agent follows on the same CPU. Under overload a server has a tenth of its CPU, and is asked five times as much as it then answers with 100 questions under way: goodput is what it answers within a second of that over what it answered before, `overload-answered` the part of all questions that is answered, `overload-rss` how far its resident memory rises above what it was before. `conntrack-of-dns` counts what connection tracking, switched on by a rule of others, knows of a thousand questions by UDP and one by TCP. `new-service-p99` is of 200 Services, 20 a second beside 10,000: from the moment that a watch of our own hears of one to that at which a pod, which asks without pause by IPv4 and by IPv6, has its address. `restart-to-names` is from the start of an agent in the place of one that was killed to the first address.
";

/// The section.
pub(super) fn section(results: &Results, machine: &str) -> Section {
    let mut text = String::from(INTRODUCTION);
    // Writing to a String can't fail.
    let _ = write_text(&mut text, results, machine);
    Section { title: Area::Dns.title(), text, plots: plots(results) }
}

fn plots(results: &Results) -> Vec<(&'static str, String)> {
    let named = |names: &[&str]| -> Vec<&Figure> {
        results.figures.iter().filter(|figure| names.contains(&figure.name.as_str())).collect()
    };
    let cpu = named(&["cpu-per-query"]);
    let latency = named(&["p50-at-5000", "p99-at-5000"]);
    vec![
        ("dns-cpu.svg", plot::bars("CPU time of a question, microseconds", &cpu)),
        ("dns-latency.svg", plot::bars("Latency at 5,000 questions/s, microseconds", &latency)),
    ]
}

fn write_text(text: &mut String, results: &Results, machine: &str) -> std::fmt::Result {
    writeln!(text, "\n{machine}\n")?;
    bars(text, &results.figures)?;
    text.push_str("\n![CPU time of a question](benchmarks/dns-cpu.svg)\n\n");
    text.push_str("![Latency of questions](benchmarks/dns-latency.svg)\n");
    all(text, &results.figures)
}
