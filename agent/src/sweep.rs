//! Keeps the programs' own tables tidy, the flows of the packet path and the clients that keep
//! their backends: a bounded part every few seconds, so that a full table is looked through in a
//! minute and an idle node does next to nothing. How full they are is counted on the way.

use std::{
    error::Error,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    apply::maps::Usage,
    datapath::{Entries, Sweeper},
    metrics::Metrics,
    status::{Board, State},
    supervisor::TaskError,
};

/// The pause between two parts.
const PAUSE: Duration = Duration::from_secs(2);
/// Entries of one part.
const BUDGET: usize = 16_384;
/// In how many parts a table is looked through, if it has not less than that.
const PARTS: usize = 16;
/// How full a table may be before an operator should know, in percent.
const PRESSURE_MAX: u64 = 80;

/// A table that the programs fill, for people.
#[derive(Debug)]
pub struct Table {
    /// Its part on the board.
    part: &'static str,
    /// What is swept.
    entries: &'static str,
    /// What comes of it when it is full, and what to do.
    when_full: &'static str,
}

/// `FLOWS`.
pub const FLOWS: Table = Table {
    part: "flows",
    entries: "flows",
    when_full: "new connections through node ports will be dropped when it has no room; look for a \
                client that opens very many, or give it more by flowTableMax and start the node \
                anew (drain it, restart it): until then the table keeps its size",
};

/// `AFFINITY`.
pub const CLIENTS: Table = Table {
    part: "affinity",
    entries: "clients that keep their backends",
    when_full: "further clients of services with session affinity will not keep their backends \
                when it has no room; shorten the timeout of services that have very many clients",
};

/// Sweeps until cancelled.
pub async fn run<E: Entries>(
    table: Table,
    mut sweeper: Sweeper<E>,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    let part = BUDGET.max(sweeper.capacity() as usize / PARTS);
    loop {
        // What fills within seconds is looked at whole: the warning has to come before it is full.
        let budget = if sweeper.may_be_tight() { usize::MAX } else { part };
        let state = match tokio::task::block_in_place(|| sweeper.run(budget)) {
            Ok(swept) => {
                tracing::trace!(part = table.part, ?swept, "swept a table");
                metrics.tables.note(sweeper.usage());
                table.pressure(sweeper.usage())
            }
            Err(error) => {
                metrics.sweep_failures.fetch_add(1, Ordering::Relaxed);
                let why = error.source().map(ToString::to_string).unwrap_or_default();
                State::Degraded(format!(
                    "{} that ended are not removed: {error}: {why}; it is tried again",
                    table.entries
                ))
            }
        };
        board.report(table.part, state);
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

impl Table {
    fn pressure(&self, usage: Option<Usage>) -> State {
        let percent = usage.map_or(0, |usage| u64::from(usage.used) * 100 / u64::from(usage.max));
        if percent < PRESSURE_MAX {
            return State::Ready;
        }
        let Self { entries, when_full, .. } = self;
        State::Degraded(format!("the table of {entries} is {percent} % full: {when_full}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_fills_up_is_reported() {
        let usage = |used| Some(Usage { map: "FLOWS", used, now: 1_000, max: 1_000 });
        assert_eq!(FLOWS.pressure(None), State::Ready);
        assert_eq!(FLOWS.pressure(usage(799)), State::Ready);
        for table in [FLOWS, CLIENTS] {
            let State::Degraded(text) = table.pressure(usage(950)) else { panic!("nearly full") };
            assert!(text.contains("95 % full: "), "{text}");
            let restarts = text.contains("flowTableMax and start the node anew");
            assert_eq!(restarts, table.part == FLOWS.part, "{text}");
        }
    }
}
