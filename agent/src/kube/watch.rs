//! One watch of one kind: list, watch, and go on for ever.
//!
//! A list is handed on whole, so that what it lacks is removed in one step. An API server that
//! can't be reached is never a reason to stop: it is reported, retried with back-off, and what was
//! known stays in force.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use kube::{
    Api,
    core::Status,
    runtime::watcher::{self, Event as WatchEvent},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    client::{Clients, Picked},
    seen::{FromMeta as _, Modelled, Seen},
    state::{Arrived, Change, Event},
};
use crate::{
    metrics::staleness::Staleness,
    model::ObjectKey,
    status::{Board, State},
    supervisor::TaskError,
};

/// The first pause after an error; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest pause between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A watch that was begun again and says nothing for so long works: refusals come at once.
const QUIET: Duration = Duration::from_secs(1);
/// How long a list may say nothing.
const LIST_SILENCE: Duration = Duration::from_mins(1);
/// How often an API server that does not have an optional kind is asked for it again.
const ABSENT_RETRY: Duration = Duration::from_mins(1);
/// How long the API server may take to answer when it is asked whether it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A kind that is watched.
#[derive(Debug)]
pub struct Kind {
    /// Its plural, for people.
    pub plural: &'static str,
    /// Its part on the board.
    pub part: &'static str,
    /// Whether a cluster may do without it: where the API server does not have the kind, or does
    /// not show it, there are no objects of it.
    pub optional: bool,
}

impl Kind {
    /// A kind that every cluster has.
    const fn required(plural: &'static str, part: &'static str) -> Self {
        Self { plural, part, optional: false }
    }
}

/// Services.
pub static SERVICES: Kind = Kind::required("services", "watch-services");
/// EndpointSlices.
pub static ENDPOINT_SLICES: Kind = Kind::required("endpointslices", "watch-endpointslices");
/// Nodes.
pub static NODES: Kind = Kind::required("nodes", "watch-nodes");
/// ServiceCIDRs, which API servers have since 1.33.
pub static SERVICE_CIDRS: Kind =
    Kind { plural: "servicecidrs", part: "watch-servicecidrs", optional: true };

/// Pods.
pub static PODS: Kind = Kind::required("pods", "watch-pods");
/// Namespaces; one that is not shown is still known by the Services in it.
pub static NAMESPACES: Kind =
    Kind { plural: "namespaces", part: "watch-namespaces", optional: true };

/// What a watch needs.
pub struct Watch {
    /// What is watched.
    pub kind: &'static Kind,
    /// Which of them, as a field selector; else all.
    pub fields: Option<String>,
    /// Where.
    pub servers: Clients,
    /// Where its changes go.
    pub changes: mpsc::Sender<Arrived>,
    /// Where it says how it is.
    pub board: Arc<Board>,
    /// Where it says since when it fails.
    pub staleness: Arc<Staleness>,
    /// When it ends.
    pub cancel: CancellationToken,
}

/// What goes on between two errors.
struct Progress<T> {
    listed: Option<Vec<T>>,
    synced: bool,
    /// Whether it is synced for being absent.
    absent: bool,
    failures: usize,
}

impl Watch {
    /// Watches until cancelled.
    pub async fn run<T: Modelled>(self) -> Result<(), TaskError> {
        let waiting =
            format!("{} are being listed from {}", self.kind.plural, self.servers.first_url());
        self.board.report(self.kind.part, State::Waiting(waiting));
        let config =
            watcher::Config { field_selector: self.fields.clone(), ..watcher::Config::default() };
        let mut progress = Progress { listed: None, synced: false, absent: false, failures: 0 };
        loop {
            let server = self.pick(&progress);
            let api: Api<Seen<T>> = Api::all(server.client.clone());
            let mut events = watcher::watcher(api, config.clone()).boxed();
            loop {
                let failing = progress.synced && progress.failures > 0;
                let mut stuck = false;
                let event = tokio::select! {
                    biased;
                    () = self.cancel.cancelled() => return Ok(()),
                    event = events.next() => event,
                    () = tokio::time::sleep(LIST_SILENCE), if progress.listed.is_some() => {
                        stuck = true;
                        Some(Err(silence()))
                    }
                    () = tokio::time::sleep(QUIET), if failing => {
                        self.works(&server, &mut progress);
                        continue;
                    }
                };
                match event {
                    Some(Ok(event)) => {
                        let Some(change) = self.take(event, &server, &mut progress) else {
                            continue;
                        };
                        if self.changes.send(change.into()).await.is_err() {
                            return Ok(());
                        }
                    }
                    Some(Err(error)) if self.does_without(&error, &progress) => {
                        if self.go_without::<T>(&error, &server, &mut progress).await.is_err() {
                            return Ok(());
                        }
                        break;
                    }
                    Some(Err(error)) => {
                        self.failed(&server.url, &error, &mut progress).await;
                        if status_of(&error).is_none() {
                            self.until_reachable(&server, &error, &mut progress).await;
                        }
                        if stuck || !self.pick(&progress).is_same(&server) {
                            break;
                        }
                    }
                    None => break,
                }
            }
        }
    }

    /// The server to use. A connection to one that has answered may end at any time: it is begun
    /// again there before another is asked, who would have to be asked for everything.
    fn pick<T>(&self, progress: &Progress<T>) -> Picked {
        let known = usize::from(progress.synced);
        self.servers.pick(progress.failures.saturating_sub(known))
    }

