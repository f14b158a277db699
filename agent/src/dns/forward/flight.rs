//! Questions under way: one for each name, however many ask, and no more than may be; as many wait
//! to begin. A flight goes on when those who wait for it have left: its answer is remembered.
//!
//! A flight that waits has the rank of the client for which it waits, which may be the last: another
//! client takes a turn of its own, and whichever of the two has a place first is the flight of both.

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
    under_way: Mutex<HashMap<Key, Flying>>,
    /// Where they run, whoever asks: who answers datagrams does nothing else.
    runtime: Handle,
}

/// A flight, and for whom it waits for its place, or has one.
#[derive(Debug)]
struct Flying {
    told: Told,
    client: Client,
    has_place: bool,
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
    told: Told,
    client: Client,
}

impl Landing {
    /// The turn has come, or will not. The flight of the same name that another client has begun
    /// meanwhile, which is this one's too; else this one is everyone's, where it has a place.
    fn take_off(&self, has_place: bool) -> Option<Told> {
        let mut under_way = lock(&self.flights.under_way);
        let begun = under_way.get(&self.key).filter(|flying| flying.has_place);
        if let Some(other) = begun.filter(|flying| !flying.told.same_channel(&self.told)) {
            return Some(other.told.clone());
        }
        if has_place {
            let flying = Flying { told: self.told.clone(), client: self.client, has_place };
            under_way.insert(self.key.clone(), flying);
        }
        None
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut under_way = lock(&self.flights.under_way);
        // Another's may be the one that is listed.
        if under_way.get(&self.key).is_some_and(|flying| flying.told.same_channel(&self.told)) {
            under_way.remove(&self.key);
        }
    }
}

impl Flights {
    /// None yet; at most `limit` at once, and as many that wait for so long to begin. They run on
    /// `runtime`.
    pub(super) fn new(limit: usize, patience: Duration, runtime: Handle) -> Arc<Self> {
        let (berths, under_way) = (Berths::new(limit, patience), Mutex::default());
        Arc::new(Self { berths, under_way, runtime })
    }

    /// A seat in the flight of `key`, which begins with `ask`, as `client`'s, where there is none, or
    /// one that waits for another: at once, or when it has its turn. For those that find no place the
    /// answer is [`Explanation::Overloaded`].
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
        if let Some(flying) = under_way.get(&key)
            && (flying.has_place || flying.client == client)
        {
            return Seat(flying.told.clone());
        }
        let turn = self.berths.turn(client);
        Seat(self.begin(&mut under_way, (key, client), turn, ask()))
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
            self.begin(&mut under_way, (key, client), turn, ask());
        }
    }

    fn begin(
        self: &Arc<Self>,
        under_way: &mut HashMap<Key, Flying>,
        (key, client): (Key, Client),
        turn: Turn,
        ask: impl Future<Output = Answer> + Send + 'static,
    ) -> Told {
        let (tell, told) = watch::channel(None);
        let has_place = matches!(turn, Turn::Now(_));
        under_way.insert(key.clone(), Flying { told: told.clone(), client, has_place });
        let landing = Landing { flights: Arc::clone(self), key, told: told.clone(), client };
        self.runtime.spawn(async move {
            let berth = turn.come().await;
            let answer = match landing.take_off(berth.is_some()) {
                Some(others) => {
                    drop(berth);
                    Seat(others).answer().await
                }
                None if berth.is_some() => {
                    let answer = ask.await;
                    drop(berth);
                    answer
                }
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
    use std::{
        net::{IpAddr, Ipv4Addr},
        str::FromStr,
    };

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

    /// Whoever waits behind many questions of its own makes nobody else wait for a name.
    #[tokio::test]
    async fn a_name_that_waits_for_another_is_asked_for_at_once() {
        const HOG: Client = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
        const OTHER: Client = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)));
        let silent = || std::future::pending::<Answer>();
        let flights = Flights::new(8, Duration::from_secs(9), Handle::current());
        let hogs: Vec<_> =
            (0..7).map(|n| flights.board(key(&format!("{n}.")), HOG, silent)).collect();
        let waits = flights.board(key("x."), HOG, || async {
            panic!("the other's flight is this one's");
        });
        let unheard = || async { Err(Explanation::Overloaded) };
        let (tell, told) = oneshot::channel();
        let other = flights.board(key("x."), OTHER, || async { told.await.unwrap() });
        let joins = flights.board(key("x."), HOG, unheard);
        tell.send(Err(Explanation::NoReachableAuthority)).unwrap();
        for seat in [other, joins] {
            assert_eq!(seat.answer().await.unwrap_err(), Explanation::NoReachableAuthority);
        }
        drop((hogs, waits));
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
