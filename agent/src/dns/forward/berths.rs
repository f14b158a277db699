//! Places for questions that are put to upstreams, and a room in which those wait that find none:
//! the newest is next, the oldest makes room. What is under way is never broken off for a newer
//! one: where upstreams take longer than the room takes to fill, nothing would ever be answered.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use super::lock;

/// The places.
#[derive(Debug)]
pub(super) struct Berths {
    /// How many there are, and how many may wait for one.
    limit: usize,
    /// How long one may wait.
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// The oldest first.
    waiting: VecDeque<oneshot::Sender<Berth>>,
}

/// A place; when it is dropped it is the next one's.
#[derive(Debug)]
pub(super) struct Berth {
    /// Nothing where it is another's already.
    berths: Option<Arc<Berths>>,
}

/// A place, now or later.
#[derive(Debug)]
pub(super) enum Turn {
    /// It is there.
    Now(Berth),
    /// It comes, or the room has none for this one.
    Later(oneshot::Receiver<Berth>, Duration),
}

impl Berths {
    /// So many places, and as many that may wait, for so long.
    pub(super) fn new(limit: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self { limit, patience, state: Mutex::default() })
    }

    /// A place where one is free.
    pub(super) fn free(self: &Arc<Self>) -> Option<Turn> {
        self.free_in(&mut lock(&self.state))
    }

    fn free_in(self: &Arc<Self>, state: &mut State) -> Option<Turn> {
        (state.taken < self.limit).then(|| {
            state.taken += 1;
            Turn::Now(Berth { berths: Some(Arc::clone(self)) })
        })
    }

    /// A place, now or as the newest of those who wait.
    pub(super) fn turn(self: &Arc<Self>) -> Turn {
        // Under one lock: a place that became free between the look and the queue would be nobody's,
        // and who queues for it would wait in vain.
        let mut state = lock(&self.state);
        if let Some(now) = self.free_in(&mut state) {
            return now;
        }
        let (give, given) = oneshot::channel();
        // Those who have left are the oldest: all have the same patience.
        while state.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            state.waiting.pop_front();
        }
        state.waiting.push_back(give);
        if state.waiting.len() > self.limit {
            state.waiting.pop_front();
        }
        Turn::Later(given, self.patience)
    }
}

impl Turn {
    /// The place; `None` where newer ones had it, or none came in time.
    pub(super) async fn come(self) -> Option<Berth> {
        match self {
            Self::Now(berth) => Some(berth),
            // One that comes at the last moment, and is not taken any more, is dropped.
            Self::Later(given, patience) => timeout(patience, given).await.ok()?.ok(),
        }
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        let Some(berths) = self.berths.take() else { return };
        loop {
            let mut state = lock(&berths.state);
            let Some(next) = state.waiting.pop_back() else {
                state.taken -= 1;
                return;
            };
            drop(state);
            match next.send(Self { berths: Some(Arc::clone(&berths)) }) {
                Ok(()) => return,
                // It has left.
                Err(mut back) => back.berths = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use futures::FutureExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn the_newest_is_next_and_the_oldest_makes_room() {
        let berths = Berths::new(2, PATIENCE);
        let taken = [(); 2].map(|()| berths.free().unwrap());
        assert!(berths.free().is_none());
        let [a, b, c] = [(); 3].map(|()| berths.turn());
        assert!(a.come().now_or_never().unwrap().is_none(), "it made room for the third");
        let [mut b, mut c] = [b, c].map(|turn| Box::pin(turn.come()));
        assert!((&mut c).now_or_never().is_none() && (&mut b).now_or_never().is_none());
        let [one, other] = taken;
        drop(one);
        assert!((&mut b).now_or_never().is_none());
        let place = c.now_or_never().unwrap();
        assert!(place.is_some());
        drop(other);
        assert!(b.now_or_never().unwrap().is_some());
        drop(place);
        assert_eq!(lock(&berths.state).taken, 0);
    }

    /// Two threads: one gives its place up while the other asks for one.
    #[test]
    fn nobody_waits_beside_a_free_place() {
        for _ in 0..5_000 {
            let berths = Berths::new(1, PATIENCE);
            let taken = berths.free().unwrap();
            let meet = AtomicUsize::new(0);
            let together = || {
                meet.fetch_add(1, Relaxed);
                while meet.load(Relaxed) < 2 {
                    std::hint::spin_loop();
                }
            };
            let turn = std::thread::scope(|scope| {
                scope.spawn(|| {
                    together();
                    drop(taken);
                });
                together();
                berths.turn()
            });
            let has_come = match turn {
                Turn::Now(_) => true,
                Turn::Later(mut given, _) => given.try_recv().is_ok(),
            };
            assert!(has_come);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_left_is_passed_over_and_who_waits_too_long_has_none() {
        let berths = Berths::new(4, PATIENCE);
        let taken = [(); 4].map(|()| berths.free().unwrap());
        let late = tokio::spawn(berths.turn().come());
        tokio::task::yield_now().await;
        let left = berths.turn();
        drop(left);
        let waits = tokio::spawn(berths.turn().come());
        drop(berths.turn());
        let [one, _others @ ..] = taken;
        drop(one);
        assert!(waits.await.unwrap().is_some(), "and is dropped at once, which is another's place");
        assert!(late.await.unwrap().is_some());
        let _one = berths.free().unwrap();
        assert!(berths.turn().come().await.is_none(), "time is up");
        for _ in 0..5 {
            drop(berths.turn());
        }
        assert_eq!(lock(&berths.state).waiting.len(), 1, "who has left takes no room");
    }
}
