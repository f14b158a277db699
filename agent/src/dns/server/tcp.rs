//! Questions by TCP (RFC 7766): several under way per connection, answered as they are ready,
//! within bounds of number, size and time.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Begun, Resolver, listen::Audience, secure::Acceptor};
use crate::{
    dns::{config::Tcp, message::Transport},
    handover::Departure,
};

/// How long to wait after an error of the listener itself, such as no descriptor being left.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a client that has just come over TLS may take for its first question when this process
/// is to end.
const FIRST_QUESTION: Duration = Duration::from_millis(500);

/// How many connections there are, all listeners together.
#[derive(Debug)]
pub struct Connections {
    limits: Tcp,
    /// Who goes on with connections that are at rest when this process ends.
    departure: Departure,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    by_source: HashMap<IpAddr, usize>,
    /// Those that wait for their client to ask, who has waited longest first.
    waiting: BTreeMap<u64, Waiting>,
    /// The number of the next one to wait.
    next: u64,
}

/// A connection that waits for its client to ask.
#[derive(Debug)]
struct Waiting {
    source: IpAddr,
    /// Has as many places as questions may be under way; the next one has its own already.
    under_way: Arc<Semaphore>,
    leave: CancellationToken,
}

impl Held {
    fn count(&self, source: IpAddr) -> usize {
        self.by_source.get(&source).copied().unwrap_or(0)
    }

    fn leaves(&mut self, source: IpAddr) {
        match self.by_source.get_mut(&source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.by_source.remove(&source)),
        }
    }

    /// Has the one leave that has been idle for longest, of `source` or of all; whether there is one.
    fn make_room(&mut self, source: Option<IpAddr>, limits: &Tcp) -> bool {
        let is_idle = |waiting: &Waiting| {
            let free = waiting.under_way.available_permits() + 1 == limits.max_pipelined;
            // One that had to leave may be here again for a moment, where its client asked just then.
            free && !waiting.leave.is_cancelled()
                && source.is_none_or(|source| source == waiting.source)
        };
        let found = self.waiting.iter().find(|(_, waiting)| is_idle(waiting));
        let Some(number) = found.map(|(number, _)| *number) else { return false };
        if let Some(waiting) = self.waiting.remove(&number) {
            self.leaves(waiting.source);
            // It is counted no more, which who counts it sees by this.
            waiting.leave.cancel();
        }
        true
    }
}

/// A connection that is counted until this is dropped, or it had to make room for another one.
#[derive(Debug)]
pub(super) struct Counted {
    connections: Arc<Connections>,
    source: IpAddr,
    leave: CancellationToken,
}

/// A connection that waits for its client to ask, until this is dropped.
struct Waits<'a> {
    connections: &'a Connections,
    number: u64,
}

impl Connections {
    /// None yet.
    pub fn new(limits: Tcp, departure: Departure) -> Arc<Self> {
        Arc::new(Self { limits, departure, held: Mutex::default() })
    }

    /// Whether another process goes on with the sockets, or one will that is about to start.
    pub(super) fn goes_on(&self) -> bool {
        self.departure.leaves_sockets()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more from `source`. Where there are too many, the one that has been idle for longest
    /// makes room, and where none is idle there is none.
    pub(super) fn count(self: &Arc<Self>, source: IpAddr) -> Option<Counted> {
        let (limits, mut held) = (&self.limits, self.held());
        let has_room = |held: &mut Held| {
            if held.count(source) >= limits.max_per_source {
                return held.make_room(Some(source), limits);
            }
            let all: usize = held.by_source.values().sum();
            all < limits.max_connections || held.make_room(None, limits)
        };
        if !has_room(&mut held) {
            return None;
        }
        *held.by_source.entry(source).or_default() += 1;
        Some(Counted { connections: Arc::clone(self), source, leave: CancellationToken::new() })
    }
}

impl Counted {
    /// Notes that its client may take its time to ask; `under_way` as in [`Waiting`].
    fn waits(&self, under_way: &Arc<Semaphore>) -> Waits<'_> {
        let mut held = self.connections.held();
        let number = held.next;
        held.next += 1;
        let (under_way, leave) = (Arc::clone(under_way), self.leave.clone());
        held.waiting.insert(number, Waiting { source: self.source, under_way, leave });
        Waits { connections: &self.connections, number }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.connections.held().waiting.remove(&self.number);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut held = self.connections.held();
        if !self.leave.is_cancelled() {
            held.leaves(self.source);
        }
    }
}

