//! `agent-bytes-per-pod`: what the agent remembers of each pod.

use std::{thread, time::Duration};

use anyhow::{Context, Result};

use super::plugin::Plugin;
use crate::{
    bench::{Figure, turns::Summary, world::World},
    cluster::{process, up},
};

/// Resident memory of the agent that each pod adds.
pub const NAME: &str = "agent-bytes-per-pod";

/// Pods of one look: most of a range of 254.
const PODS: usize = 200;
/// Of them at once.
const AT_ONCE: usize = 25;
const SAMPLES: u32 = 3;
/// For memory to be given back.
const SETTLING: Duration = Duration::from_secs(2);

/// The figure: what memory grows by with so many pods. An agent that had as many before has grown
/// its tables already, so that the first time does not count.
pub fn measure(world: &World, plugin: &Plugin) -> Result<Vec<Figure>> {
    let pods = plugin.pods(PODS)?;
    let mut samples = Vec::new();
    for sample in 0..=SAMPLES {
        let before = resident(world, plugin)?;
        for some in pods.chunks(AT_ONCE) {
            plugin.at_once("ADD", some)?;
        }
        let after = resident(world, plugin)?;
        for some in pods.chunks(AT_ONCE) {
            plugin.at_once("DEL", some)?;
        }
        if sample > 0 {
            #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
            samples.push((after - before) as f64 / PODS as f64);
        }
    }
    let summary = Summary::of(&samples);
    Ok(vec![
        Figure::of(NAME, summary, "bytes", "mizzen-agent, 200 pods", SAMPLES).at_most(2048.0, 0.0),
    ])
}

fn resident(world: &World, plugin: &Plugin) -> Result<i64> {
    thread::sleep(SETTLING);
    let agent = process::running(&world.layout, &up::agent(&plugin.host.name));
    Ok(i64::try_from(agent.context("no agent runs")?.resident_bytes()?)?)
}