    /// An event as a change, where it makes one.
    fn take<T: Modelled>(
        &self,
        event: WatchEvent<Seen<T>>,
        server: &Picked,
        progress: &mut Progress<T>,
    ) -> Option<Change> {
        let key = |seen: &Seen<T>| T::Key::from_meta(&seen.meta);
        let value = |seen: &mut Seen<T>| {
            for warning in seen.warnings.drain(..) {
                let name = ObjectKey::from_meta(&seen.meta);
                tracing::warn!(kind = self.kind.plural, object = %name, warning, "field left out");
            }
            seen.value.take()
        };
        let event = match event {
            WatchEvent::Init => {
                progress.listed = Some(Vec::new());
                return None;
            }
            WatchEvent::InitApply(mut seen) => {
                progress.listed.get_or_insert_default().extend(value(&mut seen));
                return None;
            }
            WatchEvent::InitDone => {
                (progress.synced, progress.absent) = (true, false);
                Event::Replace(progress.listed.take().unwrap_or_default())
            }
            // An object of no use to the agent may have been of use before.
            WatchEvent::Apply(mut seen) => {
                value(&mut seen).map_or_else(|| Event::Delete(key(&seen)), Event::Apply)
            }
            WatchEvent::Delete(seen) => Event::Delete(key(&seen)),
        };
        self.works(server, progress);
        Some(T::change(event))
    }

    /// Whether an error means that the cluster has no such kind for the agent.
    fn does_without<T>(&self, error: &watcher::Error, progress: &Progress<T>) -> bool {
        let refused = status_of(error).is_some_and(|status| matches!(status.code, 403 | 404));
        self.kind.optional && refused && (!progress.synced || progress.absent)
    }

    /// Has the kind have no objects, and waits before the API server is asked again: it may be
    /// another one by then.
    async fn go_without<T: Modelled>(
        &self,
        error: &watcher::Error,
        server: &Picked,
        progress: &mut Progress<T>,
    ) -> Result<(), mpsc::error::SendError<Arrived>> {
        if !progress.absent {
            tracing::info!(kind = self.kind.plural, reason = explain(error), "kind not there");
            self.changes.send(T::change(Event::Replace(Vec::new())).into()).await?;
            (progress.synced, progress.absent) = (true, true);
        }
        self.works(server, progress);
        tokio::select! {
            () = self.cancel.cancelled() => {}
            () = tokio::time::sleep(ABSENT_RETRY) => {}
        }
        Ok(())
    }

    fn works<T>(&self, server: &Picked, progress: &mut Progress<T>) {
        progress.failures = 0;
        self.servers.works(server);
        self.staleness.works(self.kind.plural);
        self.board.report(self.kind.part, State::Ready);
    }

    /// Takes note of an error, and waits before the next attempt.
    async fn failed<T>(&self, url: &str, error: &watcher::Error, progress: &mut Progress<T>) {
        progress.failures += 1;
        self.staleness.fails(self.kind.plural, Instant::now());
        tracing::debug!(kind = self.kind.plural, url, error = %innermost(error), "watch failed");
        // A connection that ends once is everyday life: it is begun again, and nobody need know.
        if !progress.synced || progress.failures > 1 {
            self.report(url, error, progress.synced);
        }
        self.servers.look_again().await;
        self.pause(progress.failures).await;
    }

    /// Waits until the server answers anything at all, as long as there is no other to ask.
    async fn until_reachable<T>(
        &self,
        server: &Picked,
        error: &watcher::Error,
        progress: &mut Progress<T>,
    ) {
        while !self.cancel.is_cancelled() && self.pick(progress).is_same(server) {
            let version = server.client.apiserver_version();
            let probe = tokio::time::timeout(PROBE_TIMEOUT, version).await;
            if matches!(probe, Ok(Ok(_) | Err(kube::Error::Api(_)))) {
                return;
            }
            progress.failures += 1;
            self.report(&server.url, error, progress.synced);
            self.servers.look_again().await;
            self.pause(progress.failures).await;
        }
    }

    fn report(&self, url: &str, error: &watcher::Error, synced: bool) {
        let why = format!("{} can't be read from {url}: {}", self.kind.plural, explain(error));
        let state = if synced {
            let text = format!("{why}; what was known stays in force, and it is tried again");
            State::Degraded(text)
        } else {
            State::Waiting(format!("{why}; it is tried again"))
        };
        self.board.report(self.kind.part, state);
    }

    /// The pause after so many failures in a row, at least one.
    async fn pause(&self, failures: usize) {
        let doublings = u32::try_from(failures.clamp(1, 10) - 1).unwrap_or(0);
        let pause = (BACKOFF_MIN * 2u32.pow(doublings)).min(BACKOFF_MAX);
        tokio::select! {
            () = self.cancel.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What the API server answered, where it answered.
fn status_of(error: &watcher::Error) -> Option<&Status> {
    use watcher::Error::{
        InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
    };
    match error {
        WatchError(status)
        | InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => Some(status),
        InitialListFailed(_) | WatchStartFailed(_) | WatchFailed(_) | NoResourceVersion => None,
    }
}

/// A list that does not go on. What was listed of it is forgotten with it.
fn silence() -> watcher::Error {
    let error = io::Error::new(io::ErrorKind::TimedOut, "it does not go on with a list");
    watcher::Error::InitialListFailed(kube::Error::Service(error.into()))
}

/// Cause and remedy.
fn explain(error: &watcher::Error) -> String {
    match status_of(error).map(|status| (status.code, &status.message)) {
        Some((401, message)) => {
            format!("{message} (401): the credentials are not accepted, check --kubeconfig")
        }
        Some((403, message)) => {
            format!("{message} (403): the agent's role must allow list and watch")
        }
        Some((code, message)) => format!("{message} ({code})"),
        None => {
            format!("{}: check that it runs, and --kubeconfig or --api-server", innermost(error))
        }
    }
}

/// The innermost cause of an error; the layers above say no more.
fn innermost(error: &watcher::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
