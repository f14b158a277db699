//! Places for questions that are put to upstreams, and a room in which those wait that find none.
//! What is under way is never broken off for a newer one: where upstreams take longer than the room
//! takes to fill, nothing would ever be answered.
//!
//! Nobody takes them from everybody: a client leaves some [free](Shares::may_grow), a place that
//! becomes free goes to the client that has fewest, and of that the newest question is next; where
//! the room is full, the oldest of the client that has most in it makes room.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use super::{
    lock,
    shares::{Client, Shares},
};

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
    /// Whose these are.
    held: Shares,
    /// The number of the next that waits.
    next: u64,
    /// By their clients; of each the oldest first, and none without any.
    waiting: HashMap<Client, VecDeque<Waiting>>,
}

/// One that waits for a place.
#[derive(Debug)]
struct Waiting {
    number: u64,
    give: oneshot::Sender<Berth>,
}

impl State {
    /// How many of `limit` are free.
    fn free(&self, limit: usize) -> usize {
        limit.saturating_sub(self.taken)
    }

    fn take(&mut self, client: Client) {
        self.taken += 1;
        self.held.add(client);
    }

    fn give_back(&mut self, client: Client) {
        self.taken -= 1;
        self.held.remove(client);
    }

    fn waits(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// Has one wait, and where more than `limit` would, of the client that has most the oldest go.
    fn queue(&mut self, client: Client, give: oneshot::Sender<Berth>, limit: usize) {
        let number = self.next;
        self.next += 1;
        // Those who have left are the oldest: all have the same patience.
        self.waiting.retain(|_, queue| {
            while queue.front().is_some_and(|oldest| oldest.give.is_closed()) {
                queue.pop_front();
            }
            !queue.is_empty()
        });
        self.waiting.entry(client).or_default().push_back(Waiting { number, give });
        if self.waits() <= limit {
            return;
        }
        let oldest = |queue: &VecDeque<Waiting>| Reverse(queue.front().map(|one| one.number));
        let most = self.waiting.iter().max_by_key(|(_, queue)| (queue.len(), oldest(queue)));
        if let Some(most) = most.map(|(client, _)| *client)
            && let Some(queue) = self.waiting.get_mut(&most)
        {
            queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(&most);
            }
        }
    }

    /// Who is next where so many places are free: of those who have fewest the newest.
    fn pick(&mut self, free: usize) -> Option<(Client, oneshot::Sender<Berth>)> {
        let newest = |queue: &VecDeque<Waiting>| Reverse(queue.back().map(|one| one.number));
        let all = self.waiting.iter();
        let least = all.min_by_key(|(client, queue)| (self.held.of(**client), newest(queue)));
        let client = least.map(|(client, _)| *client)?;
        if !self.held.may_grow(client, free) {
            return None;
        }
        let queue = self.waiting.get_mut(&client)?;
        let newest = queue.pop_back()?;
        if queue.is_empty() {
            self.waiting.remove(&client);
        }
        Some((client, newest.give))
    }
}

/// A place; when it is dropped it is the next one's.
#[derive(Debug)]
pub(super) struct Berth {
    /// Nothing where it is another's already.
    berths: Option<Arc<Berths>>,
    /// Whose it is.
    client: Client,
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

    /// A place for `client` where one is free that it may have.
    pub(super) fn free(self: &Arc<Self>, client: Client) -> Option<Turn> {
        self.free_in(&mut lock(&self.state), client)
    }

    fn free_in(self: &Arc<Self>, state: &mut State, client: Client) -> Option<Turn> {
        let free = state.free(self.limit);
        state.held.may_grow(client, free).then(|| Turn::Now(self.berth(state, client)))
    }

    fn berth(self: &Arc<Self>, state: &mut State, client: Client) -> Berth {
        state.take(client);
        Berth { berths: Some(Arc::clone(self)), client }
    }

    /// A place for `client`, now or when it is next.
    pub(super) fn turn(self: &Arc<Self>, client: Client) -> Turn {
        // Under one lock: a place that became free between the look and the queue would be nobody's,
        // and who queues for it would wait in vain.
        let mut state = lock(&self.state);
        if let Some(now) = self.free_in(&mut state, client) {
            return now;
        }
        let (give, given) = oneshot::channel();
        state.queue(client, give, self.limit);
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
        let mut state = lock(&berths.state);
        state.give_back(self.client);
        // Several, where clients had to leave more free than they have to now.
        loop {
            let free = state.free(berths.limit);
            let Some((client, give)) = state.pick(free) else { return };
            let berth = berths.berth(&mut state, client);
            if let Err(mut back) = give.send(berth) {
                // It has left.
                back.berths = None;
                state.give_back(client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use futures::FutureExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);
    const HOG: Client = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    const OTHER: Client = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)));

