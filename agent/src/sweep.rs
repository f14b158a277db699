//! Keeps the programs' own tables tidy, the flows of the packet path and the clients that keep
//! their backends: a bounded part every few seconds, so that a full table is looked through in a
//! minute and an idle node does next to nothing.

use std::{error::Error, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    datapath::{AffinitySweepError, AffinitySweeper, FlowSweeper, SweepError, Swept},
    status::{Board, State},
    supervisor::TaskError,
};

/// The pause between two parts.
const PAUSE: Duration = Duration::from_secs(2);
/// Entries of one part.
const BUDGET: usize = 16_384;
/// How full a table may be before an operator should know.
const PRESSURE_MAX: f64 = 0.9;

/// A table that the programs fill.
pub trait Sweeper {
    /// Its part on the board.
    const PART: &'static str;
    /// What is swept, for people.
    const ENTRIES: &'static str;
    /// What comes of it when it is full, and what to do.
    const WHEN_FULL: &'static str;
    /// Why a part of it could not be swept.
    type Error: Error;
    /// Sweeps a part, of `budget` entries at least.
    fn sweep(&mut self, budget: usize) -> Result<Swept, Self::Error>;
    /// How full it is, from 0 to 1.
    fn share(&self) -> f64;
}

impl Sweeper for FlowSweeper {
    const PART: &'static str = "flows";
    const ENTRIES: &'static str = "flows";
    const WHEN_FULL: &'static str = "new connections through node ports will be dropped when it has \
                                     no room; look for a client that opens very many";
    type Error = SweepError;

    fn sweep(&mut self, budget: usize) -> Result<Swept, SweepError> {
        self.run(budget)
    }

    fn share(&self) -> f64 {
        self.pressure()
    }
}

impl Sweeper for AffinitySweeper {
    const PART: &'static str = "affinity";
    const ENTRIES: &'static str = "clients that keep their backends";
    const WHEN_FULL: &'static str = "further clients of services with session affinity will not \
                                     keep their backends when it has no room; shorten the timeout \
                                     of services that have very many clients";
    type Error = AffinitySweepError;

    fn sweep(&mut self, budget: usize) -> Result<Swept, AffinitySweepError> {
        self.run(budget)
    }

    fn share(&self) -> f64 {
        self.pressure()
    }
}

/// Sweeps until cancelled.
pub async fn run<S: Sweeper>(
    mut sweeper: S,
    board: Arc<Board>,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    loop {
        let state = match tokio::task::block_in_place(|| sweeper.sweep(BUDGET)) {
            Ok(swept) => {
                tracing::trace!(part = S::PART, ?swept, "swept a table");
                pressure::<S>(sweeper.share())
            }
            Err(error) => {
                let why = error.source().map(ToString::to_string).unwrap_or_default();
                State::Degraded(format!(
                    "{} that ended are not removed: {error}: {why}; it is tried again",
                    S::ENTRIES
                ))
            }
        };
        board.report(S::PART, state);
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn pressure<S: Sweeper>(share: f64) -> State {
    if share < PRESSURE_MAX {
        return State::Ready;
    }
    State::Degraded(format!(
        "the table of {} is {:.0} % full: {}",
        S::ENTRIES,
        share * 100.0,
        S::WHEN_FULL
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_fills_up_is_reported() {
        assert_eq!(pressure::<FlowSweeper>(0.5), State::Ready);
        for state in [pressure::<FlowSweeper>(0.95), pressure::<AffinitySweeper>(0.95)] {
            let State::Degraded(text) = state else { panic!("it is nearly full") };
            assert!(text.contains("95 % full: "), "{text}");
        }
    }
}
