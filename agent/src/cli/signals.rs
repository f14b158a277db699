//! The signals that tell the process to stop.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::dns::vitals::Vitals;

/// What tells the process to stop.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
        })
    }

    /// Done when the process is told to stop.
    pub(super) async fn told_to_stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Done when the process is told to stop and its lameduck is over, or it is told again.
    pub(super) async fn told_and_lame(&mut self, vitals: &Vitals) {
        self.told_to_stop().await;
        let lameduck = vitals.stop();
        tracing::info!(?lameduck, "told to stop");
        tokio::select! {
            () = tokio::time::sleep(lameduck) => {}
            () = self.told_to_stop() => {}
        }
    }
}