    #[tokio::test]
    async fn the_newest_is_next_and_the_oldest_makes_room() {
        let berths = Berths::new(2, PATIENCE);
        let taken = [(); 2].map(|()| berths.free(None).unwrap());
        assert!(berths.free(None).is_none());
        let [a, b, c] = [(); 3].map(|()| berths.turn(None));
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
            let taken = berths.free(None).unwrap();
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
                berths.turn(None)
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
        let taken = [(); 4].map(|()| berths.free(None).unwrap());
        let late = tokio::spawn(berths.turn(None).come());
        tokio::task::yield_now().await;
        let left = berths.turn(None);
        drop(left);
        let waits = tokio::spawn(berths.turn(None).come());
        drop(berths.turn(None));
        let [one, _others @ ..] = taken;
        drop(one);
        assert!(waits.await.unwrap().is_some(), "and is dropped at once, which is another's place");
        assert!(late.await.unwrap().is_some());
        let _one = berths.free(None).unwrap();
        assert!(berths.turn(None).come().await.is_none(), "time is up");
        for _ in 0..5 {
            drop(berths.turn(None));
        }
        assert_eq!(lock(&berths.state).waits(), 1, "who has left takes no room");
    }

    /// Whether a turn has come, and the place.
    fn has_come(turn: Turn) -> Option<Berth> {
        turn.come().now_or_never().flatten()
    }

    #[tokio::test]
    async fn who_has_most_waits_and_makes_room_for_those_who_have_less() {
        let berths = Berths::new(8, PATIENCE);
        let (hog, other) = (HOG, OTHER);
        let mut taken: Vec<_> = (0..7).map(|_| berths.free(hog).unwrap()).collect();
        assert!(berths.free(hog).is_none(), "it leaves one");
        taken.push(berths.free(other).unwrap());
        assert!(berths.free(other).is_none(), "there is none");
        // All wait, the hog's by far the most.
        let mut others: Vec<_> = (0..2).map(|_| Box::pin(berths.turn(other).come())).collect();
        let mut hogs: Vec<_> = (0..9).map(|_| Box::pin(berths.turn(hog).come())).collect();
        assert_eq!(lock(&berths.state).waits(), 8);
        for (place, turn) in hogs.iter_mut().enumerate() {
            let went = turn.as_mut().now_or_never().is_some_and(|given| given.is_none());
            assert_eq!(went, place < 3, "{place}: of the hog's the oldest make room");
        }
        // What the hog gives back is the other's, the newest first, and then its own again.
        drop(taken.remove(0));
        assert!(others[0].as_mut().now_or_never().is_none());
        let second = others[1].as_mut().now_or_never().flatten();
        assert!(second.is_some());
        drop(taken.remove(0));
        let first = others[0].as_mut().now_or_never().flatten();
        assert!(first.is_some());
        assert!(hogs.iter_mut().skip(3).all(|turn| turn.as_mut().now_or_never().is_none()));
        // Of two one is left, as before.
        drop(taken.remove(0));
        assert!(hogs[8].as_mut().now_or_never().is_none());
        drop(taken.remove(0));
        assert!(hogs[8].as_mut().now_or_never().flatten().is_some(), "its newest");
        drop((taken, first, second, hogs, others));
        let state = lock(&berths.state);
        assert_eq!((state.taken, state.held.of(hog)), (0, 0));
    }

    /// The more are free, the more one client may have: it does not wait beside them.
    #[tokio::test]
    async fn places_that_had_to_be_left_are_given_when_they_need_not() {
        let berths = Berths::new(8, PATIENCE);
        let mut taken: Vec<_> = (0..7).map(|_| berths.free(HOG).unwrap()).collect();
        let mut waits = Box::pin(berths.turn(HOG).come());
        assert!(waits.as_mut().now_or_never().is_none(), "one is left free");
        drop(taken.pop());
        assert!(waits.as_mut().now_or_never().flatten().is_some());
        drop(taken);
        assert!(has_come(berths.turn(HOG)).is_some());
        assert_eq!(lock(&berths.state).taken, 0);
    }
}
