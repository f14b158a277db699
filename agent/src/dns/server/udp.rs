//! Questions by UDP. A socket stands at one address, so that answers come from where was asked.
//!
//! As long as answers keep up with questions, each batch that the socket has is answered as it
//! came. A full one says that more may wait: then a few more are taken, the last of which is
//! answered first, and those before it wait in a bounded [`Backlog`] from which the newest is taken
//! next. No more are taken in a turn than [`TAKEN`] times what is answered in it: what comes faster
//! still is left to the kernel, which lets go of what the socket has no room for. So neither memory
//! nor the time in which who is answered is answered depend on how many ask, and taking does not
//! crowd out answering.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{io::Interest, net::UdpSocket, runtime::Handle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Begun, Resolver,
    backlog::{Backlog, LetGo},
    batch::{self, Arrived, Batch, Couples, Left, MANY},
    listen::{Audience, Connections, DISCARD},
    trail::Trail,
};
use crate::dns::{message::Transport, metrics::Shed};

/// How long to wait after an error of the socket itself, lest a lasting one burn the processor.
const PAUSE: Duration = Duration::from_millis(20);
/// Batches that are taken in a turn, in which one is answered.
const TAKEN: usize = 4;
/// With fewer than these in a batch, the next are waited for. With more, some have come meanwhile, and
/// to take them at once costs less than to hear of them.
const FEW: usize = 2;
/// So often before other sockets of the thread have their turn.
const IN_A_ROW: usize = 16;
const _: () = assert!(FEW <= MANY, "who has a full batch may have more");

/// A socket, and who is answered by it.
pub(super) struct Served {
    pub(super) socket: UdpSocket,
    pub(super) ipv6: bool,
    pub(super) resolver: Arc<Resolver>,
    pub(super) audience: Audience,
    /// Says whether another process goes on with the socket.
    pub(super) connections: Arc<Connections>,
    /// Where questions wait for upstreams.
    pub(super) elsewhere: Handle,
    /// Whether answers leave together.
    pub(super) couples: Couples,
}

/// What waits: for its turn, and for upstreams.
#[derive(Default)]
struct Waiting {
    backlog: Backlog,
    /// How many the socket had no room for, as it said last.
    lost: u32,
    /// Bounded by the resolver: who finds no place among these is told so at once.
    upstreams: TaskTracker,
}

