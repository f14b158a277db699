//! Drives a controller: takes keys from its queue, has them looked at, performs the writes.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::interpreter::{Interpreter, WriteError};
use super::queue::Queue;
use super::write::Outcome;

/// The longest that a look may take; only those take time that have to ask the API server.
const LOOK_TIME: Duration = Duration::from_secs(30);

/// Why a look at a key came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    /// The API server did not answer in time.
    #[error("no answer after {LOOK_TIME:?}")]
    NoAnswer,
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
            let work = work_on(&*controller, &queue, &interpreter, &failures, &key);
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                // One object that we have no answer to must not stop the others.
                let wait = queue.failed(&key);
                tracing::error!(controller = C::NAME, ?key, ?wait, "controller panicked");
            }
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
    let look = timeout(LOOK_TIME, controller.look(key, failure.as_ref()));
    let outcome = match look.await.unwrap_or(Err(LookError::NoAnswer)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    use crate::controllers::world::World;

    /// Panics at the first look at a key that is odd, and counts the looks.
    #[derive(Default)]
    struct Clumsy {
        looks: AtomicU32,
    }

    impl Controller for Clumsy {
        type Key = u32;
        const NAME: &'static str = "clumsy";
        const WORKERS: usize = 1;

        async fn look(&self, key: &u32, _: Option<&Failure>) -> Result<Outcome, LookError> {
            let looks = self.looks.fetch_add(1, Ordering::SeqCst);
            assert!(key.is_multiple_of(2) || looks > 0, "the first look");
            Ok(Outcome::default())
        }
    }

    #[tokio::test]
    async fn a_panic_costs_one_look_and_no_worker() {
        let controller = Arc::new(Clumsy::default());
        let queue = Arc::new(Queue::default());
        queue.add(1);
        queue.add(2);
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        let interpreter = Interpreter::new(client, Arc::new(World::default()));
        let cancel = CancellationToken::new();
        let driver =
            tokio::spawn(drive(Arc::clone(&controller), queue, interpreter, cancel.clone()));
        // 1 panics, 2 is looked at, 1 comes back.
        while controller.looks.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
        driver.await.unwrap();
    }
}
