//! Questions to one upstream over TLS: one connection for all of them, several under way on it,
//! answered as they come (RFC 7766 6.2.1, RFC 7858 3.4). It is made when there is a question and
//! closed when there was none for a while; an upstream that closes it loses no question that
//! another connection could still bring.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hickory_proto::op::Message;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    net::TcpStream,
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::{timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    exchange::{ExchangeError, Received, answer_to},
    lock,
};
use crate::dns::tls::Peer;

/// How long a connection may take to be made, handshake included. The questions that wait for it
/// have less; the next ones then find it there.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a connection without questions is kept; CoreDNS's.
const IDLE: Duration = Duration::from_secs(10);
/// How long an upstream that owes answers may be silent before the connection is given up.
const SILENCE: Duration = Duration::from_secs(3);
/// How many connections a question is tried on.
const MAX_TRIES: usize = 3;
/// Questions under way on a connection, and those that wait to be sent; more fail.
const MAX_PIPELINED: usize = 256;

/// The way to an upstream.
#[derive(Debug)]
pub(super) struct Link {
    upstream: SocketAddr,
    name: ServerName<'static>,
    client: Arc<ClientConfig>,
    /// The way to the connection that is there, if one is.
    connection: Mutex<Option<mpsc::Sender<Asked>>>,
    counts: Arc<LinkCounts>,
    /// Where connections live, whoever asks.
    runtime: Handle,
}

/// How often a question found a connection, and how often it had to make one.
#[derive(Debug, Default)]
pub struct LinkCounts {
    /// It found one.
    pub found: AtomicU64,
    /// It made one.
    pub made: AtomicU64,
}

/// A question on its way.
#[derive(Debug)]
struct Asked {
    octets: Vec<u8>,
    answer: oneshot::Sender<Vec<u8>>,
}

impl Link {
    /// The way to the upstream at that address, whose connections live on `runtime`; an error
    /// where TLS can't be used.
    pub(super) fn new(
        upstream: SocketAddr,
        peer: &Peer,
        counts: Arc<LinkCounts>,
        runtime: Handle,
    ) -> Result<Self, String> {
        let (name, client) = (peer.name(upstream.ip())?, peer.client()?);
        Ok(Self { upstream, name, client, connection: Mutex::default(), counts, runtime })
    }

    /// Asks. Takes as long as it takes: the caller has the clock.
    pub(super) async fn ask(
        &self,
        query: &Message,
        octets: Vec<u8>,
    ) -> Result<Received, ExchangeError> {
        for _ in 0..MAX_TRIES {
            let (connection, found) = self.connection();
            let (answer, told) = oneshot::channel();
            let sent = connection.try_send(Asked { octets: octets.clone(), answer });
            if let Err(mpsc::error::TrySendError::Full(_)) = sent {
                return Err(ExchangeError::Busy);
            }
            match told.await {
                Ok(mut octets) => {
                    // The connection has identifiers of its own.
                    if let Some(id) = octets.first_chunk_mut() {
                        *id = query.metadata.id.to_be_bytes();
                    }
                    let message = answer_to(query, &octets).ok_or(ExchangeError::Mismatch)?;
                    return Ok(Received { message, octets });
                }
                // It was closed while the question was on its way, as happens to one that was
                // idle: another one may bring it.
                Err(_) if found => {}
                Err(_) => break,
            }
        }
        Err(ExchangeError::Closed)
    }

    /// The connection that is there, or a new one; whether it was there.
    fn connection(&self) -> (mpsc::Sender<Asked>, bool) {
        let mut held = lock(&self.connection);
        if let Some(connection) = held.as_ref().filter(|connection| !connection.is_closed()) {
            self.counts.found.fetch_add(1, Relaxed);
            return (connection.clone(), true);
        }
        self.counts.made.fetch_add(1, Relaxed);
        let (connection, queue) = mpsc::channel(MAX_PIPELINED);
        *held = Some(connection.clone());
        let (upstream, name) = (self.upstream, self.name.clone());
        let connector = TlsConnector::from(Arc::clone(&self.client));
        // Of its own, so that a question that gives up does not take it along.
        self.runtime.spawn(async move {
            let made = timeout(CONNECT, connect(upstream, connector, name));
            let ended = match made.await {
                Ok(Ok(stream)) => converse(stream, queue).await,
                Ok(Err(error)) => Err(error),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            if let Err(error) = ended {
                tracing::debug!(%upstream, %error, "connection over TLS ended");
            }
        });
        (connection, false)
    }
}

async fn connect(
    upstream: SocketAddr,
    connector: TlsConnector,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(upstream).await?;
    // A question is one small segment, and waits for no other.
    stream.set_nodelay(true)?;
    connector.connect(name, stream).await
}

/// Questions that were sent, by the identifiers that they have on this connection.
#[derive(Default)]
struct UnderWay {
    waiting: HashMap<u16, oneshot::Sender<Vec<u8>>>,
    last: u16,
}

impl UnderWay {
    /// An identifier that is free, for a question whose answer goes to `answer`.
    fn add(&mut self, answer: oneshot::Sender<Vec<u8>>) -> u16 {
        // There are more of them than questions.
        loop {
            self.last = self.last.wrapping_add(1);
            if !self.waiting.contains_key(&self.last) {
                self.waiting.insert(self.last, answer);
                return self.last;
            }
        }
    }

