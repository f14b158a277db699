//! Where lines of the query log are written: a task of its own behind a bounded queue.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::dns::{
    chain::query_log::{Entry, Format},
    metrics::Metrics,
};

/// Lines that wait to be written; more are lost.
const WAITING: usize = 4096;
/// Lines that are written at once.
const BATCH: usize = 64;
/// Under which name lines are logged: a filter of the agent's log can tell them apart.
const TARGET: &str = "mizzen_agent::dns::query_log";

/// The way to the log.
#[derive(Debug)]
pub(super) struct QueryLog {
    lines: mpsc::Sender<(Entry, Arc<Format>)>,
}

impl QueryLog {
    /// A log and the task that writes it, which ends with the log.
    pub(super) fn start() -> Self {
        let (lines, queue) = mpsc::channel(WAITING);
        tokio::spawn(write(queue));
        Self { lines }
    }

    /// Has a line written; where there is no room, it is counted.
    pub(super) fn note(&self, entry: Entry, format: &Arc<Format>, metrics: &Metrics) {
        if self.lines.try_send((entry, Arc::clone(format))).is_err() {
            metrics.chain.unlogged();
        }
    }
}

async fn write(mut queue: mpsc::Receiver<(Entry, Arc<Format>)>) {
    let mut lines = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut lines, BATCH).await > 0 {
        for (entry, format) in lines.drain(..) {
            tracing::info!(target: TARGET, "{}", format.line(&entry));
        }
        // Answers come first.
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::chain::query_log::entry;

    #[tokio::test]
    async fn lines_without_room_are_counted_and_hold_up_nothing() {
        let (log, format, metrics) = (QueryLog::start(), Arc::default(), Metrics::default());
        metrics.serve("cluster.local");
        // The task that writes does not run before we wait for something.
        for _ in 0..WAITING + 7 {
            log.note(entry(), &format, &metrics);
        }
        let mut text = String::new();
        metrics.write(&mut text);
        let counted = "mizzen_dns_query_log_dropped_total{server=\"dns://.:53\"} 7\n";
        assert!(text.contains(counted), "{text}");
    }
}
