//! Containers of the process runtime, and [`Runtime`] for it: what is on disk about a container
//! together with what the sandbox's init says of its process.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

use super::{
    super::{
        Abilities, Container, ContainerConfig, ContainerState, ExecError, ExecOutput, Image,
        ImageError, ImageRequest, ImageUser, Mount, NetworkState, Runtime, RuntimeError, Sandbox,
        SandboxConfig, Seccomp, Streaming, termination,
    },
    Entry, ProcessRuntime,
    capabilities::{self, UnknownCapability},
    failed,
    live::{InitError, Live, View},
    lost, machine,
    record::{self, ContainerRecord, Record, RecordError},
    rootfs::{self, Surroundings},
    wire::{Confinement, Process, Program, Reply, Request, Root, Start},
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
/// Why a container ended, in the kubelet's word.
const OUT_OF_MEMORY: &str = "OOMKilled";
/// Where programs are looked for, unless the pod says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Runtime for ProcessRuntime {
    fn version(&self) -> String {
        format!("mizzen-process://{}", env!("CARGO_PKG_VERSION"))
    }

    fn abilities(&self) -> Abilities {
        let (cpu, memory) = (self.controllers.cpu(), self.controllers.memory());
        Abilities { everything: false, cpu, memory }
    }

    fn network(&self) -> watch::Receiver<NetworkState> {
        self.network.clone()
    }

    async fn pull_image(&self, request: &ImageRequest) -> Result<Image, ImageError> {
        let named =
            |name: &str| Image { id: format!("mizzen-process://{name}"), user: ImageUser::Id(0) };
        match image::find(&request.reference) {
            Some(image) => Ok(named(image.name)),
            None if request.has_command => Ok(named("host")),
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
        let seen = records.iter().map(|record| {
            let mut container = describe(sandbox, record, &view);
            self.say_why(record, &mut container);
            container
        });
        Ok(seen.collect())
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
        let dir = self.dir(sandbox);
        make_sources(&config.mounts).map_err(failed("creating", &id))?;
        termination::make(&record::termination(&dir, &id)).map_err(failed("creating", &id))?;
        record.save(&dir).map_err(failed("creating", &id))?;
        Ok(id)
    }

    async fn start_container(&self, sandbox: &str, id: &str) -> Result<(), RuntimeError> {
        let entry = self.entry(sandbox).ok_or_else(|| lost("starting", id))?;
        let live = entry.live.ok_or_else(|| lost("starting", id))?;
        let sandbox_record = entry.record;
        let container = self.container(sandbox, id, "starting")?;
        let folder = sandbox_record.logs.join(&container.config.name);
        record::create_dir(&folder).map_err(failed("making the log folder of", id))?;
        let layers = record::layers(&self.dir(sandbox), id);
        record::create_dir(&layers).map_err(failed("making the root of", id))?;
        let start = self.start(&sandbox_record, &container).map_err(failed("starting", id))?;
        live.ask(&Request::Start(Box::new(start))).await.map_err(failed("starting", id))?;
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
        let dir = self.dir(sandbox);
        if let (Some(entry), Ok(record)) =
            (self.entry(sandbox), self.container(sandbox, id, "removing"))
        {
            let name = cgroup_name(&record.config);
            self.controllers.forget(&entry.record.pod.uid, &name);
        }
        remove_folder(record::layers(&dir, id)).await.map_err(failed("removing", id))?;
        record::remove_file(&record::termination(&dir, id)).map_err(failed("removing", id))?;
        // Last, so that what is left after a crash is found again.
        ContainerRecord::remove(&dir, id).map_err(failed("removing", id))
    }

    async fn exec(
        &self,
        sandbox: &str,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, ExecError> {
        let live = self.live(sandbox).ok_or_else(|| lost("executing in", id))?;
        let sandbox_record =
            Record::load(&self.dir(sandbox)).map_err(failed("executing in", id))?;
        let container = self.container(sandbox, id, "executing in")?;
        let program = self.program(&sandbox_record, &container);
        let mut program = program.map_err(failed("executing in", id))?;
        program.argv = command.to_vec();
        match live.ask_within(&Request::Exec(Box::new(program)), timeout).await {
            Ok(Reply::Executed { exit_code, output }) => Ok(ExecOutput { exit_code, output }),
            Ok(other) => {
                Err(failed("executing in", id)(format!("unexpected answer {other:?}")).into())
            }
            Err(InitError::Timeout) => Err(ExecError::TimedOut(timeout)),
            Err(error) => Err(failed("executing in", id)(error).into()),
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

    /// How a container is started.
    fn start(&self, sandbox: &Record, container: &ContainerRecord) -> anyhow::Result<Start> {
        let config = &container.config;
        let dir = self.dir(&sandbox.id);
        let program = self.program(sandbox, container)?;
        self.controllers.limit(
            &sandbox.cgroup,
            &sandbox.pod.uid,
            &program.cgroup,
            config.limits,
        )?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("reading mounts")?;
        let around = Surroundings {
            sandbox,
            dir: &dir,
            machine: &machine::mounts(&mounts),
            hidden: &[self.config.state_dir.clone(), self.config.volume_dir.clone()],
            program: Path::new(program.argv.first().map_or("", String::as_str)),
            termination: &record::termination(&dir, &container.id),
        };
        let steps = rootfs::plan(config, around);
        Ok(Start {
            container: container.id.clone(),
            root: Root { layers: record::layers(&dir, &container.id), steps },
            log: log_of(sandbox, config),
            log_max: LOG_MAX,
            program,
        })
    }

    /// What init has to run for a container.
    fn program(
        &self,
        sandbox: &Record,
        container: &ContainerRecord,
    ) -> Result<Program, UnknownCapability> {
        let config = &container.config;
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
        let cgroup = cgroup_name(config);
        let privileges = &config.privileges;
        let confinement = Confinement {
            cgroups: self.controllers.folders(&sandbox.cgroup, &sandbox.pod.uid, &cgroup),
            oom_score_adj: config.limits.oom_score_adj,
            uid: config.run_as_user.unwrap_or(0),
            gid: config.run_as_group.unwrap_or(0),
            groups: privileges.groups.clone(),
            capabilities: capabilities::of(privileges)?.bits(),
            no_new_privileges: privileges.no_new_privileges,
            seccomp: privileges.seccomp != Seccomp::Unconfined && !privileges.privileged,
        };
        let (container, cwd) = (container.id.clone(), rootfs::cwd(config).to_owned());
        Ok(Program { container, cgroup, argv, env, cwd, confinement })
    }

    /// Adds what a container said of its end, and what the kernel knows of it.
    fn say_why(&self, record: &ContainerRecord, container: &mut Container) {
        let Some(Entry { record: sandbox, .. }) = self.entry(&container.sandbox) else { return };
        let ContainerState::Exited { exit_code, reason, message, .. } = &mut container.state else {
            return;
        };
        let config = &record.config;
        let path = record::termination(&self.dir(&sandbox.id), &record.id);
        let log = log_of(&sandbox, config);
        let may_be_told_by_log = config.termination.or_log && *exit_code != 0;
        let said = termination::message(&path, may_be_told_by_log.then_some(log.as_path()));
        if message.is_none() {
            *message = said;
        }
        let name = cgroup_name(config);
        if *exit_code != 0
            && reason.is_none()
            && self.controllers.ran_out_of_memory(&sandbox.pod.uid, &name)
        {
            *reason = Some(OUT_OF_MEMORY.to_owned());
        }
    }
}

/// Name of a container's cgroup below its pod's.
fn cgroup_name(config: &ContainerConfig) -> String {
    format!("{}.{}", config.name, config.attempt)
}

fn log_of(sandbox: &Record, config: &ContainerConfig) -> PathBuf {
    sandbox.logs.join(&config.name).join(format!("{}.log", config.attempt))
}

/// A path of the node that is mounted and not there becomes a folder, as with container runtimes.
fn make_sources(mounts: &[Mount]) -> Result<(), RecordError> {
    // Parts of volumes were made with them.
    let whole = |mount: &&Mount| {
        mount.volume_path.as_os_str().is_empty() || mount.volume_path == mount.host_path
    };
    for path in mounts.iter().filter(whole).map(|mount| &mount.host_path) {
        if path.exists() {
            continue;
        }
        std::fs::create_dir_all(path).map_err(RecordError::of("making the folder", path))?;
    }
    Ok(())
}

/// Removes a folder, however much is in it; success where it is not there.
async fn remove_folder(path: PathBuf) -> Result<(), RecordError> {
    match tokio::fs::remove_dir_all(&path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RecordError::of("removing", &path)(error))
        }
        _ => Ok(()),
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
