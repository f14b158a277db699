//! The server as its users start it, for one test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::Client;

/// The server.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_mizzen-control-plane");

/// The longest that anything may take to happen.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// A data directory, and what servers in it had to say.
pub(crate) struct Home {
    folder: tempfile::TempDir,
    /// As this process sees the data directory.
    data: PathBuf,
}

impl Home {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        Self { folder, data }
    }

    /// With the data directory at another place.
    pub(crate) fn at(self, data: PathBuf) -> Self {
        Self { data, ..self }
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// What the last server wrote to its standard error.
    pub(crate) fn told(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// A command that runs the server, without controllers, on a free port.
    pub(crate) fn command(&self) -> Command {
        self.command_on(0)
    }

    /// The same on a port that stays what it is from one server to the next.
    pub(crate) fn command_on(&self, port: u16) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--no-controllers", "--data-dir"]).arg(&self.data);
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command
    }

    /// Runs a command that is, or becomes, the server.
    pub(crate) fn spawn(&self, mut command: Command) -> Process {
        let log = File::create(self.folder.path().join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Process(child.spawn().unwrap())
    }

    pub(crate) fn start(&self) -> Process {
        self.spawn(self.command())
    }

    /// A client of the server, once it answers. The kubeconfig may be that of one before it, whose
    /// port is nobody's now, or somebody's whom the certificate says nothing.
    pub(crate) async fn ready(&self, server: &mut Process) -> Client {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(client) = client(&self.data.join("admin.kubeconfig")).await {
                let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
                if client.request_text(request).await.is_ok() {
                    return client;
                }
            }
            if let Some(status) = server.0.try_wait().unwrap() {
                panic!("the server ended ({status}): {}", self.told());
            }
            assert!(Instant::now() < deadline, "the server does not come up: {}", self.told());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A client that tries nothing twice, by a kubeconfig; `None` while there is none.
pub(crate) async fn client(kubeconfig: &Path) -> Option<Client> {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).ok()?;
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(config, &options).await.ok()?;
    config.default_retry = false;
    Client::try_from(config).ok()
}

/// A server process, killed when it is dropped: SIGKILL, nothing gets a chance to flush.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it ended well, if it ended by itself in time.
    pub(crate) fn ended(&mut self) -> Option<bool> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status.success());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Memory in bytes that is its own and in use.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
