//! The section of the control plane.

use std::fmt::Write;

use super::{Section, all, bars};
use crate::bench::{Area, results::Results};

const INTRODUCTION: &str = "`cargo xtask bench control-plane` (as root; `--only watch-` and its like for a part). Servers and load share the machine, on the loopback interface; stores are on its disk. `etcd` is Debian's, of one member, by its usual settings, without TLS and without an API server before it; `mizzen-control-plane` is whole: TLS, authorization, admission, validation, controllers. The load is one program that does the same work on either.
`store-puts` are writes of 1 KB by 64 writers, each answered when it is on the disk: the embedded store is called in the load's process, as the API server calls it; etcd by 64 streams of two connections. `get-p99` is the latency of one reader beside 64 writers that create: GETs of the API while ConfigMaps are made by it, ranges of one key while keys are put. `watch-p99` is from just before a write is sent to its delivery, of the writes of one writer at 100/s; `watch-cpu` the server's CPU time for each delivery where all 1,000 watches, on five connections of HTTP/2, hear of each of 10 writes/s.
";

/// The section.
pub(super) fn section(results: &Results, machine: &str) -> Section {
    let mut text = String::from(INTRODUCTION);
    // Writing to a String can't fail.
    let _ = write_text(&mut text, results, machine);
    Section { title: Area::ControlPlane.title(), text, plots: Vec::new() }
}

fn write_text(text: &mut String, results: &Results, machine: &str) -> std::fmt::Result {
    writeln!(text, "\n{machine}\n")?;
    bars(text, &results.figures)?;
    all(text, &results.figures)
}
