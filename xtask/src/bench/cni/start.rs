//! `plugin-size` and `plugin-start`: what each call pays before it does anything.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    bench::{Figure, turns},
    cluster::Layout,
    load::Measured,
};

/// Megabytes of the plugin's file.
pub const SIZE: &str = "plugin-size";
/// A call that does nothing (VERSION), against a program that does nothing.
pub const START: &str = "plugin-start";

const PLUGIN: &str = "mizzen-cni";
const NOTHING: &str = "/bin/true";
/// Calls of a turn.
const CALLS: usize = 100;

/// `plugin-size`.
pub fn size(layout: &Layout) -> Result<Vec<Figure>> {
    let plugin = layout.binary(PLUGIN);
    let metadata =
        fs::metadata(&plugin).with_context(|| format!("can't look at {}", plugin.display()))?;
    #[expect(clippy::cast_precision_loss, reason = "bytes of one file")]
    let megabytes = metadata.len() as f64 / 1e6;
    Ok(vec![Figure::once(SIZE, megabytes, "MB", PLUGIN).at_most(2.0, 0.0)])
}

/// `plugin-start`.
pub fn measure(layout: &Layout, rounds: u32) -> Result<Vec<Figure>> {
    let plugin = layout.binary(PLUGIN);
    let programs = [Path::new(NOTHING), Path::new(NOTHING), &plugin];
    let p50 = |measured: &Measured| measured.p50_us;
    let taken = turns::quiet(START, &programs, rounds, p50, |program| {
        let mut took = Vec::new();
        for _ in 0..CALLS {
            took.push(call(program)?.as_secs_f64() * 1e6);
        }
        Ok(Measured { p50_us: crate::bench::statistics::median(&took), ..Measured::default() })
    })?;
    let noise = taken.noise(p50);
    Ok(vec![
        Figure::ratio(START, taken.to_reference(2, p50), "VERSION / true", rounds)
            .at_most(2.0, noise.spread),
        Figure::ratio("plugin-start-aa", noise, "true / true", rounds),
        Figure::of("plugin-start-us", taken.plain(2, p50), "us", PLUGIN, rounds),
        Figure::of("plugin-start-us", taken.plain(0, p50), "us", NOTHING, rounds),
    ])
}

fn call(program: &Path) -> Result<Duration> {
    let start = Instant::now();
    let status = Command::new(program)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("can't start {}", program.display()))?;
    ensure!(status.success(), "{} failed", program.display());
    Ok(start.elapsed())
}