    fn answered(&mut self, octets: Vec<u8>) {
        let id = octets.first_chunk().map(|id| u16::from_be_bytes(*id));
        if let Some(waiting) = id.and_then(|id| self.waiting.remove(&id)) {
            let _gave_up = waiting.send(octets);
        }
    }

    /// Whether there is room for one more; those who gave up make some.
    fn has_room(&mut self) -> bool {
        if self.waiting.len() >= MAX_PIPELINED {
            self.waiting.retain(|_, waiting| !waiting.is_closed());
        }
        self.waiting.len() < MAX_PIPELINED
    }
}

/// Sends what is asked and passes on what is answered, until the upstream closes, is silent for too
/// long, or nobody asks any more. Who still waits then learns that nothing will come.
async fn converse(
    stream: TlsStream<TcpStream>,
    mut queue: mpsc::Receiver<Asked>,
) -> io::Result<()> {
    let (reader, mut writer) = split(stream);
    // Reading has a task of its own: half a message must not be lost when a question comes.
    let (answers, mut answered) = mpsc::channel(MAX_PIPELINED);
    let reading = Reading(tokio::spawn(read_all(reader, answers)));
    let mut under_way = UnderWay::default();
    let mut since = Instant::now();
    let ended = loop {
        let quiet = under_way.waiting.is_empty();
        let has_room = under_way.has_room();
        let limit = since + if quiet { IDLE } else { SILENCE };
        tokio::select! {
            asked = queue.recv(), if has_room => match asked {
                None => break Ok(()),
                Some(asked) if asked.answer.is_closed() => {}
                Some(asked) => {
                    if quiet {
                        since = Instant::now();
                    }
                    if let Err(error) = send(&mut writer, &mut under_way, asked).await {
                        break Err(error);
                    }
                }
            },
            octets = answered.recv() => match octets {
                Some(octets) => {
                    under_way.answered(octets);
                    since = Instant::now();
                }
                None => break Ok(()),
            },
            () = tokio::time::sleep_until(limit.into()) => {
                break if quiet { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) };
            }
        }
    };
    // From here on questions make a new connection; those in the queue have come too late.
    queue.close();
    drop(reading);
    let _already_gone = timeout(SILENCE, writer.shutdown()).await;
    ended
}

async fn send(
    writer: &mut WriteHalf<TlsStream<TcpStream>>,
    under_way: &mut UnderWay,
    asked: Asked,
) -> io::Result<()> {
    let Asked { mut octets, answer } = asked;
    let Ok(length) = u16::try_from(octets.len()) else { return Ok(()) };
    let id = under_way.add(answer);
    if let Some(place) = octets.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
    let framed = [&length.to_be_bytes()[..], &octets].concat();
    let written = async {
        writer.write_all(&framed).await?;
        writer.flush().await
    };
    let until = Instant::now() + SILENCE;
    timeout_at(until.into(), written).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A task that ends with this.
struct Reading(tokio::task::JoinHandle<()>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn read_all(mut reader: ReadHalf<TlsStream<TcpStream>>, answers: mpsc::Sender<Vec<u8>>) {
    while let Ok(length) = reader.read_u16().await {
        let mut octets = vec![0; usize::from(length)];
        if reader.read_exact(&mut octets).await.is_err() || answers.send(octets).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_to_those_who_asked() {
        let mut under_way = UnderWay { last: u16::MAX - 1, ..UnderWay::default() };
        let (first, mut told) = oneshot::channel();
        let id = under_way.add(first);
        let (second, _gave_up) = oneshot::channel();
        assert_eq!((id, under_way.add(second)), (u16::MAX, 0), "they go round");
        under_way.answered(vec![9, 9, 1]);
        under_way.answered(vec![0xff]);
        assert!(told.try_recv().is_err(), "nobody asked that");
        under_way.answered(vec![0xff, 0xff, 1]);
        assert_eq!(told.try_recv(), Ok(vec![0xff, 0xff, 1]));
        under_way.answered(vec![0xff, 0xff, 2]);
        assert_eq!(under_way.waiting.len(), 1, "an answer comes once");
    }

    /// Who asks may be a thread that answers datagrams, and end.
    #[test]
    fn connections_are_made_where_they_belong() {
        let made = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
        let peer = Peer {
            server_name: Some("dns.example".to_owned()),
            authorities: Some(made.cert.pem()),
            ..Peer::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for address in ["127.0.0.1:9", "[::1]:9"] {
            let own = runtime.handle().clone();
            let link = Link::new(address.parse().unwrap(), &peer, Arc::default(), own).unwrap();
            let (connection, found) = link.connection();
            assert!(!found && !connection.is_closed());
            // Nobody listens there.
            runtime.block_on(connection.closed());
        }
    }

    #[test]
    fn those_who_gave_up_make_room() {
        let mut under_way = UnderWay::default();
        let mut told = Vec::new();
        for _ in 0..MAX_PIPELINED {
            let (answer, waits) = oneshot::channel();
            under_way.add(answer);
            told.push(waits);
        }
        assert!(!under_way.has_room());
        told.pop();
        assert!(under_way.has_room());
    }
}
