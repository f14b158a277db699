//! Containers of the process runtime, and [`Runtime`] for it: what is on disk about a container
//! together with what the sandbox's init says of its process.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

use super::{
    super::{
        Container, ContainerConfig, ContainerState, ExecOutput, ImageError, ImageRequest,
        NetworkState, Runtime, RuntimeError, Sandbox, SandboxConfig, Streaming,
    },
    ProcessRuntime, failed,
    live::{InitError, Live, View},
    lost,
    record::{self, ContainerRecord, Record},
    wire::{Process, Program, Reply, Request, Start},
};
use crate::node::{
    image,
    pod::observed::{LOST_EXIT_CODE, STATUS_UNKNOWN},
};

/// Bytes of a container's log before it is moved away; twice that is kept.
const LOG_MAX: u64 = 10 << 20;
/// For how long a killed process may take to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// For how long what init did may stay unseen.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Where programs are looked for, unless the pod says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Runtime for ProcessRuntime {
    fn version(&self) -> String {
        format!("mizzen-process://{}", env!("CARGO_PKG_VERSION"))
    }

    fn isolates(&self) -> bool {
        false
    }

    fn network(&self) -> watch::Receiver<NetworkState> {
        self.network.clone()
    }

    async fn pull_image(&self, request: &ImageRequest) -> Result<String, ImageError> {
        match image::find(&request.reference) {
            Some(image) => Ok(format!("mizzen-process://{}", image.name)),
            None if request.has_command => Ok("mizzen-process://host".to_owned()),
            None => Err(ImageError {
                message: format!(
                    "the process runtime pulls no images: {:?} is not one of its own ({}); \
                     give the container a command to run from the machine, or use one of these",
                    request.reference,
                    image::names()
                ),
            }),
        }
    }

    async fn sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<Sandbox>, RuntimeError> {
        Ok(self.list(pod_uid))
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<Sandbox, RuntimeError> {
        self.run(config).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.stop(id).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.remove(id).await
    }

    fn changes(&self, sandbox: &str) -> Option<watch::Receiver<u64>> {
        self.live(sandbox).map(|live| live.changes())
    }

    async fn containers(&self, sandbox: &str) -> Result<Vec<Container>, RuntimeError> {
        let view = match self.live(sandbox) {
            Some(live) => {
                live.heard().await;
                live.view().borrow().clone()
            }
            None => View { ended_at: Some(Timestamp::UNIX_EPOCH), ..View::default() },
        };
        let records = ContainerRecord::load_all(&self.dir(sandbox));
        Ok(records.iter().map(|record| describe(sandbox, record, &view)).collect())
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
    ) -> Result<String, RuntimeError> {
        let id = ContainerRecord::id(sandbox, &config.name, config.attempt);
        let record = ContainerRecord {
            id: id.clone(),
            created_at: Timestamp::now(),
            config: config.clone(),
        };
        record.save(&self.dir(sandbox)).map_err(failed("creating", &id))?;
        Ok(id)
    }

    async fn start_container(&self, sandbox: &str, id: &str) -> Result<(), RuntimeError> {
        let entry = self.entry(sandbox).ok_or_else(|| lost("starting", id))?;
        let live = entry.live.ok_or_else(|| lost("starting", id))?;
        let sandbox_record = entry.record;
        let container = self.container(sandbox, id, "starting")?;
        let folder = sandbox_record.logs.join(&container.config.name);
        record::create_dir(&folder).map_err(failed("making the log folder of", id))?;
        let start = Start {
            container: id.to_owned(),
            program: self.program(&sandbox_record, &container.config),
            log: folder.join(format!("{}.log", container.config.attempt)),
            log_max: LOG_MAX,
        };
        live.ask(&Request::Start(start)).await.map_err(failed("starting", id))?;
        // What is listed from now on must show it.
        let mut view = live.view();
        let shown = view.wait_for(|view| view.ended_at.is_some() || process(view, id).is_some());
        let _shown_or_late = tokio::time::timeout(SHOWN_TIMEOUT, shown).await;
        Ok(())
    }

    async fn stop_container(
        &self,
        sandbox: &str,
        id: &str,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let Some(live) = self.live(sandbox) else { return Ok(()) };
        let signal = |signal| {
            let request = Request::Signal { container: id.to_owned(), signal };
            let live = &live;
            async move { live.ask(&request).await.map_err(failed("signalling", id)) }
        };
        if !grace.is_zero() {
            signal(libc::SIGTERM).await?;
            if ended(&live, id, grace).await {
                return Ok(());
            }
        }
        signal(libc::SIGKILL).await?;
        if ended(&live, id, KILL_TIMEOUT).await {
            return Ok(());
        }
        Err(failed("killing", id)("it did not end; it hangs in the kernel, or its init does"))
    }

    async fn remove_container(&self, sandbox: &str, id: &str) -> Result<(), RuntimeError> {
        if let Some(live) = self.live(sandbox)
            && live.alive()
        {
            let request = Request::Forget { container: id.to_owned() };
            live.ask(&request).await.map_err(failed("forgetting", id))?;
        }
        ContainerRecord::remove(&self.dir(sandbox), id).map_err(failed("removing", id))
    }

    async fn exec(
        &self,
        sandbox: &str,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let live = self.live(sandbox).ok_or_else(|| lost("executing in", id))?;
        let sandbox_record =
            Record::load(&self.dir(sandbox)).map_err(failed("executing in", id))?;
        let container = self.container(sandbox, id, "executing in")?;
        let mut program = self.program(&sandbox_record, &container.config);
        program.argv = command.to_vec();
        match live.ask_within(&Request::Exec(program), timeout).await {
            Ok(Reply::Executed { exit_code, output }) => Ok(ExecOutput { exit_code, output }),
            Ok(other) => Err(failed("executing in", id)(format!("unexpected answer {other:?}"))),
            Err(InitError::Timeout) => {
                let message = format!("the command took longer than {} s", timeout.as_secs());
                Err(failed("executing in", id)(message))
            }
            Err(error) => Err(failed("executing in", id)(error)),
        }
    }

    async fn exec_url(
        &self,
        _id: &str,
        _command: &[String],
        _streaming: Streaming,
    ) -> Result<Option<String>, RuntimeError> {
        Ok(None)
    }
}