/// Serves `listener` until `stop`, over TLS where there is an acceptor for it.
pub(super) async fn serve(
    listener: TcpListener,
    resolver: Arc<Resolver>,
    (audience, acceptor): (Audience, Option<Acceptor>),
    connections: Arc<Connections>,
    stop: CancellationToken,
) {
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, source) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "tcp listener failed to accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if !audience.admits(&resolver, source.ip()) {
            continue;
        }
        let Some(counted) = connections.count(source.ip()) else {
            tracing::debug!(client = %source, "too many tcp connections");
            continue;
        };
        let client = Client { resolver: Arc::clone(&resolver), address: source, counted };
        open.spawn(serve_one(stream, client, acceptor.clone(), stop.clone()));
    }
    // Who comes now is not to wait for those who are there.
    drop(listener);
    while open.join_next().await.is_some() {}
}

/// Who is answered on a connection, by whom, and what counts it until its end.
pub(super) struct Client {
    pub(super) resolver: Arc<Resolver>,
    pub(super) address: SocketAddr,
    pub(super) counted: Counted,
}

/// Serves a connection, over TLS where there is an acceptor for it. One that is at rest when this
/// process ends is passed on to another that goes on, where there is one; a TLS one is not, whose
/// keys are ours.
pub(super) async fn serve_one(
    stream: TcpStream,
    client: Client,
    acceptor: Option<Acceptor>,
    stop: CancellationToken,
) {
    let ended = match acceptor {
        None => plain(stream, &client, stop).await,
        Some(acceptor) => secure(stream, &client, &acceptor, stop).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, client = %client.address, "tcp connection ended");
    }
}

async fn plain(stream: TcpStream, client: &Client, stop: CancellationToken) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    let Some((reader, mut writer)) = converse(reader, writer, client, stop).await? else {
        return Ok(());
    };
    let departure = &client.counted.connections.departure;
    if departure.has_successor() {
        let stream = reader.reunite(writer).map_err(io::Error::other)?;
        return departure.pass_on(&stream).await;
    }
    writer.shutdown().await
}

async fn secure(
    stream: TcpStream,
    client: &Client,
    acceptor: &Acceptor,
    stop: CancellationToken,
) -> io::Result<()> {
    let limit = client.counted.connections.limits.transfer;
    let stream = timeout(limit, acceptor.accept(stream)).await;
    let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let (reader, writer) = tokio::io::split(stream);
    match converse(BufReader::new(reader), writer, client, stop).await? {
        Some((_, mut writer)) => writer.shutdown().await,
        None => Ok(()),
    }
}

/// What a client sends.
trait Incoming: AsyncRead + Unpin {
    /// How it comes.
    const TRANSPORT: Transport;

    /// Waits for more, takes nothing, and says whether there is any: false at the end. Where this
    /// is given up nothing is lost.
    fn more(&mut self) -> impl Future<Output = io::Result<bool>> + Send;
}

impl Incoming for OwnedReadHalf {
    const TRANSPORT: Transport = Transport::Tcp;

    /// What was not taken stays in the kernel, for another process too.
    async fn more(&mut self) -> io::Result<bool> {
        Ok(self.peek(&mut [0]).await? > 0)
    }
}

/// Only what TLS brings is read ahead.
impl<R: AsyncRead + Unpin + Send> Incoming for BufReader<R> {
    const TRANSPORT: Transport = Transport::Tls;

    async fn more(&mut self) -> io::Result<bool> {
        Ok(!self.fill_buf().await?.is_empty())
    }
}

/// Reads questions and has them answered until the client closes, is silent for too long, or
/// `stop`; then waits for what is under way. Gives the connection back where it was `stop`, between
/// two messages: what the client says after that is another process' to answer, where there is one.
async fn converse<R, W>(
    mut reader: R,
    writer: W,
    client: &Client,
    stop: CancellationToken,
) -> io::Result<Option<(R, W)>>
where
    R: Incoming,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (Client { resolver, address, .. }, limits) = (client, client.counted.connections.limits);
    let (answers, queue) = mpsc::channel(limits.max_pipelined);
    let writing = tokio::spawn(write_all(writer, queue, limits.transfer));
    let under_way = Arc::new(Semaphore::new(limits.max_pipelined));
    // Who goes on has no keys for what a client says over TLS, and one that has just come is about
    // to ask.
    let mut fresh = R::TRANSPORT == Transport::Tls;
    // Whether it was `stop`.
    let stopped = loop {
        // Who asks faster than is answered waits here, and so does its window.
        let Ok(place) = Arc::clone(&under_way).acquire_owned().await else { break Ok(false) };
        let stopped = async {
            stop.cancelled().await;
            if fresh {
                tokio::time::sleep(FIRST_QUESTION).await;
            }
        };
        let waits = client.counted.waits(&under_way);
        tokio::select! {
            () = stopped => break Ok(true),
            // The client no longer takes answers.
            () = answers.closed() => break Ok(false),
            // Another one has come, and this one asks nothing.
            () = client.counted.leave.cancelled() => break Ok(false),
            more = timeout(limits.idle, reader.more()) => match more {
                Ok(Ok(false)) | Err(_) => break Ok(false),
                Ok(Ok(true)) => {}
                Ok(Err(error)) => break Err(error),
            },
        }
        drop(waits);
        let octets = match read_message(&mut reader, &limits).await {
            Ok(Some(octets)) => octets,
            Ok(None) => break Ok(false),
            Err(error) => break Err(error),
        };
        fresh = false;
        match resolver.begin(&octets, R::TRANSPORT, *address) {
            Begun::Nothing => {}
            Begun::Done(answer) => {
                if answers.send((answer, place)).await.is_err() {
                    break Ok(false);
                }
            }
            Begun::Waits(question) => {
                let (answers, resolver) = (answers.clone(), Arc::clone(resolver));
                tokio::spawn(async move {
                    let answer = resolver.finish(*question).await;
                    let _client_left = answers.send((answer, place)).await;
                });
            }
        }
    };
    drop(answers);
    let mut writer = writing.await.map_err(io::Error::other)??;
    if stopped? {
        return Ok(Some((reader, writer)));
    }
    writer.shutdown().await?;
    Ok(None)
}