/// Serves until `stop`; what has come by then, and what waits for upstreams, is answered before it
/// returns. Who asks later asks somebody else.
pub(super) async fn serve(served: Served, stop: CancellationToken) {
    let served = Arc::new(served);
    let mut waiting = Waiting::default();
    let mut stopped = pin!(stop.cancelled());
    let mut in_a_row = 0;
    while !stop.is_cancelled() {
        if waiting.backlog.is_empty() {
            let ready = tokio::select! {
                () = &mut stopped => break,
                ready = served.socket.readable() => ready,
            };
            if let Err(error) = ready {
                failed(&error).await;
                continue;
            }
        }
        let mut quiet = false;
        let take = |batch: &mut Batch, waiting: &mut Waiting| {
            served.socket.try_io(Interest::READABLE, || {
                let taken = served.take(batch, waiting);
                quiet = match &taken {
                    Ok(count) => *count < FEW,
                    Err(error) => error.kind() == io::ErrorKind::WouldBlock,
                };
                // It had no more: what comes from now on is a new event.
                if quiet { Err(io::ErrorKind::WouldBlock.into()) } else { taken.map(drop) }
            })
        };
        match Batch::with(|batch| served.turn(batch, &mut waiting, take)) {
            Ok(left) => {
                for (answer, to) in left {
                    served.send(&answer, to).await;
                }
                in_a_row = if quiet { 0 } else { in_a_row + 1 };
                if in_a_row == IN_A_ROW || !waiting.backlog.is_empty() {
                    in_a_row = 0;
                    // Other sockets of this thread have their turn.
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => failed(&error).await,
        }
    }
    finish(&served, &mut waiting).await;
    // Each has a time within which it is answered, upstreams or not.
    waiting.upstreams.close();
    waiting.upstreams.wait().await;
}

/// Answers what has come. What comes from now on is not for this socket, which is open as long as
/// upstreams take: another process reads it, or there is no socket for it and clients are led
/// elsewhere, or refused, at once.
async fn finish(served: &Arc<Served>, waiting: &mut Waiting) {
    let alone = !served.connections.goes_on() && served.turn_away().await;
    loop {
        let take = |batch: &mut Batch, waiting: &mut Waiting| {
            if alone { served.take(batch, waiting).map(drop) } else { Ok(()) }
        };
        let turn = Batch::with(|batch| {
            let left = served.turn(batch, waiting, take)?;
            io::Result::Ok((batch.len(), left))
        });
        match turn {
            Ok((0, _)) => return,
            Ok((_, left)) => {
                for (answer, to) in left {
                    served.send(&answer, to).await;
                }
                tokio::task::yield_now().await;
            }
            Err(error) => return failed(&error).await,
        }
    }
}

async fn failed(error: &io::Error) {
    tracing::debug!(%error, "udp socket failed to receive");
    tokio::time::sleep(PAUSE).await;
}

impl Served {
    /// Has the kernel find no socket here for those who ask from now on, while answers still can be
    /// sent from its address: a socket that is connected takes only what its peer sends. Whether it
    /// does.
    async fn turn_away(&self) -> bool {
        let connected = async {
            let itself = self.socket.local_addr()?.ip();
            self.socket.connect((itself, DISCARD)).await
        };
        match connected.await {
            Ok(()) => {
                tracing::debug!(address = ?self.socket.local_addr(), "clients are turned away");
                true
            }
            Err(error) => {
                tracing::debug!(%error, "udp socket still takes questions that nobody answers");
                false
            }
        }
    }

    /// Takes what there is by `take`, and answers a batch; gives what could not be sent yet.
    fn turn(
        self: &Arc<Self>,
        batch: &mut Batch,
        waiting: &mut Waiting,
        take: impl FnOnce(&mut Batch, &mut Waiting) -> io::Result<()>,
    ) -> io::Result<Vec<Left>> {
        batch.clear();
        match take(batch, waiting) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        if !waiting.backlog.is_empty() {
            batch.catch_up(&mut waiting.backlog, Instant::now());
            let LetGo { full, late } = waiting.backlog.take_let_go();
            for (why, count) in [(Shed::Full, full), (Shed::Late, late)] {
                if count > 0 {
                    self.resolver.shed(why, count);
                }
            }
        }
        Ok(self.answer(batch, &waiting.upstreams))
    }

    /// Has the batch hold the newest of what has arrived, and the others wait; how many it holds.
    fn take(&self, batch: &mut Batch, waiting: &mut Waiting) -> io::Result<usize> {
        let mut count = batch.take(&self.socket, self.ipv6)?;
        if count < MANY {
            return Ok(count);
        }
        for _ in 1..TAKEN {
            if count < MANY {
                break;
            }
            batch.put_off(&mut waiting.backlog);
            count = batch.take(&self.socket, self.ipv6)?;
        }
        // One that had no room was full.
        let lost = batch::lost(&self.socket)?;
        let more = lost.wrapping_sub(std::mem::replace(&mut waiting.lost, lost));
        self.resolver.shed(Shed::Socket, more.into());
        Ok(count)
    }

    /// Answers what is in the batch; gives what could not be sent yet. What takes no more than a
    /// look goes first.
    fn answer(self: &Arc<Self>, batch: &mut Batch, upstreams: &TaskTracker) -> Vec<Left> {
        let count = batch.len();
        let mut others = [false; MANY];
        for (place, other) in others.iter_mut().enumerate().take(count) {
            batch.answer(place, |question, Arrived { source, since, .. }, answer| {
                // To port 0 nothing can be sent.
                let admitted =
                    source.port() != 0 && self.audience.admits(&self.resolver, source.ip());
                let answered =
                    admitted && self.resolver.answer_directly(question, source.ip(), since, answer);
                *other = admitted && !answered;
                answered
            });
        }
        let mut left = batch.give(&self.socket, &self.couples);
        if others.contains(&true) {
            for place in (0..count).filter(|place| others[*place]) {
                batch.answer(place, |question, arrived, answer| {
                    self.begin(question, arrived, answer, upstreams)
                });
            }
            left.extend(batch.give(&self.socket, &self.couples));
        }
        left
    }

    /// Writes the answer to `question`, or has it wait for an upstream.
    fn begin(
        self: &Arc<Self>,
        question: &[u8],
        Arrived { source, since, .. }: Arrived,
        answer: &mut Vec<u8>,
        upstreams: &TaskTracker,
    ) -> bool {
        let by_whom = (source, Trail::default());
        match self.resolver.begin_since(since, question, Transport::Udp, by_whom) {
            Begun::Nothing => false,
            Begun::Done(octets) => {
                answer.clear();
                answer.extend_from_slice(&octets);
                true
            }
            Begun::Waits(question) => {
                let this = Arc::clone(self);
                let answering = async move {
                    let answer = this.resolver.finish(*question).await;
                    this.send(&answer, source).await;
                };
                upstreams.spawn_on(answering, &self.elsewhere);
                false
            }
        }
    }

    async fn send(&self, answer: &[u8], to: SocketAddr) {
        if let Err(error) = self.socket.send_to(answer, to).await {
            tracing::debug!(%error, client = %to, "udp answer not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket as Std, sync::Mutex, time::Duration};

    use hickory_proto::rr::Name;
    use socket2::SockRef;

    use super::*;
    use crate::{
        dns::{
            cache::Cache,
            config::{Forwarding, Tcp},
            fixture,
            forward::Forwarder,
            metrics::Metrics,
            route::Routes,
        },
        handover::Departure,
        local_pods::LocalPods,
    };

    /// A socket of ours, and a client's that is connected to it.
    fn pair(address: &str) -> (Arc<Served>, Std, Arc<Metrics>) {
        let metrics = Arc::<Metrics>::default();
        let cache = Arc::new(Mutex::new(Cache::new(0)));
        let routes = Routes::new(Vec::new(), &[], &Name::root());
        let forwarder = Forwarder::new(routes, Forwarding::default(), cache, Arc::clone(&metrics));
        let zone = fixture::zone_with(fixture::settings());
        let pods = Arc::<LocalPods>::default();
        let resolver = Resolver::new(zone, Arc::new(forwarder), Arc::clone(&metrics), pods);
        let socket = Std::bind((address, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let client = Std::bind((address, 0)).unwrap();
        client.connect(socket.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let served = Served {
            socket: UdpSocket::from_std(socket).unwrap(),
            ipv6: address == "::1",
            resolver: Arc::new(resolver),
            audience: Audience::Everyone,
            connections: Connections::new(Tcp::default(), Departure::default()),
            elsewhere: Handle::current(),
            couples: Couples::new(true),
        };
        (Arc::new(served), client, metrics)
    }

    /// A question for the number, which fits its identifier.
    fn ask(client: &Std, number: u16) {
        let mut question = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        question[..2].copy_from_slice(&number.to_be_bytes());
        for label in ["svc1", "testns", "svc", "cluster", "local", ""] {
            question.push(u8::try_from(label.len()).unwrap());
            question.extend_from_slice(label.as_bytes());
        }
        question.extend_from_slice(&[0, 1, 0, 1]);
        assert_eq!(client.send(&question).unwrap(), question.len());
    }

    /// Lets `served` have a turn; which questions it answered.
    fn turn(served: &Arc<Served>, client: &Std, waiting: &mut Waiting) -> Vec<u16> {
        let (answered, left) = Batch::with(|batch| {
            let take =
                |batch: &mut Batch, waiting: &mut Waiting| served.take(batch, waiting).map(drop);
            let left = served.turn(batch, waiting, take).unwrap();
            (batch.len(), left.len())
        });
        assert_eq!(left, 0);
        let mut answer = [0; 512];
        let answers = (0..answered).map(|_| {
            assert!(client.recv(&mut answer).unwrap() > 12);
            assert_eq!(answer[7], 1, "an address");
            u16::from_be_bytes([answer[0], answer[1]])
        });
        answers.collect()
    }

    #[tokio::test]
    async fn at_five_times_what_is_answered_the_newest_are_and_all_others_are_counted() {
        const ROUNDS: u16 = 40;
        let many = u16::try_from(MANY).unwrap();
        let taken = many * u16::try_from(TAKEN).unwrap();
        for address in ["127.0.0.1", "::1"] {
            let (served, client, metrics) = pair(address);
            let mut waiting = Waiting::default();
            let mut answered = Vec::new();
            for round in 0..ROUNDS {
                let first = round * 5 * many;
                (first..first + 5 * many).for_each(|number| ask(&client, number));
                let now = turn(&served, &client, &mut waiting);
                assert_eq!(now.len(), MANY, "taking crowds out no answer");
                if round == 0 {
                    assert_eq!(now, (taken - many..taken).collect::<Vec<_>>());
                }
                let newest_before = answered.iter().max().copied().unwrap_or(0);
                assert!(now.iter().all(|number| *number >= newest_before), "{now:?}");
                answered.extend(now);
            }
            // What still waits is answered as soon as no more comes, the newest first.
            let rest: Vec<_> = std::iter::from_fn(|| {
                let now = turn(&served, &client, &mut waiting);
                (!now.is_empty()).then_some(now)
            })
            .flatten()
            .collect();
            assert!(rest.len() >= crate::dns::server::backlog::MOST, "{}", rest.len());
            assert!(rest[rest.len() - MANY..].iter().all(|number| rest[0] > *number), "{rest:?}");
            answered.extend(rest);
            // The socket is asked for how many it had no room when a batch is full once more.
            (0..2 * many).for_each(|number| ask(&client, number));
            let last: usize = (0..3).map(|_| turn(&served, &client, &mut waiting).len()).sum();
            let asked = usize::from(5 * many * ROUNDS + 2 * many);
            let reasons = [Shed::Full, Shed::Late, Shed::Socket];
            let [full, late, socket] = reasons.map(|why| metrics.count_of_shed(why));
            assert!(full > 0 && socket > 0, "{full} {late} {socket}");
            let shed = usize::try_from(full + late + socket).unwrap();
            assert_eq!(answered.len() + last + shed, asked, "{full} {late} {socket}");
        }
    }

    /// However many come together: what a socket has beyond what is taken at a time is no new event.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn nobody_waits_behind_a_socket_that_was_not_emptied() {
        let taken = MANY * TAKEN;
        for address in ["127.0.0.1", "::1"] {
            let (served, client, _metrics) = pair(address);
            for socket in [SockRef::from(&served.socket), SockRef::from(&client)] {
                socket.set_recv_buffer_size(1 << 20).unwrap();
            }
            let stop = CancellationToken::new();
            let served = Arc::into_inner(served).unwrap();
            let serving = tokio::spawn(serve(served, stop.clone()));
            for count in [1, MANY - 1, MANY, MANY + 1, taken - 1, taken, taken + 1, taken + MANY, 1]
            {
                let numbers = 0..u16::try_from(count).unwrap();
                numbers.clone().for_each(|number| ask(&client, number));
                let mut answer = [0; 512];
                let mut answered: Vec<_> = numbers
                    .clone()
                    .map(|_| {
                        client.recv(&mut answer).expect("an answer to each");
                        u16::from_be_bytes([answer[0], answer[1]])
                    })
                    .collect();
                answered.sort_unstable();
                assert_eq!(answered, numbers.collect::<Vec<_>>());
            }
            stop.cancel();
            serving.await.unwrap();
        }
    }

    #[tokio::test]
    async fn dns_75_what_has_come_is_answered_in_the_end_and_others_are_turned_away() {
        let many = u16::try_from(MANY).unwrap();
        for address in ["127.0.0.1", "::1"] {
            let (served, client, _metrics) = pair(address);
            let served = Arc::into_inner(served).unwrap();
            let late = client.try_clone().unwrap();
            (0..5 * many).for_each(|number| ask(&client, number));
            let stop = CancellationToken::new();
            stop.cancel();
            serve(served, stop).await;
            let mut answer = [0; 512];
            let mut answered: Vec<_> = (0..5 * many)
                .map(|_| {
                    client.recv(&mut answer).unwrap();
                    u16::from_be_bytes([answer[0], answer[1]])
                })
                .collect();
            answered.sort_unstable();
            assert_eq!(answered, (0..5 * many).collect::<Vec<_>>());
            ask(&late, 1);
            let refused = late.recv(&mut answer).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
    }

    #[tokio::test]
    async fn who_is_turned_away_hears_so_while_answers_still_leave() {
        for address in ["127.0.0.1", "::1"] {
            let (served, client, _metrics) = pair(address);
            assert!(served.turn_away().await);
            ask(&client, 1);
            let mut answer = [0; 512];
            let refused = client.recv(&mut answer).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            served.send(b"late", client.local_addr().unwrap()).await;
            assert_eq!(client.recv(&mut answer).unwrap(), 4);
        }
    }
}
