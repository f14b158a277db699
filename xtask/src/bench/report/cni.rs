//! The section of the pod network.

use std::fmt::Write;

use super::{Section, all, bars};
use crate::bench::{Area, results::Results};

const INTRODUCTION: &str = "`cargo xtask bench cni` (as root; `--only add-` and its like for a part). Each plugin is called at a node of its own, a network namespace, by a process that starts there, as a runtime calls it: its environment, its configuration on standard input, its answer awaited; the network namespaces of the pods are there before. `ptp` and `bridge` with `host-local` are those of Debian's package `containernetworking-plugins`, with IPv4 addresses alone: with IPv6 they wait for duplicate address detection. `mizzen` is the agent with all its roles and its plugin, and connects pods by both families. `ptp` is the reference.
A turn is 25 ADDs, or 25 DELs, one after the other; or 50 ADDs at once, until the last has its answer. `plugin-start` calls VERSION, and `/bin/true` beside it.
Packets between two pods of a node have a veth between two namespaces, and nothing else, as their reference; those between nodes that share no link the kernel's VXLAN with static entries for neighbours, forwarding and routes. Client and server run on one CPU for round trips, on two for streams.
";

/// The section.
pub(super) fn section(results: &Results, machine: &str) -> Section {
    let mut text = String::from(INTRODUCTION);
    // Writing to a String can't fail.
    let _ = write_text(&mut text, results, machine);
    Section { title: Area::Cni.title(), text, plots: Vec::new() }
}

fn write_text(text: &mut String, results: &Results, machine: &str) -> std::fmt::Result {
    writeln!(text, "\n{machine}\n")?;
    bars(text, &results.figures)?;
    all(text, &results.figures)
}
