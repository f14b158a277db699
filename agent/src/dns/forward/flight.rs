//! Questions under way: one for each name, however many ask, and no more than may be; as many wait
//! to begin. A flight goes on when those who wait for it have left: its answer is remembered.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch};

use super::{
    Answer,
    berths::{Berths, Turn},
    lock,
    shares::Client,
};
use crate::dns::{answer::Explanation, cache::Key};

/// The questions under way.
#[derive(Debug)]
pub(super) struct Flights {
    berths: Arc<Berths>,
    /// Those that wait to begin, too.
    under_way: Mutex<HashMap<Key, Told>>,
    /// Where they run, whoever asks: who answers datagrams does nothing else.
    runtime: Handle,
}

/// A seat in a flight.
#[derive(Debug)]
pub(super) struct Seat(Told);

/// By which a flight's answer is told.
type Told = watch::Receiver<Option<Answer>>;

/// Takes a flight off the list when it ends, however it does.
struct Landing {
    flights: Arc<Flights>,
    key: Key,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.flights.under_way).remove(&self.key);
    }
}

impl Flights {
    /// None yet; at most `limit` at once, and as many that wait for so long to begin. They run on
    /// `runtime`.
    pub(super) fn new(limit: usize, patience: Duration, runtime: Handle) -> Arc<Self> {
        let (berths, under_way) = (Berths::new(limit, patience), Mutex::default());
        Arc::new(Self { berths, under_way, runtime })
    }

    /// A seat in the flight of `key`, which begins with `ask`, as `client`'s, where there is none: at
    /// once, or when it has its turn. For those that find none the answer is
    /// [`Explanation::Overloaded`].
    pub(super) fn board<F>(
        self: &Arc<Self>,
        key: Key,
        client: Client,
        ask: impl FnOnce() -> F,
    ) -> Seat
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut under_way = lock(&self.under_way);
        if let Some(told) = under_way.get(&key) {
            return Seat(told.clone());
        }
        let turn = self.berths.turn(client);
        Seat(self.begin(&mut under_way, key, turn, ask()))
    }

    /// Has a flight of `key` begin as `client`'s where there is none, and one may begin at once.
    pub(super) fn begin_if_free<F>(
        self: &Arc<Self>,
        key: Key,
        client: Client,
        ask: impl FnOnce() -> F,
    ) where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut under_way = lock(&self.under_way);
        if !under_way.contains_key(&key)
            && let Some(turn) = self.berths.free(client)
        {
            self.begin(&mut under_way, key, turn, ask());
        }
    }

    fn begin(
        self: &Arc<Self>,
        under_way: &mut HashMap<Key, Told>,
        key: Key,
        turn: Turn,
        ask: impl Future<Output = Answer> + Send + 'static,
    ) -> Told {
        let (tell, told) = watch::channel(None);
        under_way.insert(key.clone(), told.clone());
        let landing = Landing { flights: Arc::clone(self), key };
        self.runtime.spawn(async move {
            let answer = match turn.come().await {
                Some(_berth) => ask.await,
                None => Err(Explanation::Overloaded),
            };
            drop(landing);
            tell.send_replace(Some(answer));
        });
        told
    }
}

impl Seat {
    /// The flight's answer.
    pub(super) async fn answer(mut self) -> Answer {
        match self.0.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone().unwrap_or(Err(Explanation::NoReachableAuthority)),
            // The flight ended without one.
            Err(_) => Err(Explanation::NoReachableAuthority),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::{
        op::Query,
        rr::{Name, RecordType},
    };
    use tokio::sync::oneshot;

    use super::*;
    use crate::dns::{cache::Asked, message::Question};

    fn key(name: &str) -> Key {
        let question = Question::plain(Query::query(Name::from_str(name).unwrap(), RecordType::A));
        Key::of(Asked { question: &question, place: 0 })
    }

    #[tokio::test]
    async fn those_who_ask_the_same_share_a_flight() {
        let flights = Flights::new(1, Duration::from_secs(9), Handle::current());
        let (tell, told) = oneshot::channel();
        let first = flights.board(key("a."), None, || async { told.await.unwrap() });
        let never = || async { panic!("one is enough") };
        let second = flights.board(key("A."), None, never);
        flights.begin_if_free(key("a."), None, never);
        flights.begin_if_free(key("b."), None, never);
        assert_eq!(lock(&flights.under_way).len(), 1, "there is no room for what nobody waits for");
        // It goes on without the first, and then is over.
        drop(first);
        tell.send(Err(Explanation::NoReachableAuthority)).unwrap();
        assert_eq!(second.answer().await.unwrap_err(), Explanation::NoReachableAuthority);
        assert!(lock(&flights.under_way).is_empty());
    }

    /// As threads that answer datagrams do: one that is busy, or ends, takes no flight along.
    #[test]
    fn flights_run_where_they_belong_and_not_where_somebody_asks() {
        let mut at_home = tokio::runtime::Builder::new_multi_thread();
        let at_home = at_home.worker_threads(1).thread_name("home").enable_all().build().unwrap();
        let flights = Flights::new(2, Duration::from_secs(9), at_home.handle().clone());
        let (tell, told) = std::sync::mpsc::channel();
        let elsewhere = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let seat = {
            let _within = elsewhere.enter();
            let begin = |name: &str| {
                let tell = tell.clone();
                let ask = move || async move {
                    tell.send(std::thread::current().name().map(str::to_owned)).unwrap();
                    Answer::Err(Explanation::Loop)
                };
                (key(name), ask)
            };
            let (other, ask) = begin("b.");
            flights.begin_if_free(other, None, ask);
            let (first, ask) = begin("a.");
            flights.board(first, None, ask)
        };
        drop(elsewhere);
        assert_eq!(at_home.block_on(seat.answer()).unwrap_err(), Explanation::Loop);
        for _ in 0..2 {
            assert_eq!(told.recv().unwrap().as_deref(), Some("home"));
        }
    }

    #[tokio::test]
    async fn flights_wait_for_their_turn_and_the_oldest_makes_room() {
        let flights = Flights::new(1, Duration::from_secs(9), Handle::current());
        let (order, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let (tell, told) = oneshot::channel();
        let first = flights.board(key("a."), None, || async { told.await.unwrap() });
        let board = |name: &'static str| {
            let order = order.clone();
            flights.board(key(name), None, move || async move {
                order.send(name).unwrap();
                Err(Explanation::Loop)
            })
        };
        let (second, same) = (board("b."), board("b."));
        let third = board("c.");
        for made_room in [second, same] {
            assert_eq!(made_room.answer().await.unwrap_err(), Explanation::Overloaded);
        }
        tell.send(Err(Explanation::NoReachableAuthority)).unwrap();
        assert!(first.answer().await.is_err());
        assert_eq!(third.answer().await.unwrap_err(), Explanation::Loop);
        assert_eq!(begun.recv().await, Some("c."));
        assert!(begun.try_recv().is_err(), "the second never began");
        assert!(lock(&flights.under_way).is_empty());
    }

    #[tokio::test]
    async fn a_flight_that_fails_to_end_well_ends() {
        let flights = Flights::new(1, Duration::from_secs(9), Handle::current());
        let seat = flights.board(key("a."), None, || async { panic!("a defect") });
        assert!(seat.answer().await.is_err());
        assert!(lock(&flights.under_way).is_empty());
        let next = flights.board(key("a."), None, || async { Err(Explanation::Loop) });
        assert_eq!(next.answer().await.unwrap_err(), Explanation::Loop, "its place is free");
    }
}
