//! The tasks of the agent: each has a name and belongs to a stage; stages stop one after another.
//!
//! A task ends when its stage is cancelled. One that ends before that, or panics, takes the agent
//! down in the same order: a half-alive agent would hide its trouble. The datapath stays attached
//! in any case.

use std::{collections::HashMap, future::Future, io, thread, time::Duration};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    task::{Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::slice;

/// How long the tasks of a stage may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a task ended.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

/// The tasks of one stage.
#[derive(Debug)]
pub struct Tasks {
    stage: &'static str,
    token: CancellationToken,
    set: JoinSet<Result<(), TaskError>>,
    names: HashMap<Id, &'static str>,
}

/// A task that ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("task {task} ended")]
pub struct TaskEnded {
    /// Its name.
    pub task: &'static str,
    /// Why.
    #[source]
    pub source: TaskError,
}

impl Tasks {
    /// A stage without tasks.
    pub fn new(stage: &'static str) -> Self {
        let (token, set) = (CancellationToken::new(), JoinSet::new());
        Self { stage, token, set, names: HashMap::new() }
    }

    /// Cancelled when the stage is to stop.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task that runs until [`Tasks::token`] is cancelled.
    pub fn spawn<F, E>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<TaskError>,
    {
        let handle = self.set.spawn(async move { task.await.map_err(Into::into) });
        self.names.insert(handle.id(), name);
    }

    /// Starts a task as [`Tasks::spawn`] does, on a thread.
    pub fn spawn_on<F, E>(&mut self, thread: &Thread, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<TaskError>,
    {
        thread.enter(|| self.spawn(name, task));
    }

    /// The next task that ends; never where there is none.
    async fn ended(&mut self) -> TaskEnded {
        match self.set.join_next_with_id().await {
            Some(end) => self.describe(end),
            None => std::future::pending().await,
        }
    }

    fn describe(&self, end: Result<(Id, Result<(), TaskError>), JoinError>) -> TaskEnded {
        let (id, source) = match end {
            Ok((id, Ok(()))) => (id, "it had nothing left to do".into()),
            Ok((id, Err(error))) => (id, error),
            Err(error) => (error.id(), error.into()),
        };
        TaskEnded { task: self.names.get(&id).copied().unwrap_or("unnamed"), source }
    }

    /// Cancels the stage and waits for its tasks; those that don't end in time are aborted.
    async fn stop(mut self) {
        self.token.cancel();
        let drain = async {
            while let Some(end) = self.set.join_next_with_id().await {
                if !matches!(end, Ok((_, Ok(())))) {
                    let TaskEnded { task, source } = self.describe(end);
                    tracing::warn!(stage = self.stage, task, error = %source, "task failed to stop");
                }
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, drain).await.is_err() {
            let left = self.set.len();
            tracing::warn!(stage = self.stage, left, "tasks did not stop in time, aborted");
            self.set.abort_all();
        }
    }
}

/// A thread with a runtime of its own, for tasks that have work for each other all the time: to make
/// another thread go on with what this one found costs more than most of that work. What comes in
/// bursts would hold up the agent's other threads, so that it gives way to them. It ends when it is
/// dropped, whatever its tasks do.
#[derive(Debug)]
pub struct Thread {
    handle: Handle,
    _ends: oneshot::Sender<()>,
}

impl Thread {
    /// Starts one, without tasks.
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (ends, ended) = oneshot::channel::<()>();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Err(error) = slice::give_way() {
                tracing::debug!(%error, "what this thread does may hold up others");
            }
            let _dropped = runtime.block_on(ended);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _ends: ends })
    }

    /// Calls something that starts tasks by itself, and has it start them here.
    pub fn enter<T>(&self, call: impl FnOnce() -> T) -> T {
        let _entered = self.handle.enter();
        call()
    }
}

/// Runs stages until `stop` is done or a task ends, then stops them in the order given.
pub async fn supervise(
    mut stages: Vec<Tasks>,
    stop: impl Future<Output = ()>,
) -> Result<(), TaskEnded> {
    let failure = {
        let ends = stages.iter_mut().map(|stage| Box::pin(stage.ended()));
        tokio::select! {
            () = stop => None,
            (ended, ..) = futures::future::select_all(ends) => Some(ended),
        }
    };
    for stage in stages {
        tracing::debug!(stage = stage.stage, "stopping");
        stage.stop().await;
    }
    failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn stage(name: &'static str, log: &Arc<Mutex<Vec<&'static str>>>) -> Tasks {
        let mut tasks = Tasks::new(name);
        let (token, log) = (tasks.token(), log.clone());
        tasks.spawn(name, async move {
            token.cancelled().await;
            tokio::task::yield_now().await;
            log.lock().unwrap().push(name);
            Ok::<(), TaskError>(())
        });
        tasks
    }

    #[tokio::test]
    async fn stages_stop_in_order() {
        let log = Arc::default();
        let stages = vec![stage("intake", &log), stage("apply", &log), stage("serve", &log)];
        supervise(stages, async {}).await.unwrap();
        assert_eq!(*log.lock().unwrap(), ["intake", "apply", "serve"]);
    }

    #[tokio::test]
    async fn tasks_of_a_thread_run_there_and_end_with_their_stage() {
        let thread = Thread::start("a-thread").unwrap();
        let mut tasks = Tasks::new("intake");
        let (token, (tell, told)) = (tasks.token(), oneshot::channel());
        tasks.spawn_on(&thread, "watch", async move {
            tell.send((thread::current().name().map(str::to_owned), slice::niceness())).unwrap();
            token.cancelled().await;
            Ok::<(), TaskError>(())
        });
        let stop = async {
            let (name, niceness) = told.await.unwrap();
            assert_eq!(name.as_deref(), Some("a-thread"));
            assert!(niceness > 0, "it gives way to the agent's other threads");
        };
        supervise(vec![tasks], stop).await.unwrap();
    }

    #[tokio::test]
    async fn a_task_that_panics_on_a_thread_is_named_too() {
        let thread = Thread::start("a-thread").unwrap();
        let mut tasks = Tasks::new("intake");
        tasks.spawn_on::<_, TaskError>(&thread, "watch", async { panic!("gone") });
        let ended = supervise(vec![tasks], std::future::pending()).await.unwrap_err();
        assert_eq!(ended.task, "watch");
        assert!(ended.source.to_string().contains("panic"), "{}", ended.source);
    }

    #[tokio::test]
    async fn a_task_that_ends_by_itself_is_named_and_ends_the_rest() {
        let log = Arc::default();
        let mut failing = Tasks::new("apply");
        failing.spawn("reconcile", async { Err::<(), TaskError>("no bpf".into()) });
        let stages = vec![stage("intake", &log), failing];
        let ended = supervise(stages, std::future::pending()).await.unwrap_err();
        assert_eq!((ended.task, ended.source.to_string().as_str()), ("reconcile", "no bpf"));
        assert_eq!(*log.lock().unwrap(), ["intake"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ignores_the_token_does_not_hold_up_the_end() {
        let mut tasks = Tasks::new("stubborn");
        tasks.spawn("stubborn", std::future::pending::<Result<(), TaskError>>());
        supervise(vec![tasks], async {}).await.unwrap();
    }
}
