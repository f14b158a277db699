//! Questions by UDP. A socket stands at one address, so that answers come from where was asked.

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
    batch::{Batch, Left, MANY},
    listen::Audience,
};
use crate::dns::message::Transport;

/// How long to wait after an error of the socket itself, lest a lasting one burn the processor.
const PAUSE: Duration = Duration::from_millis(20);

/// A socket, and who is answered by it.
pub(super) struct Served {
    pub(super) socket: UdpSocket,
    pub(super) ipv6: bool,
    pub(super) resolver: Arc<Resolver>,
    pub(super) audience: Audience,
    /// Where questions wait for upstreams.
    pub(super) elsewhere: Handle,
}

/// Serves until `stop`; what waits for upstreams is answered before it returns.
pub(super) async fn serve(served: Served, stop: CancellationToken) {
    let served = Arc::new(served);
    // Bounded by the resolver: who finds no place among the waiting is told so at once.
    let waiting = TaskTracker::new();
    let mut stopped = pin!(stop.cancelled());
    loop {
        let ready = tokio::select! {
            () = &mut stopped => break,
            ready = served.socket.readable() => ready,
        };
        let turn = || Batch::with(|batch| served.turn(batch, &waiting));
        match ready.and_then(|()| served.socket.try_io(Interest::READABLE, turn)) {
            Ok(left) => {
                for (answer, to) in left {
                    served.send(&answer, to).await;
                }
                // Other sockets of this thread have their turn.
                tokio::task::yield_now().await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::debug!(%error, "udp socket failed to receive");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    waiting.close();
    waiting.wait().await;
}

impl Served {
    /// Answers what has arrived; gives what could not be sent yet. What takes no more than a look
    /// goes first.
    fn turn(self: &Arc<Self>, batch: &mut Batch, waiting: &TaskTracker) -> io::Result<Vec<Left>> {
        let count = batch.take(&self.socket, self.ipv6)?;
        let since = Instant::now();
        let mut others = [false; MANY];
        for (place, other) in others.iter_mut().enumerate().take(count) {
            batch.answer(place, |question, source, answer| {
                // To port 0 nothing can be sent.
                let admitted =
                    source.port() != 0 && self.audience.admits(&self.resolver, source.ip());
                let answered =
                    admitted && self.resolver.answer_directly(question, source.ip(), since, answer);
                *other = admitted && !answered;
                answered
            });
        }
        let mut left = batch.give(&self.socket);
        if others.contains(&true) {
            for place in (0..count).filter(|place| others[*place]) {
                batch.answer(place, |question, source, answer| {
                    self.begin(question, source, answer, waiting)
                });
            }
            left.extend(batch.give(&self.socket));
        }
        Ok(left)
    }

    /// Writes the answer to `question`, or has it wait for an upstream.
    fn begin(
        self: &Arc<Self>,
        question: &[u8],
        source: SocketAddr,
        answer: &mut Vec<u8>,
        waiting: &TaskTracker,
    ) -> bool {
        match self.resolver.begin(question, Transport::Udp, source) {
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
                waiting.spawn_on(answering, &self.elsewhere);
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
