//! Container runtimes behind the Container Runtime Interface, such as containerd: sandboxes,
//! containers and images are the runtime's, asked for over its socket. Each call is bounded in
//! time; [`watch`] finds out what changes, [`rotate`] bounds logs.
//!
//! Beside it the node part keeps, below its state folder and only for what outlives a container:
//! logs, a pod's `hosts` and `resolv.conf`, and `pods/<namespace>_<name>.json`, by which tools
//! enter a pod. A runtime that is restarted is met again at the next call.

mod call;
mod files;
mod rotate;
mod sub_paths;
mod translate;
mod watch;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use k8s_cri::v1::{
    self as cri, image_service_client::ImageServiceClient,
    runtime_service_client::RuntimeServiceClient,
};
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use self::{
    call::{CallError, bounded, gone_is_done},
    files::Files,
    translate::Places,
    watch::Changes,
};
use super::{
    Abilities, Container, ContainerConfig, ContainerState, ExecError, ExecOutput, Image,
    ImageError, ImageRequest, NetworkState, PullPolicy, Runtime, RuntimeError, Sandbox,
    SandboxConfig, Streaming, termination,
};

/// For how long a runtime that is only starting is waited for.
const START: Duration = Duration::from_mins(1);
/// Between two attempts at reaching it.
const RETRY: Duration = Duration::from_millis(200);
/// How much of an executed command's output is kept.
const OUTPUT_MAX: usize = 4096;

/// Where things are.
#[derive(Clone, Debug)]
pub struct Config {
    /// The runtime's socket, `unix:///run/containerd/containerd.sock`.
    pub endpoint: String,
    /// Folder for logs and the pods' own files.
    pub state_dir: PathBuf,
    /// The node's cgroup2 folder; pods are made below it.
    pub cgroup_root: PathBuf,
    /// Where cgroup2 is mounted: the runtime names cgroups from there.
    pub cgroup_mount: PathBuf,
}

/// The two services of a runtime's socket.
#[derive(Clone, Debug)]
pub(super) struct Client(Channel);

impl Client {
    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.0.clone())
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.0.clone())
    }
}

/// A container runtime.
#[derive(Debug)]
pub struct CriRuntime {
    client: Client,
    version: String,
    /// The cgroup of the node from the root of each hierarchy.
    cgroup: String,
    files: Files,
    network: Receiver<NetworkState>,
    changes: Arc<Changes>,
}

impl CriRuntime {
    /// Waits for the runtime to answer, and watches it until `stop`.
    pub async fn open(config: Config, stop: CancellationToken) -> anyhow::Result<Self> {
        let endpoint = &config.endpoint;
        anyhow::ensure!(
            endpoint.starts_with("unix:///"),
            "--cri-endpoint {endpoint}: a container runtime is reached by unix:///PATH"
        );
        let channel = Endpoint::from_shared(endpoint.clone())
            .with_context(|| format!("--cri-endpoint {endpoint}"))?
            .connect_lazy();
        let client = Client(channel);
        let version = version(&client)
            .await
            .with_context(|| format!("asking the container runtime at {endpoint}"))?;
        let relative = config.cgroup_root.strip_prefix(&config.cgroup_mount);
        let cgroup = match relative {
            Ok(path) => format!("/{}", path.display()),
            Err(_) => anyhow::bail!(
                "the cgroup {} is not below {}",
                config.cgroup_root.display(),
                config.cgroup_mount.display()
            ),
        };
        let files = Files::open(config.state_dir, config.cgroup_root)?;
        let (sender, network) =
            tokio::sync::watch::channel(Err("the container runtime was not asked yet".to_owned()));
        let changes = Arc::new(Changes::default());
        tokio::spawn(watch::follow(client.clone(), Arc::clone(&changes), sender, stop.clone()));
        tokio::spawn(rotate::keep_small(client.clone(), files.logs().to_owned(), stop));
        Ok(Self { client, version, cgroup, files, network, changes })
    }

