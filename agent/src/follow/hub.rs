//! One reader of the programs' events for all who follow: it begins with the first and ends with the
//! last of them.

use std::{
    io,
    sync::{Arc, Weak},
};

use mizzen_ebpf_abi::event::FlowEvent;
use tokio::{
    io::unix::AsyncFd,
    sync::{Mutex, broadcast},
    task::spawn_blocking,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::datapath::{FlowEvents, FlowRing, FollowError};

/// Events that wait for the slowest follower before it loses the oldest.
const WAITING_MAX: usize = 8_192;
/// Events that are read in a row before others have their turn.
const IN_A_ROW: usize = 256;

/// What those who follow are told.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// An event.
    Event(FlowEvent),
    /// So many are missing here: the programs found the buffer full.
    Lost(u64),
}

/// Where to follow.
#[derive(Debug)]
pub struct Hub {
    events: FlowEvents,
    reader: Mutex<Weak<Reader>>,
}

/// The reader; it ends with the last reference.
#[derive(Debug)]
struct Reader {
    told: broadcast::Sender<Told>,
    _ends: DropGuard,
}

/// Somebody who follows.
#[derive(Debug)]
pub struct Follower {
    told: broadcast::Receiver<Told>,
    _reader: Arc<Reader>,
}

impl Hub {
    /// A hub of a node's events.
    pub fn new(events: FlowEvents) -> Self {
        Self { events, reader: Mutex::default() }
    }

    /// Follows what happens from now on.
    pub async fn follow(&self) -> Result<Follower, FollowError> {
        let mut reader = self.reader.lock().await;
        if let Some(reader) = reader.upgrade() {
            return Ok(Follower { told: reader.told.subscribe(), _reader: reader });
        }
        let events = self.events.clone();
        let ring = spawn_blocking(move || events.follow())
            .await
            .map_err(|error| FollowError::Make(io::Error::other(error)))??;
        let ring = ring.registered().map_err(FollowError::Make)?;
        let (tell, told) = broadcast::channel(WAITING_MAX);
        let end = CancellationToken::new();
        tokio::spawn(read(ring, tell.clone(), end.clone()));
        let begun = Arc::new(Reader { told: tell, _ends: end.drop_guard() });
        *reader = Arc::downgrade(&begun);
        Ok(Follower { told, _reader: begun })
    }
}

impl Follower {
    /// What happened next; none where the reader ended.
    pub async fn next(&mut self) -> Option<Told> {
        match self.told.recv().await {
            Ok(told) => Some(told),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Told::Lost(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// What has happened already; none where that was all.
    pub fn next_now(&mut self) -> Option<Told> {
        match self.told.try_recv() {
            Ok(told) => Some(told),
            Err(broadcast::error::TryRecvError::Lagged(missed)) => Some(Told::Lost(missed)),
            Err(_) => None,
        }
    }
}

/// Reads until the last follower is gone.
async fn read(mut ring: AsyncFd<FlowRing>, tell: broadcast::Sender<Told>, end: CancellationToken) {
    loop {
        let ready = tokio::select! {
            () = end.cancelled() => break,
            ready = ring.readable_mut() => ready,
        };
        let Ok(mut ready) = ready else { break };
        // What comes behind this is told of again.
        ready.clear_ready();
        drain(ring.get_mut(), &tell, &end).await;
    }
    // It waits for the programs that run.
    let _gone = spawn_blocking(move || drop(ring)).await;
}

/// Tells what is there, which may have no end, and now and then how much was lost.
async fn drain(ring: &mut FlowRing, tell: &broadcast::Sender<Told>, end: &CancellationToken) {
    let mut in_a_row = 0;
    while let Some(event) = ring.next() {
        // Nobody may be there any more.
        let _nobody = tell.send(Told::Event(event));
        in_a_row += 1;
        if in_a_row == IN_A_ROW {
            in_a_row = 0;
            tell_lost(ring, tell);
            if end.is_cancelled() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
    tell_lost(ring, tell);
}

fn tell_lost(ring: &mut FlowRing, tell: &broadcast::Sender<Told>) {
    match ring.newly_lost() {
        Ok(0) => {}
        Ok(lost) => {
            let _nobody = tell.send(Told::Lost(lost));
        }
        Err(error) => tracing::debug!(%error, "what was lost of events is not known"),
    }
}
