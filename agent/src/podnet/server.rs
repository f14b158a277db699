//! `cni.sock`: takes the plugin's requests, one per connection, a bounded number at a time.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt, unix::net::UnixStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use mizzen_cni::{
    protocol::error::{DECODING_FAILURE, INVALID_ENVIRONMENT},
    wire::{self, Command, Failure, Request, Response, SOCKET, VERSION},
};
use tokio::{
    net::UnixListener,
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use super::pods::{Added, Addition, Pods, failure};

/// How many calls are at work at once; the others wait in the socket's queue. The kernel makes
/// links one after the other anyway.
const CONCURRENCY: usize = 32;
/// A plugin has its request ready when it connects.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after a failed accept: where no descriptor is left, it fails at once and again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// No call may take longer, whatever the plugin says.
const CALL_LIMIT: Duration = Duration::from_secs(8);

/// Listens in `state_dir`, for root only. An earlier agent's socket is replaced in one step.
pub fn listen(state_dir: &Path) -> io::Result<UnixListener> {
    let path = state_dir.join(SOCKET);
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    fs::rename(&temporary, &path)?;
    Ok(listener)
}

/// Serves until `cancel`, then lets the calls that are at work end.
pub async fn serve(listener: UnixListener, pods: Arc<Pods>, cancel: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONCURRENCY));
    let mut calls = JoinSet::new();
    loop {
        let place = tokio::select! {
            () = cancel.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while calls.try_join_next().is_some() {}
        let accepted = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the plugin's socket failed to accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let stream = match admit(accepted) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "refused a connection to the plugin's socket");
                continue;
            }
        };
        let pods = Arc::clone(&pods);
        calls.spawn(async move {
            let answered = spawn_blocking(move || answer(stream, &pods)).await;
            if let Ok(Err(error)) = answered {
                tracing::warn!(%error, "a call of the plugin got no answer");
            }
            drop(place);
        });
    }
    drop(listener);
    calls.join_all().await;
}

/// Root's connections, as blocking sockets.
fn admit(stream: tokio::net::UnixStream) -> io::Result<UnixStream> {
    let uid = stream.peer_cred()?.uid();
    if uid != 0 {
        let text = format!("user {uid} is not root");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    stream.set_write_timeout(Some(READ_TIMEOUT))?;
    Ok(stream)
}

/// Reads the request, does it, and says how it went. An ADD whose answer nobody took is undone.
fn answer(mut stream: UnixStream, pods: &Pods) -> io::Result<()> {
    let (request, netns) = match wire::receive::<Request>(&mut stream) {
        Ok(received) => received,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => {
            let refusal = failure(DECODING_FAILURE, "can't read the request", error.to_string());
            return wire::send(&mut stream, &Response::Failed(refusal), None);
        }
    };
    let limit = Duration::from_millis(request.timeout_ms.into()).min(CALL_LIMIT);
    match perform(request, netns, pods, limit) {
        Ok(Some(added)) => {
            let sent = wire::send(&mut stream, &Response::Added(added.link.clone()), None);
            if sent.is_err() {
                added.undo();
            }
            sent
        }
        Ok(None) => wire::send(&mut stream, &Response::Done, None),
        Err(refusal) => wire::send(&mut stream, &Response::Failed(refusal), None),
    }
}

/// Does what was asked; only an ADD has something to show for it.
fn perform(
    request: Request,
    netns: Option<OwnedFd>,
    pods: &Pods,
    limit: Duration,
) -> Result<Option<Added<'_>>, Failure> {
    if !(1..=VERSION).contains(&request.version) {
        let details = format!("plugin {}, agent {VERSION}", request.version);
        return Err(failure(DECODING_FAILURE, "plugin and agent don't match", details));
    }
    let network = request.network;
    // Whatever is logged of the call has what the runtime calls it by in its traces.
    let wire::Trace { trace_parent, trace_state, baggage } = request.trace;
    let _span = tracing::info_span!("cni", trace_parent, trace_state, baggage).entered();
    tracing::debug!(network, command = ?request.command, "call");
    let netns = || {
        let refusal = || failure(INVALID_ENVIRONMENT, "no network namespace came along", "");
        netns.map(fs::File::from).ok_or_else(refusal)
    };
    match request.command {
        Command::Add { attachment, pod, requested } => {
            let (netns, requested) = (netns()?, *requested);
            let addition = Addition { network, attachment, pod, netns, requested };
            return pods.add(&addition, limit).map(Some);
        }
        Command::Del { attachment } => pods.del(&attachment, limit),
        Command::Check { attachment, addresses, remembered } => {
            pods.check(&attachment, &addresses, remembered.as_deref(), &netns()?, limit)
        }
        Command::Gc { valid, called } => pods.gc(&network, &valid, called, limit),
        Command::Status => pods.status(),
    }?;
    Ok(None)
}
