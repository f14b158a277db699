//! The running agent's side.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::UnixStream,
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Departure, Identity, OpenSockets, PORTS_MAX, VERSION,
    channel::{Channel, DESCRIPTORS_MAX},
    message::Message,
};
use crate::supervisor::TaskError;

/// How long the other may take to say what it wants.
const HELLO: Duration = Duration::from_secs(5);

/// Gives the sockets to who asks for them, one at a time.
#[derive(Debug)]
pub struct Giver {
    /// Whose agent this is.
    pub identity: Identity,
    /// The sockets of DNS.
    pub sockets: Arc<OpenSockets>,
    /// The ports of health and metrics.
    pub ports: Arc<OpenSockets>,
    /// Who is told.
    pub departure: Departure,
}

/// A new agent that asks, while its place is held.
pub type Asking = (UnixStream, OwnedSemaphorePermit);

/// What a talk came to.
enum Outcome {
    /// It serves.
    Relieved,
    /// It went away, or had no business here.
    Alone,
    /// This agent is told to stop.
    Stopping,
}

impl Giver {
    /// Attends those who ask, until one serves or `cancel`.
    pub async fn run(
        self,
        mut asking: mpsc::Receiver<Asking>,
        cancel: CancellationToken,
    ) -> Result<(), TaskError> {
        loop {
            let (stream, place) = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                Some(asking) = asking.recv() => asking,
            };
            let channel = Arc::new(Channel::new(stream));
            match self.attend(&channel, &cancel).await {
                Ok(Outcome::Relieved) => {
                    self.departure.inner.relieved.cancel();
                    cancel.cancelled().await;
                    return Ok(());
                }
                Ok(Outcome::Stopping) => {
                    // Gone already, perhaps: then nobody goes on, and nobody is told.
                    let _told = channel.send(&Message::Leaving, &[]).await;
                    return Ok(());
                }
                Ok(Outcome::Alone) => {}
                Err(error) => {
                    tracing::warn!(%error, "a hand-over came to nothing; this agent goes on");
                }
            }
            self.departure.set_successor(None);
            drop(place);
        }
    }

    async fn attend(
        &self,
        channel: &Arc<Channel>,
        cancel: &CancellationToken,
    ) -> io::Result<Outcome> {
        let hello = timeout(HELLO, channel.receive()).await?;
        let Some((Message::Hello { versions, agent, pid, node, bpffs, takes_ports }, _)) = hello?
        else {
            return Err(io::Error::other("the other agent does not say who it is"));
        };
        let other = Identity { node, bpffs };
        if let Some(why) = self.refuses(&versions, &other) {
            tracing::warn!(pid, why, "another agent is refused the sockets");
            channel.send(&Message::Refusal { why }, &[]).await?;
            return Ok(Outcome::Alone);
        }
        // Before it has them: who is told to stop in between must not turn its clients away.
        self.departure.set_successor(Some(Arc::clone(channel)));
        self.offer(channel, takes_ports).await?;
        tracing::info!(pid, version = agent, "another agent has the sockets and will go on");
        tokio::select! {
            () = cancel.cancelled() => Ok(Outcome::Stopping),
            said = channel.receive() => match said? {
                Some((Message::Serving, _)) => {
                    tracing::info!(pid, "the other agent serves; this one leaves");
                    Ok(Outcome::Relieved)
                }
                Some((other, _)) => Err(io::Error::other(format!("{other:?} was not expected"))),
                None => Err(io::Error::other(format!("the agent with pid {pid} ended"))),
            },
        }
    }

    fn refuses(&self, versions: &[u32], other: &Identity) -> Option<String> {
        if !versions.contains(&VERSION) {
            return Some(format!(
                "it speaks version {VERSION} of the hand-over, and not {versions:?}"
            ));
        }
        (*other != self.identity).then(|| {
            format!(
                "it is the agent of node {} with pins in {}, and not of {} with pins in {}",
                self.identity.node,
                self.identity.bpffs.display(),
                other.node,
                other.bpffs.display()
            )
        })
    }

    async fn offer(&self, channel: &Channel, with_ports: bool) -> io::Result<()> {
        let sockets = self.sockets.duplicates()?;
        let mut ports = if with_ports { self.ports.duplicates()? } else { Vec::new() };
        ports.truncate(PORTS_MAX);
        let offer = Message::Offer {
            version: VERSION,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            sockets: sockets.len(),
            ports: ports.len(),
        };
        channel.send(&offer, &[]).await?;
        send(channel, &sockets).await?;
        send(channel, &ports).await
    }
}

/// Sends descriptors, as many at once as a message takes.
async fn send(channel: &Channel, sockets: &[OwnedFd]) -> io::Result<()> {
    for part in sockets.chunks(DESCRIPTORS_MAX) {
        let descriptors: Vec<_> = part.iter().map(|socket| socket.as_fd()).collect();
        channel.send(&Message::Sockets { count: part.len() }, &descriptors).await?;
    }
    Ok(())
}
