//! The new agent's side.

use std::{io, os::fd::OwnedFd, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    GivenPorts, Identity, PATH, PORTS_MAX, PROTOCOL, VERSION, channel::Channel, message::Message,
};
use crate::serve::listen::SOCKET;

/// How long the running agent may take for each answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long this agent may take from the sockets to the first question.
const OPENING: Duration = Duration::from_secs(10);
/// How long the other may take to leave: its tasks have five seconds a stage.
const LEAVING: Duration = Duration::from_secs(30);
/// How often it is talked to, where it breaks off.
const TALKS: u32 = 3;
/// Octets of the head of an HTTP answer, and of what says why there is no hand-over.
const HEAD_MAX: usize = 4096;

/// Why nothing is taken over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The running agent does not give its place.
    #[error(
        "another agent runs on this node and does not hand over: {why}; stop it first, or set --state-dir"
    )]
    Refused {
        /// Its reason.
        why: String,
    },
    /// The talk broke off.
    #[error("another agent runs on this node, and the hand-over failed; it goes on: stop it first")]
    Broken(#[source] io::Error),
    /// This agent's resolver did not begin.
    #[error("the resolver did not begin to serve in time; the other agent goes on")]
    NotServing,
    /// The other does not end.
    #[error("the agent with pid {pid} does not leave though this one serves: end it")]
    Stays {
        /// Its process.
        pid: u32,
    },
}

/// The agent before this one, which runs on until [`Predecessor::relieve`].
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Its listening sockets of DNS.
    pub sockets: Vec<OwnedFd>,
    /// Its ports of health and metrics; none where it is of a version that keeps them.
    pub ports: GivenPorts,
}

/// What tells this agent's resolver when to begin, and is told when it does.
#[derive(Debug)]
pub struct Opening {
    /// Cancelled when it shall begin.
    pub begin: CancellationToken,
    /// Told when it serves.
    pub serving: oneshot::Receiver<()>,
    /// Connections of clients, as the other lets go of them.
    pub connections: mpsc::Sender<OwnedFd>,
}

/// Asks the agent that serves `state_dir` for its place; `None` where there is none. One that is killed
/// meanwhile breaks off, and is gone when it is looked for again.
pub async fn meet(
    state_dir: &Path,
    identity: &Identity,
) -> Result<Option<Predecessor>, HandoverError> {
    for _ in 1..TALKS {
        match talk(state_dir, identity).await {
            Err(HandoverError::Broken(error)) if is_of_one_that_ends(&error) => {
                tracing::info!(%error, "the agent before broke off; looking for it again");
            }
            met => return met,
        }
    }
    talk(state_dir, identity).await
}

