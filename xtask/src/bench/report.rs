//! Writes `docs/benchmarks.md` from the figures of a run.

use std::{fmt::Write, fs, process::Command};

use anyhow::{Context, Result};

use super::services::Results;
use crate::{checkout, invoke};

const INTRODUCTION: &str = "# Benchmarks

Written by `cargo xtask bench`; do not edit.
Ratios are of contenders that took turns in one run on the same topology: median, and half of the distance between the quartiles.
The reference runs twice in every round (A/A): its ratio says how noisy the machine was.
";

/// Replaces the page.
pub fn write(results: &Results) -> Result<()> {
    let mut page = String::from(INTRODUCTION);
    let machine = machine()?;
    writeln!(page, "\n{machine}\n")?;
    writeln!(page, "| figure | value | unit | spread | contender | rounds |")?;
    writeln!(page, "|---|---|---|---|---|---|")?;
    for figure in &results.figures {
        writeln!(
            page,
            "| `{}` | {:.3} | {} | {:.3} | {} | {} |",
            figure.name, figure.value, figure.unit, figure.spread, figure.contender, figure.rounds
        )?;
    }
    let path = checkout().join("docs/benchmarks.md");
    fs::write(&path, page).with_context(|| format!("can't write {}", path.display()))
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
