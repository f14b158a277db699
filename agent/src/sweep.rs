//! Keeps the packet path's flow table tidy: a bounded part of it every few seconds, so that a full
//! table is looked through in a minute and an idle node does next to nothing.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    datapath::FlowSweeper,
    status::{Board, State},
    supervisor::TaskError,
};

/// The part on the board.
const PART: &str = "flows";
/// The pause between two parts.
const PAUSE: Duration = Duration::from_secs(2);
/// Entries of one part.
const BUDGET: usize = 16_384;
/// How full the table may be before an operator should know.
const PRESSURE_MAX: f64 = 0.9;

/// Sweeps until cancelled.
pub async fn run(
    mut sweeper: FlowSweeper,
    board: Arc<Board>,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    loop {
        let state = match tokio::task::block_in_place(|| sweeper.run(BUDGET)) {
            Ok(swept) => {
                tracing::trace!(?swept, "swept flows");
                pressure(sweeper.pressure())
            }
            Err(error) => State::Degraded(format!(
                "silent flows are not removed: {error}: {}; it is tried again",
                error.source
            )),
        };
        board.report(PART, state);
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn pressure(share: f64) -> State {
    if share < PRESSURE_MAX {
        return State::Ready;
    }
    State::Degraded(format!(
        "the flow table is {:.0} % full: new connections through node ports will be dropped when it \
         has no room; look for a client that opens very many",
        share * 100.0
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_fills_up_is_reported() {
        assert_eq!(pressure(0.5), State::Ready);
        let State::Degraded(text) = pressure(0.95) else { panic!("it is nearly full") };
        assert!(text.contains("95 %"), "{text}");
    }
}
