//! Whether other nodes' resolvers answer this node's clients while this one does not know the
//! cluster: those to which the tables lead are asked, as long as that lasts. By no clock: who has
//! the API server away leaves its clients to others for as long as these answer, and no longer.

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

use super::{
    forward::{exchange, probe::any_number},
    message::Question,
};

/// From the end of a look to the next one.
const PAUSE: Duration = Duration::from_secs(1);
/// How long one may take to answer.
const ANSWER: Duration = Duration::from_millis(600);
/// How often it is asked: a datagram may be lost.
const TRIES: usize = 2;
/// How many are asked in a look: clients are led to any.
const ASKED: usize = 4;

/// Says where the node's tables lead clients of cluster DNS while nobody listens there on this node.
#[derive(Clone)]
pub struct Elsewhere(Arc<dyn Fn() -> BTreeSet<SocketAddr> + Send + Sync>);

impl Elsewhere {
    /// As `resolvers` says each time, which may take system calls.
    pub fn new(resolvers: impl Fn() -> BTreeSet<SocketAddr> + Send + Sync + 'static) -> Self {
        Self(Arc::new(resolvers))
    }
}

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Elsewhere").finish_non_exhaustive()
    }
}

/// What is known of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// None answers, or the tables lead to none.
    Silent,
    /// The tables lead to some, which were not asked yet.
    Named,
    /// One answered when they were asked last.
    Answer,
}

/// The other nodes' resolvers.
#[derive(Debug)]
pub(super) struct Others {
    /// Where they are; `None` where they are not looked for, or no more.
    elsewhere: Option<Elsewhere>,
    /// What they are asked for: the cluster domain.
    domain: Name,
    known: Known,
    /// The one that is under way, if any.
    looks: JoinSet<Known>,
    next: Instant,
}

impl Others {
    /// Those that `elsewhere` names, which are taken to answer until they were asked.
    pub(super) fn new(elsewhere: Option<Elsewhere>, domain: Name) -> Self {
        let named = elsewhere.as_ref().is_some_and(|elsewhere| !elsewhere.0().is_empty());
        let known = if named { Known::Named } else { Known::Silent };
        Self { elsewhere, domain, known, looks: JoinSet::new(), next: Instant::now() }
    }

    /// Whether clients are to be left to them, as far as is known.
    pub(super) fn answer(&self) -> bool {
        self.known != Known::Silent
    }

    /// Whether one of them has said so.
    pub(super) fn are_heard(&self) -> bool {
        self.known == Known::Answer
    }

    /// Begins a look where it is time for one; [`heard`](Self::heard) gives what it comes to.
    pub(super) fn look_if_due(&mut self) {
        let Some(elsewhere) = &self.elsewhere else { return };
        if self.looks.is_empty() && self.next <= Instant::now() {
            self.looks.spawn(look(elsewhere.clone(), self.domain.clone()));
        }
    }

    /// Whether something else is known than before, at the end of a look that is under way. Where
    /// this is given up nothing is lost.
    pub(super) async fn heard(&mut self) -> Option<bool> {
        let known = self.looks.join_next().await?.unwrap_or(Known::Silent);
        self.next = Instant::now() + PAUSE;
        let news = std::mem::replace(&mut self.known, known) != known;
        tracing::debug!(?known, "looked whether other nodes' resolvers answer");
        if news && known == Known::Answer {
            tracing::info!("other nodes' resolvers answer until this one knows the cluster");
        } else if news {
            tracing::warn!("no other node's resolver answers; this one does, with what it knows");
        }
        Some(news)
    }

    /// Looks no more: this node's resolver knows what they do.
    pub(super) fn rest(&mut self) {
        if self.elsewhere.take().is_some() {
            (self.looks, self.known) = (JoinSet::new(), Known::Silent);
        }
    }

    /// When to look again, where nothing is under way.
    pub(super) fn next_look(&self) -> Option<Instant> {
        (self.elsewhere.is_some() && self.looks.is_empty()).then_some(self.next)
    }
}