    fn places(&self) -> Places<'_> {
        Places { cgroup: &self.cgroup, logs: self.files.logs() }
    }

    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatusResponse, CallError> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        bounded(call::LOOK, self.client.runtime().pod_sandbox_status(request)).await
    }

    async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus, CallError> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = bounded(call::LOOK, self.client.runtime().container_status(request)).await?;
        answer.status.ok_or(CallError::Incomplete("status"))
    }

    async fn list_sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<Sandbox>, CallError> {
        let of_pod = |uid: &str| [(translate::POD_UID.to_owned(), uid.to_owned())].into();
        let filter = pod_uid.map(|uid| cri::PodSandboxFilter {
            label_selector: of_pod(uid),
            ..cri::PodSandboxFilter::default()
        });
        let request = cri::ListPodSandboxRequest { filter };
        let listed = bounded(call::LOOK, self.client.runtime().list_pod_sandbox(request)).await?;
        let mut sandboxes = Vec::new();
        for one in listed.items {
            match self.sandbox_status(&one.id).await {
                Ok(answer) => {
                    let status = answer.status.ok_or(CallError::Incomplete("status"))?;
                    sandboxes.push(translate::sandbox_seen(&status));
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        sandboxes.sort_by_key(|sandbox| (sandbox.created_at, sandbox.attempt));
        Ok(sandboxes)
    }

    async fn list_containers(&self, sandbox: &str) -> Result<Vec<Container>, CallError> {
        let filter = cri::ContainerFilter {
            pod_sandbox_id: sandbox.to_owned(),
            ..cri::ContainerFilter::default()
        };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let listed = bounded(call::LOOK, self.client.runtime().list_containers(request)).await?;
        let mut containers = Vec::new();
        for one in listed.containers {
            match self.container_status(&one.id).await {
                Ok(status) => containers.push(self.seen(sandbox, &status)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(containers)
    }

    /// A container of the runtime's, with what it said of its end.
    fn seen(&self, sandbox: &str, status: &cri::ContainerStatus) -> Container {
        let mut container = translate::container_seen(sandbox, status);
        if let ContainerState::Exited { message, .. } = &mut container.state {
            let path = self.files.termination(sandbox, &container.name, container.attempt);
            let log = Path::new(&status.log_path);
            let log = translate::may_be_told_by_log(status).then_some(log);
            *message = match (message.take(), termination::message(&path, log)) {
                (Some(of_runtime), Some(own)) => Some(format!("{of_runtime}: {own}")),
                (of_runtime, own) => of_runtime.or(own),
            };
        }
        container
    }

    async fn run(&self, config: &SandboxConfig) -> Result<Sandbox, anyhow::Error> {
        std::fs::create_dir_all(self.places().logs_of(&config.pod))
            .context("making the folder of the logs")?;
        let sandbox = translate::sandbox(config, self.places());
        let request =
            cri::RunPodSandboxRequest { config: Some(sandbox), runtime_handler: String::new() };
        let made = bounded(call::SANDBOX, self.client.runtime().run_pod_sandbox(request)).await?;
        let answer = self.sandbox_status(&made.pod_sandbox_id).await?;
        let status = answer.status.as_ref().ok_or(CallError::Incomplete("status"))?;
        let seen = translate::sandbox_seen(status);
        let pid = files::pid_of(&answer.info).ok_or(CallError::Incomplete("process id"))?;
        self.files.publish(&seen, pid, &config.resolv_conf)?;
        Ok(seen)
    }

    async fn create(&self, sandbox: &str, config: &ContainerConfig) -> anyhow::Result<String> {
        let mounts = self.files.sub_paths().bind(sandbox, config)?;
        // Made already, by an attempt that did not come to starting it.
        let same = |one: &&Container| one.name == config.name && one.attempt == config.attempt;
        if let Some(made) = self.list_containers(sandbox).await?.iter().find(same) {
            return Ok(made.id.clone());
        }
        let status = self.sandbox_status(sandbox).await?.status;
        let status = status.ok_or(CallError::Incomplete("status"))?;
        let sandbox_config = translate::sandbox_again(&status, self.places());
        let pod = translate::sandbox_seen(&status).pod;
        let logs = self.places().logs_of(&pod).join(&config.name);
        std::fs::create_dir_all(logs).context("making the folder of the logs")?;
        let hosts = self.files.write_hosts(sandbox, &config.hosts)?;
        let security = sandbox_config.linux.as_ref().and_then(|one| one.security_context.as_ref());
        let namespaces = security.and_then(|security| security.namespace_options.clone());
        let termination = self.files.termination(sandbox, &config.name, config.attempt);
        termination::make(&termination)?;
        let own = translate::OwnFiles { hosts: &hosts, termination: &termination };
        let config = ContainerConfig { mounts, ..config.clone() };
        let container = translate::container(&config, &pod, namespaces, own);
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(container),
            sandbox_config: Some(sandbox_config),
        };
        let made = bounded(call::WORK, self.client.runtime().create_container(request)).await?;
        Ok(made.container_id)
    }

    /// A container that was started or removed needs the places of its parts of volumes no more.
    fn release_sub_paths(&self, sandbox: &str, status: Option<cri::ContainerStatus>) {
        let Some(cri::ContainerMetadata { name, attempt }) = status.and_then(|one| one.metadata)
        else {
            return;
        };
        if let Err(error) = self.files.sub_paths().release(sandbox, &name, attempt) {
            // They go with the sandbox, at the latest.
            tracing::warn!(sandbox, name, error = format!("{error:#}"), "let go of sub-paths");
        }
    }

    async fn stop(&self, id: &str) -> Result<(), CallError> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_done(bounded(call::SANDBOX, self.client.runtime().stop_pod_sandbox(request)).await)
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, CallError> {
        let image = cri::ImageSpec { image: reference.to_owned(), ..cri::ImageSpec::default() };
        let request = cri::ImageStatusRequest { image: Some(image), verbose: false };
        let answer = bounded(call::LOOK, self.client.images().image_status(request)).await?;
        Ok(answer.image.map(translate::image_seen))
    }

    async fn pull(&self, request: &ImageRequest) -> Result<Image, String> {
        let reference = &request.reference;
        let there = self.image(reference).await.map_err(|error| error.to_string())?;
        match (there, request.pull) {
            (Some(image), PullPolicy::IfNotPresent | PullPolicy::Never) => return Ok(image),
            (None, PullPolicy::Never) => {
                return Err(format!(
                    "Container image {reference:?} is not present with pull policy of Never"
                ));
            }
            _ => {}
        }
        let image = cri::ImageSpec { image: reference.clone(), ..cri::ImageSpec::default() };
        let pull = cri::PullImageRequest { image: Some(image), ..cri::PullImageRequest::default() };
        let pulled = bounded(call::PULL, self.client.images().pull_image(pull)).await;
        let id = pulled.map_err(|error| error.to_string())?.image_ref;
        let pulled = self.image(&id).await.map_err(|error| error.to_string())?;
        let lost = || format!("{reference:?} was pulled, and is not there any more");
        pulled.map(|image| Image { id, ..image }).ok_or_else(lost)
    }
}

/// `name://version` of the runtime, as soon as it answers.
async fn version(client: &Client) -> Result<String, CallError> {
    let begun = tokio::time::Instant::now();
    loop {
        let request = cri::VersionRequest { version: "v1".to_owned() };
        match bounded(call::LOOK, client.runtime().version(request)).await {
            Ok(answer) => {
                return Ok(format!("{}://{}", answer.runtime_name, answer.runtime_version));
            }
            Err(error) if begun.elapsed() > START => return Err(error),
            Err(_not_yet) => tokio::time::sleep(RETRY).await,
        }
    }
}

impl Runtime for CriRuntime {
    fn version(&self) -> String {
        self.version.clone()
    }

    fn abilities(&self) -> Abilities {
        Abilities::ALL
    }

    fn network(&self) -> Receiver<NetworkState> {
        self.network.clone()
    }

    async fn pull_image(&self, request: &ImageRequest) -> Result<Image, ImageError> {
        self.pull(request).await.map_err(|message| ImageError { message })
    }

    async fn sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<Sandbox>, RuntimeError> {
        self.list_sandboxes(pod_uid).await.map_err(|error| error.of("listing", "sandboxes"))
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<Sandbox, RuntimeError> {
        let outcome = self.run(config).await;
        self.changes.look();
        outcome.map_err(failed("running the sandbox of", &config.pod.name))
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let outcome = self.stop(id).await;
        self.changes.look();
        outcome.map_err(|error| error.of("stopping", id))?;
        self.files.withdraw(id).map_err(failed("withdrawing", id))
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let known = match self.sandbox_status(id).await {
            Ok(answer) => answer.status.map(|status| translate::sandbox_seen(&status)),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.of("removing", id)),
        };
        self.stop_sandbox(id).await?;
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let removed =
            bounded(call::SANDBOX, self.client.runtime().remove_pod_sandbox(request)).await;
        gone_is_done(removed).map_err(|error| error.of("removing", id))?;
        let logs = known.map(|sandbox| self.places().logs_of(&sandbox.pod));
        self.files.remove(id, logs.as_deref()).map_err(failed("removing the files of", id))?;
        self.changes.forget(id);
        self.changes.look();
        Ok(())
    }

    fn changes(&self, sandbox: &str) -> Option<Receiver<u64>> {
        Some(self.changes.of(sandbox))
    }

    async fn containers(&self, sandbox: &str) -> Result<Vec<Container>, RuntimeError> {
        let listed = self.list_containers(sandbox).await;
        listed.map_err(|error| error.of("listing the containers of", sandbox))
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
    ) -> Result<String, RuntimeError> {
        Box::pin(self.create(sandbox, config)).await.map_err(failed("creating", &config.name))
    }

    async fn start_container(&self, sandbox: &str, id: &str) -> Result<(), RuntimeError> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        let started = bounded(call::WORK, self.client.runtime().start_container(request)).await;
        self.changes.look();
        let status = self.container_status(id).await;
        // A program that cannot be started is a container that has exited, and one that runs
        // already was started by an attempt before this.
        let created = i32::from(cri::ContainerState::ContainerCreated);
        if status.as_ref().is_ok_and(|status| status.state != created) {
            self.release_sub_paths(sandbox, status.ok());
            return Ok(());
        }
        started.map(drop).map_err(|error| error.of("starting", id))
    }

    async fn stop_container(
        &self,
        _sandbox: &str,
        id: &str,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
        let limit = grace.saturating_add(call::KILL);
        let stopped = bounded(limit, self.client.runtime().stop_container(request)).await;
        self.changes.look();
        gone_is_done(stopped).map_err(|error| error.of("stopping", id))
    }

    async fn remove_container(&self, sandbox: &str, id: &str) -> Result<(), RuntimeError> {
        let known = self.container_status(id).await.ok();
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        let removed = bounded(call::WORK, self.client.runtime().remove_container(request)).await;
        gone_is_done(removed).map_err(|error| error.of("removing", id))?;
        self.release_sub_paths(sandbox, known.clone());
        if let Some(status) = known {
            let metadata = status.metadata.unwrap_or_default();
            let termination = self.files.termination(sandbox, &metadata.name, metadata.attempt);
            for path in [Path::new(&status.log_path), &termination] {
                // What is left of them goes with the pod.
                let _gone_already = std::fs::remove_file(path);
            }
        }
        Ok(())
    }

    async fn exec(
        &self,
        _sandbox: &str,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, ExecError> {
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            // Whole seconds, and none is for ever.
            timeout: i64::try_from(timeout.as_secs().max(1)).unwrap_or(i64::MAX),
        };
        let limit = timeout.saturating_add(call::LOOK);
        let answer = bounded(limit, self.client.runtime().exec_sync(request)).await;
        let answer = answer.map_err(|error| {
            if error.is_deadline() {
                return ExecError::TimedOut(timeout);
            }
            error.of("executing in", id).into()
        })?;
        let mut output = answer.stdout;
        output.extend_from_slice(&answer.stderr);
        output.truncate(OUTPUT_MAX);
        let output = String::from_utf8_lossy(&output).into_owned();
        Ok(ExecOutput { exit_code: answer.exit_code, output })
    }

    async fn exec_url(
        &self,
        id: &str,
        command: &[String],
        streaming: Streaming,
    ) -> Result<Option<String>, RuntimeError> {
        let request = cri::ExecRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            tty: streaming.tty,
            stdin: streaming.stdin,
            stdout: streaming.stdout,
            stderr: streaming.stderr,
        };
        let answer = bounded(call::LOOK, self.client.runtime().exec(request)).await;
        answer.map(|answer| Some(answer.url)).map_err(|error| error.of("executing in", id))
    }
}

/// For `map_err`: says what was tried with which object.
fn failed(
    operation: &'static str,
    object: &str,
) -> impl FnOnce(anyhow::Error) -> RuntimeError + use<> {
    let object = object.to_owned();
    move |source| RuntimeError { operation, object, source: source.into() }
}
