//! Questions by TCP (RFC 7766): several under way per connection, answered as they are ready,
//! within bounds of number, size and time.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Begun, Resolver, listen::Audience, secure::Acceptor};
use crate::dns::{config::Tcp, message::Transport};

/// How long to wait after an error of the listener itself, such as no descriptor being left.
const PAUSE: Duration = Duration::from_millis(20);

/// How many connections there are, all listeners together.
#[derive(Debug)]
pub struct Connections {
    limits: Tcp,
    by_source: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
struct Counted {
    connections: Arc<Connections>,
    source: IpAddr,
}

impl Connections {
    /// None yet.
    pub fn new(limits: Tcp) -> Arc<Self> {
        Arc::new(Self { limits, by_source: Mutex::default() })
    }

    /// Counts one more from `source`, unless there are too many.
    fn count(self: &Arc<Self>, source: IpAddr) -> Option<Counted> {
        let mut by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = by_source.values().sum();
        let of_source = by_source.get(&source).copied().unwrap_or(0);
        if all >= self.limits.max_connections || of_source >= self.limits.max_per_source {
            return None;
        }
        by_source.insert(source, of_source + 1);
        Some(Counted { connections: Arc::clone(self), source })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let by_source = &self.connections.by_source;
        let mut by_source = by_source.lock().unwrap_or_else(PoisonError::into_inner);
        match by_source.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(by_source.remove(&self.source)),
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
        let (resolver, limits) = (Arc::clone(&resolver), connections.limits);
        let (stop, acceptor) = (stop.clone(), acceptor.clone());
        open.spawn(async move {
            let client = Client { resolver, address: source, limits };
            let ended = match acceptor {
                None => {
                    let (reader, writer) = stream.into_split();
                    converse(reader, writer, client, stop).await
                }
                Some(acceptor) => match timeout(limits.transfer, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let (reader, writer) = tokio::io::split(stream);
                        converse(reader, writer, client, stop).await
                    }
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                },
            };
            if let Err(error) = ended {
                tracing::debug!(%error, client = %source, "tcp connection ended");
            }
            drop(counted);
        });
    }
    while open.join_next().await.is_some() {}
}

/// Who is answered on a connection, by whom, and within which bounds.
struct Client {
    resolver: Arc<Resolver>,
    address: SocketAddr,
    limits: Tcp,
}

/// Reads questions and has them answered until the client closes, is silent for too long, or
/// `stop`; then waits for what is under way.
async fn converse<R, W>(
    mut reader: R,
    writer: W,
    client: Client,
    stop: CancellationToken,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let Client { resolver, address, limits } = client;
    let (answers, queue) = mpsc::channel(limits.max_pipelined);
    let writing = tokio::spawn(write_all(writer, queue, limits.transfer));
    let under_way = Arc::new(Semaphore::new(limits.max_pipelined));
    let read = loop {
        // Who asks faster than is answered waits here, and so does its window.
        let Ok(place) = Arc::clone(&under_way).acquire_owned().await else { break Ok(()) };
        let octets = tokio::select! {
            () = stop.cancelled() => break Ok(()),
            // The client no longer takes answers.
            () = answers.closed() => break Ok(()),
            read = read_message(&mut reader, &limits) => match read {
                Ok(Some(octets)) => octets,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            },
        };
        match resolver.begin(&octets, Transport::Tcp, address) {
            Begun::Nothing => {}
            Begun::Done(answer) => {
                if answers.send(answer).await.is_err() {
                    break Ok(());
                }
            }
            Begun::Waits(question) => {
                let (answers, resolver) = (answers.clone(), Arc::clone(&resolver));
                tokio::spawn(async move {
                    let answer = resolver.finish(*question).await;
                    let _client_left = answers.send(answer).await;
                    drop(place);
                });
            }
        }
    };
    drop(answers);
    let written = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    read.and(written)
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

/// Writes answers as they come, each in one piece with its length.
async fn write_all<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut answers: mpsc::Receiver<Vec<u8>>,
    limit: Duration,
) -> io::Result<()> {
    while let Some(answer) = answers.recv().await {
        // Answers are encoded within this bound.
        let Ok(length) = u16::try_from(answer.len()) else { continue };
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        let written = async {
            writer.write_all(&framed).await?;
            writer.flush().await
        };
        timeout(limit, written).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    }
    writer.shutdown().await
}