impl ProcessRuntime {
    fn container(
        &self,
        sandbox: &str,
        id: &str,
        operation: &'static str,
    ) -> Result<ContainerRecord, RuntimeError> {
        ContainerRecord::load_all(&self.dir(sandbox))
            .into_iter()
            .find(|record| record.id == id)
            .ok_or_else(|| failed(operation, id)("there is no such container"))
    }

    /// What init has to run for a container.
    fn program(&self, sandbox: &Record, config: &ContainerConfig) -> Program {
        let mut argv = config.command.clone();
        if argv.is_empty() {
            let name = image::find(&config.image).map_or("", |image| image.name);
            let program = self.config.program.display().to_string();
            argv = vec![program, "image".to_owned(), name.to_owned()];
        }
        argv.extend(config.args.iter().cloned());
        let mut env = vec![("PATH".to_owned(), PATH.to_owned())];
        env.extend(sandbox.hostname.iter().map(|name| ("HOSTNAME".to_owned(), name.clone())));
        env.extend(config.env.iter().cloned());
        Program {
            cgroup: format!("{}.{}", config.name, config.attempt),
            argv,
            env,
            cwd: config.working_dir.clone().unwrap_or_else(|| "/".to_owned()),
            uid: config.run_as_user,
            gid: config.run_as_group,
        }
    }
}

/// Waits until the container's process has ended; false when `limit` is over before.
async fn ended(live: &Live, id: &str, limit: Duration) -> bool {
    let mut view = live.view();
    let over = |view: &View| {
        view.ended_at.is_some() || process(view, id).is_none_or(|process| process.exit.is_some())
    };
    tokio::time::timeout(limit, view.wait_for(over)).await.is_ok()
}

fn process<'a>(view: &'a View, id: &str) -> Option<&'a Process> {
    view.processes.iter().flatten().find(|process| process.container == id)
}

fn describe(sandbox: &str, record: &ContainerRecord, view: &View) -> Container {
    let state = match (process(view, &record.id), view.ended_at) {
        (Some(Process { started_at, exit: Some(exit), .. }), _) => ContainerState::Exited {
            started_at: *started_at,
            finished_at: exit.at,
            exit_code: exit.code,
            reason: exit.start_error.as_ref().map(|_| "StartError".to_owned()),
            message: exit.start_error.clone(),
        },
        (Some(process), None) => ContainerState::Running { started_at: process.started_at },
        (None, None) => ContainerState::Created,
        (process, Some(ended_at)) => ContainerState::Exited {
            started_at: process.map_or(record.created_at, |process| process.started_at),
            finished_at: ended_at.max(record.created_at),
            exit_code: LOST_EXIT_CODE,
            reason: Some(STATUS_UNKNOWN.to_owned()),
            message: Some("the sandbox ended before the container did".to_owned()),
        },
    };
    Container {
        id: record.id.clone(),
        sandbox: sandbox.to_owned(),
        name: record.config.name.clone(),
        attempt: record.config.attempt,
        image: record.config.image.clone(),
        backoff: record.config.backoff,
        state,
    }
}
