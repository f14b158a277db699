//! `mizzen status` of a node, asked again and again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Result, bail, ensure};
use xtask::cluster::{
    exec::{self, Place},
    layout::Layout,
};

use super::World;

/// What was answered: how often, and what did not say that the node is healthy.
#[derive(Default)]
struct Heard {
    answers: usize,
    unwell: Vec<String>,
}

/// Asks a node until it is finished.
pub(super) struct Polled {
    node: String,
    stop: Arc<AtomicBool>,
    asker: Option<JoinHandle<Result<Heard>>>,
}

impl Polled {
    /// Begins.
    pub(super) fn start(world: &World, node: &str) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (layout, name, stopped) = (world.layout.clone(), node.to_owned(), Arc::clone(&stop));
        let asker = std::thread::spawn(move || ask(&layout, &name, &stopped));
        Self { node: node.to_owned(), stop, asker: Some(asker) }
    }

    /// Ends it. Every answer was that the node is healthy.
    pub(super) fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(Ok(heard)) = self.asker.take().map(JoinHandle::join) else {
            bail!("who asked {} panicked", self.node)
        };
        let Heard { answers, unwell } = heard?;
        ensure!(answers > 1, "{} was asked {answers} times", self.node);
        ensure!(
            unwell.is_empty(),
            "{} of {answers} times {} was not healthy: {}",
            unwell.len(),
            self.node,
            unwell[0]
        );
        Ok(())
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ask(layout: &Layout, node: &str, stop: &AtomicBool) -> Result<Heard> {
    let mut heard = Heard::default();
    let argv = ["mizzen", "status"].map(str::to_owned);
    while !stop.load(Ordering::Relaxed) {
        let output = exec::command(layout, &Place::Host(node.to_owned()), &argv)?.output()?;
        heard.answers += 1;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() || !said.contains(": healthy") {
            heard.unwell.push(said + &String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(heard)
}
