//! Drives a controller: takes keys from its queue, has them looked at, performs the writes.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::interpreter::{Interpreter, WriteError};
use super::queue::Queue;
use super::write::Outcome;

/// Why a look at a key came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    /// The API server could not tell what a controller has to know before it decides.
    #[error("{what} could not be read: {source}")]
    Read {
        /// What was asked for.
        what: String,
        /// Why there is no answer.
        source: Box<kube::Error>,
    },
}

/// The last write for a key that failed, as far as a controller shows it in a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// `create`, `update`, `patch` or `delete`.
    pub(crate) verb: &'static str,
    /// Whether the name was taken already.
    pub(crate) already_exists: bool,
    /// The error in words.
    pub(crate) message: String,
}

/// A controller: from a key to the writes that are wanted for it.
///
/// Implementations gather what they need from the world and hand it to a pure function; they
/// change nothing themselves.
pub(crate) trait Controller: Send + Sync + 'static {
    /// What the controller's queue holds.
    type Key: Clone + Ord + Hash + Debug + Send + Sync + 'static;
    /// The controller's name in logs.
    const NAME: &'static str;
    /// How many keys may be worked on at a time.
    const WORKERS: usize = 4;

    /// Looks at a key. `failure` is what came of the previous look, if its writes failed.
    fn look(
        &self,
        key: &Self::Key,
        failure: Option<&Failure>,
    ) -> impl Future<Output = Result<Outcome, LookError>> + Send;
}

/// The failures of the last looks, by key.
type Failures<K> = Mutex<HashMap<K, Failure>>;

/// Runs the controller until `cancel`; what is under way then is ended.
pub(crate) async fn drive<C: Controller>(
    controller: Arc<C>,
    queue: Arc<Queue<C::Key>>,
    interpreter: Interpreter,
    cancel: CancellationToken,
) {
    let failures: Arc<Failures<C::Key>> = Arc::default();
    let mut work = JoinSet::new();
    loop {
        while work.len() >= C::WORKERS {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = work.join_next() => {}
            }
        }
        let key = tokio::select! {
            () = cancel.cancelled() => return,
            key = queue.next() => key,
        };
        while work.try_join_next().is_some() {}
        let (controller, queue) = (Arc::clone(&controller), Arc::clone(&queue));
        let (interpreter, failures) = (interpreter.clone(), Arc::clone(&failures));
        work.spawn(async move {
            work_on(&*controller, &queue, &interpreter, &failures, &key).await;
        });
    }
}

async fn work_on<C: Controller>(
    controller: &C,
    queue: &Queue<C::Key>,
    interpreter: &Interpreter,
    failures: &Failures<C::Key>,
    key: &C::Key,
) {
    let failure = failures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    let outcome = match controller.look(key, failure.as_ref()).await {
        Ok(outcome) => outcome,
        Err(error) => {
            let wait = queue.failed(key);
            tracing::debug!(controller = C::NAME, ?key, %error, ?wait, "looking again later");
            return;
        }
    };
    let again_after = outcome.again_after;
    match interpreter.perform(outcome.writes).await {
        Ok(()) => queue.done(key),
        Err(error) => {
            let wait = queue.failed(key);
            if error.is_conflict() {
                tracing::debug!(controller = C::NAME, ?key, %error, ?wait, "looking again");
            } else {
                tracing::warn!(controller = C::NAME, ?key, %error, ?wait, "write failed");
                let failure = told(&error);
                failures
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(key.clone(), failure);
            }
        }
    }
    if let Some(wait) = again_after {
        queue.add_after(key.clone(), wait);
    }
}

fn told(error: &WriteError) -> Failure {
    Failure {
        verb: error.verb(),
        already_exists: error.is_already_exists(),
        message: error.to_string(),
    }
}
