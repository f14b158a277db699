//! Questions under way: one for each name, however many ask, and no more than may be. A flight
//! goes on when those who wait for it have left: its answer is remembered.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

use super::{Answer, lock};
use crate::dns::{answer::Explanation, cache::Key};

/// The questions under way.
#[derive(Debug)]
pub(super) struct Flights {
    limit: usize,
    under_way: Mutex<HashMap<Key, watch::Receiver<Option<Answer>>>>,
}

/// A seat in a flight.
#[derive(Debug)]
pub(super) struct Seat(watch::Receiver<Option<Answer>>);

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
    /// None yet; at most `limit` at once.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, under_way: Mutex::default() })
    }

    /// A seat in the flight of `key`, which begins with `ask` where there is none; `None` where
    /// there are too many.
    pub(super) fn board<F>(self: &Arc<Self>, key: Key, ask: impl FnOnce() -> F) -> Option<Seat>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut under_way = lock(&self.under_way);
        if let Some(told) = under_way.get(&key) {
            return Some(Seat(told.clone()));
        }
        if under_way.len() >= self.limit {
            return None;
        }
        let (tell, told) = watch::channel(None);
        under_way.insert(key.clone(), told.clone());
        drop(under_way);
        let landing = Landing { flights: Arc::clone(self), key };
        let ask = ask();
        tokio::spawn(async move {
            let answer = ask.await;
            drop(landing);
            tell.send_replace(Some(answer));
        });
        Some(Seat(told))
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
    use crate::dns::{
        cache::Asked,
        message::{Question, Transport},
    };

    fn key(name: &str) -> Key {
        let question = Question {
            id: 1,
            recursion_desired: true,
            checking_disabled: false,
            query: Query::query(Name::from_str(name).unwrap(), RecordType::A),
            edns: None,
            transport: Transport::Udp,
        };
        Key::of(Asked { question: &question, place: 0 })
    }

    #[tokio::test]
    async fn those_who_ask_the_same_share_a_flight() {
        let flights = Flights::new(2);
        let (tell, told) = oneshot::channel();
        let first = flights.board(key("a."), || async { told.await.unwrap() }).unwrap();
        let second = flights.board(key("A."), || async { panic!("one is enough") }).unwrap();
        let forever = || std::future::pending::<Answer>();
        assert!(flights.board(key("b."), forever).is_some());
        assert!(flights.board(key("c."), forever).is_none(), "one too many");
        // It goes on without the first, and then is over.
        drop(first);
        tell.send(Err(Explanation::NoReachableAuthority)).unwrap();
        assert!(second.answer().await.is_err());
        assert!(flights.board(key("c."), forever).is_some(), "there is room again");
    }

    #[tokio::test]
    async fn a_flight_that_fails_to_end_well_ends() {
        let flights = Flights::new(1);
        let seat = flights.board(key("a."), || async { panic!("a defect") }).unwrap();
        assert!(seat.answer().await.is_err());
        assert!(lock(&flights.under_way).is_empty());
    }
}
