//! Questions by UDP. A socket stands at one address, so that answers come from where was asked.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::UdpSocket, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Begun, Resolver, listen::Audience};
use crate::dns::message::Transport;

/// More than any question needs; a longer one is malformed.
const DATAGRAM: usize = 4096;
/// How long to wait after an error of the socket itself, lest a lasting one burn the processor.
const PAUSE: Duration = Duration::from_millis(20);

/// Serves `socket` until `stop`; what waits for upstreams is answered before it returns.
pub(super) async fn serve(
    socket: UdpSocket,
    resolver: Arc<Resolver>,
    audience: Audience,
    stop: CancellationToken,
) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; DATAGRAM];
    // Bounded by the resolver: who finds no place among the waiting is told so at once.
    let mut waiting = JoinSet::new();
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = waiting.join_next() => continue,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, source) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "udp socket failed to receive");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // To port 0 nothing can be sent.
        if source.port() == 0 || !audience.admits(&resolver, source.ip()) {
            continue;
        }
        match resolver.begin(&buffer[..length], Transport::Udp, source) {
            Begun::Nothing => {}
            Begun::Done(answer) => send(&socket, &answer, source).await,
            Begun::Waits(question) => {
                let (socket, resolver) = (Arc::clone(&socket), Arc::clone(&resolver));
                waiting.spawn(async move {
                    let answer = resolver.finish(*question).await;
                    send(&socket, &answer, source).await;
                });
            }
        }
    }
    while waiting.join_next().await.is_some() {}
}

async fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(answer, to).await {
        tracing::debug!(%error, client = %to, "udp answer not sent");
    }
}