/// Whether a process that ends, or has ended, leaves a talk so.
fn is_of_one_that_ends(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

async fn talk(state_dir: &Path, identity: &Identity) -> Result<Option<Predecessor>, HandoverError> {
    let Ok(stream) = UnixStream::connect(state_dir.join(SOCKET)).await else { return Ok(None) };
    let asked = async {
        let channel = Channel::new(switch(stream).await?);
        introduce(&channel, identity).await?;
        accept(channel).await
    };
    let late = |_| HandoverError::Broken(io::ErrorKind::TimedOut.into());
    timeout(ANSWER, asked).await.map_err(late)?.map(Some)
}

/// Has the connection switched from HTTP to the protocol of the hand-over.
async fn switch(mut stream: UnixStream) -> Result<UnixStream, HandoverError> {
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(HandoverError::Broken)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_MAX {
        // One by one: what follows the head is not HTTP.
        head.push(stream.read_u8().await.map_err(HandoverError::Broken)?);
    }
    if head.starts_with(b"HTTP/1.1 101 ") {
        return Ok(stream);
    }
    let why = if head.starts_with(b"HTTP/1.1 404 ") {
        "it is of a version that does not know of it".to_owned()
    } else {
        let mut body = Vec::new();
        let mut stream = stream.take(HEAD_MAX as u64);
        let rest = stream.read_to_end(&mut body);
        let _as_far_as_it_came = timeout(Duration::from_secs(1), rest).await;
        String::from_utf8_lossy(&body).trim().to_owned()
    };
    Err(HandoverError::Refused { why })
}

async fn introduce(channel: &Channel, identity: &Identity) -> Result<(), HandoverError> {
    let hello = Message::Hello {
        versions: vec![VERSION],
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        node: identity.node.clone(),
        bpffs: identity.bpffs.clone(),
        takes_ports: true,
    };
    channel.send(&hello, &[]).await.map_err(HandoverError::Broken)
}

async fn accept(channel: Channel) -> Result<Predecessor, HandoverError> {
    let (pid, version, count, ports) = match hear(&channel).await? {
        (Message::Offer { pid, agent, sockets, ports, .. }, _) => (pid, agent, sockets, ports),
        (Message::Refusal { why }, _) => return Err(HandoverError::Refused { why }),
        (other, _) => return Err(unexpected(&other)),
    };
    if ports > PORTS_MAX {
        return Err(HandoverError::Broken(io::Error::other("it gives more ports than any has")));
    }
    let sockets = hear_sockets(&channel, count).await?;
    let ports = GivenPorts::new(hear_sockets(&channel, ports).await?);
    Ok(Predecessor { channel, pid, version, sockets, ports })
}

/// So many descriptors.
async fn hear_sockets(channel: &Channel, count: usize) -> Result<Vec<OwnedFd>, HandoverError> {
    let mut sockets = Vec::new();
    while sockets.len() < count {
        match hear(channel).await? {
            (Message::Sockets { .. }, mut part) => sockets.append(&mut part),
            (other, _) => return Err(unexpected(&other)),
        }
    }
    Ok(sockets)
}

async fn hear(channel: &Channel) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
    let heard = channel.receive().await.map_err(HandoverError::Broken)?;
    heard.ok_or_else(|| HandoverError::Broken(io::ErrorKind::UnexpectedEof.into()))
}

fn unexpected(message: &Message) -> HandoverError {
    HandoverError::Broken(io::Error::other(format!("{message:?} was not expected")))
}

impl Predecessor {
    /// Has this agent serve as soon as it is `ready`, or the other stops before that; then has the
    /// other leave, and returns when it is gone.
    pub async fn relieve(
        self,
        ready: impl Future<Output = ()>,
        opening: Opening,
    ) -> Result<(), HandoverError> {
        let Opening { begin, serving, connections } = opening;
        tokio::select! {
            () = ready => {}
            said = self.channel.receive() => {
                let said = said.ok().flatten().map(|(message, _)| message);
                tracing::warn!(pid = self.pid, ?said, "the other agent stops; this one begins early");
            }
        }
        begin.cancel();
        match timeout(OPENING, serving).await {
            Ok(Ok(())) => {}
            _ => return Err(HandoverError::NotServing),
        }
        tracing::info!(pid = self.pid, "this agent serves by the sockets of the one before");
        // Gone already, perhaps.
        let _told = self.channel.send(&Message::Serving, &[]).await;
        let gone = async {
            while let Ok(Some((message, descriptors))) = self.channel.receive().await {
                if message == Message::Connection {
                    for connection in descriptors {
                        let _no_resolver = connections.send(connection).await;
                    }
                }
            }
        };
        let pid = self.pid;
        timeout(LEAVING, gone).await.map_err(|_| HandoverError::Stays { pid })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    fn identity() -> Identity {
        Identity { node: "node-1".to_owned(), bpffs: "/sys/fs/bpf/mizzen".into() }
    }

    #[tokio::test]
    async fn one_that_is_killed_in_the_talk_is_gone_when_it_is_looked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let killed = async move {
            let connection = listener.accept().await.unwrap();
            drop((listener, connection));
        };
        let identity = identity();
        let (met, ()) = tokio::join!(meet(folder.path(), &identity), killed);
        assert!(met.unwrap().is_none());
    }

    #[tokio::test]
    async fn one_that_lives_and_breaks_off_each_time_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let breaks_off = async {
            for _ in 0..TALKS {
                drop(listener.accept().await.unwrap());
            }
        };
        let identity = identity();
        let (met, ()) = tokio::join!(meet(folder.path(), &identity), breaks_off);
        assert!(matches!(met, Err(HandoverError::Broken(_))), "{met:?}");
    }
}