/// Asks some of them.
async fn look(elsewhere: Elsewhere, domain: Name) -> Known {
    let named = spawn_blocking(move || elsewhere.0()).await.unwrap_or_default();
    let first = any_number() % named.len().max(1);
    let some = named.iter().copied().cycle().skip(first).take(ASKED.min(named.len()));
    let question = Question::plain(Query::query(domain, RecordType::SOA));
    let mut asked: FuturesUnordered<_> = some.map(|at| answers(at, &question)).collect();
    while let Some(answers) = asked.next().await {
        if answers {
            return Known::Answer;
        }
    }
    Known::Silent
}

/// Whether the resolver at `at` knows the cluster: one that does not says that it fails.
async fn answers(at: SocketAddr, question: &Question) -> bool {
    for _ in 0..TRIES {
        let asking = exchange::ask_at(at, question);
        if let Ok(Ok(received)) = timeout(ANSWER, asking).await {
            return received.message.metadata.response_code != ResponseCode::ServFail;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    };

    use hickory_proto::op::Message;
    use tokio::net::UdpSocket;

    use super::*;

    /// A resolver at `address` that knows the cluster or, as `knows` says, does not.
    async fn resolver(address: &str, knows: Arc<AtomicBool>) -> SocketAddr {
        let socket = UdpSocket::bind((address, 0)).await.unwrap();
        let at = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut octets = [0; 512];
            loop {
                let (length, client) = socket.recv_from(&mut octets).await.unwrap();
                let mut answer = Message::from_vec(&octets[..length]).unwrap().into_response();
                if !knows.load(Relaxed) {
                    answer.metadata.response_code = ResponseCode::ServFail;
                }
                socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
            }
        });
        at
    }

    /// What a look finds; the time of the next does not matter here.
    async fn after_a_look(others: &mut Others) -> (bool, bool) {
        others.next = Instant::now();
        others.look_if_due();
        others.heard().await.expect("a look is under way");
        (others.answer(), others.are_heard())
    }

    #[tokio::test]
    async fn clients_are_left_to_others_as_long_as_one_of_them_answers() {
        let domain = Name::from_ascii("cluster.local.").unwrap();
        for address in ["127.0.0.1", "::1"] {
            let knows = Arc::new(AtomicBool::new(true));
            let live = resolver(address, Arc::clone(&knows)).await;
            // Bound, and nobody reads.
            let silent = UdpSocket::bind((address, 0)).await.unwrap();
            let silent = silent.local_addr().unwrap();
            let named = Arc::new(Mutex::new(BTreeSet::from([silent, live])));
            let of_tables = Arc::clone(&named);
            let elsewhere = Elsewhere::new(move || of_tables.lock().unwrap().clone());
            let mut others = Others::new(Some(elsewhere), domain.clone());
            assert_eq!((others.answer(), others.are_heard()), (true, false), "not asked yet");
            for _ in 0..3 {
                assert_eq!(after_a_look(&mut others).await, (true, true));
            }
            knows.store(false, Relaxed);
            assert_eq!(after_a_look(&mut others).await, (false, false), "it knows no more");
            knows.store(true, Relaxed);
            assert_eq!(after_a_look(&mut others).await, (true, true), "and again");
            named.lock().unwrap().remove(&live);
            assert_eq!(after_a_look(&mut others).await, (false, false), "one that is silent");
            named.lock().unwrap().clear();
            assert_eq!(after_a_look(&mut others).await, (false, false));
            others.rest();
            others.look_if_due();
            assert!(others.next_look().is_none() && others.heard().await.is_none());
        }
    }

    #[tokio::test]
    async fn where_the_tables_lead_nowhere_nobody_is_waited_for() {
        for elsewhere in [None, Some(Elsewhere::new(BTreeSet::new))] {
            let others = Others::new(elsewhere, Name::root());
            assert!(!others.answer());
        }
    }
}