/// The next message; `None` where the client closed or was silent for too long between messages.
async fn read_message<R: AsyncRead + Unpin>(
    reader: &mut R,
    limits: &Tcp,
) -> io::Result<Option<Vec<u8>>> {
    let mut first = [0; 1];
    match timeout(limits.idle, reader.read(&mut first)).await {
        Err(_) | Ok(Ok(0)) => return Ok(None),
        Ok(Err(error)) => return Err(error),
        Ok(Ok(_)) => {}
    }
    let rest = async {
        let length = u16::from_be_bytes([first[0], reader.read_u8().await?]);
        let mut octets = vec![0; usize::from(length)];
        reader.read_exact(&mut octets).await?;
        Ok(Some(octets))
    };
    timeout(limits.transfer, rest).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Writes answers as they come, each in one piece with its length; gives back by what it wrote. A
/// question is under way until its answer is written: a client that does not read is not idle.
async fn write_all<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut answers: mpsc::Receiver<(Vec<u8>, OwnedSemaphorePermit)>,
    limit: Duration,
) -> io::Result<W> {
    while let Some((answer, _place)) = answers.recv().await {
        // Answers are encoded within this bound.
        let Ok(length) = u16::try_from(answer.len()) else { continue };
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        let written = async {
            writer.write_all(&framed).await?;
            writer.flush().await
        };
        timeout(limit, written).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    }
    Ok(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that waits for its client to ask, as `converse` has it: with the place of the next
    /// question.
    struct Waiter {
        counted: Counted,
        under_way: Arc<Semaphore>,
    }

    impl Waiter {
        fn of(connections: &Arc<Connections>, source: &str) -> Self {
            let counted = connections.count(source.parse().unwrap()).expect("room");
            let under_way = Arc::new(Semaphore::new(connections.limits.max_pipelined));
            Self { counted, under_way }
        }

        fn place(&self) -> OwnedSemaphorePermit {
            Arc::clone(&self.under_way).try_acquire_owned().unwrap()
        }

        fn had_to_leave(&self) -> bool {
            self.counted.leave.is_cancelled()
        }
    }

    /// Its answer is under way until it is written, however long the client takes to read.
    #[tokio::test]
    async fn who_does_not_read_an_answer_is_not_idle() {
        for source in ["192.0.2.1", "2001:db8::1"] {
            let limits = Tcp { max_connections: 2, max_per_source: 2, ..Tcp::default() };
            let connections = Connections::new(limits, Departure::default());
            let [deaf, idle] = [(); 2].map(|()| Waiter::of(&connections, source));
            let (answers, queue) = mpsc::channel(limits.max_pipelined);
            let (writer, mut client) = tokio::io::duplex(4);
            let writing = tokio::spawn(write_all(writer, queue, Duration::from_mins(5)));
            answers.send((vec![7; 100], deaf.place())).await.unwrap();
            let (_of_deaf, _of_idle) = (deaf.place(), idle.place());
            let _waits = [&deaf, &idle].map(|waiter| waiter.counted.waits(&waiter.under_way));
            // What is taken out of the queue is being written.
            let mut length = [0; 2];
            client.read_exact(&mut length).await.unwrap();
            assert_eq!(length, [0, 100]);
            let third = Waiter::of(&connections, source);
            assert!(idle.had_to_leave() && !deaf.had_to_leave(), "{source}");
            // It is idle when it has read.
            client.read_exact(&mut [0; 100]).await.unwrap();
            drop(answers);
            writing.await.unwrap().unwrap();
            let fourth = Waiter::of(&connections, source);
            assert!(deaf.had_to_leave() && !third.had_to_leave(), "{source}");
            assert!(!fourth.had_to_leave(), "{source}");
        }
    }
}
