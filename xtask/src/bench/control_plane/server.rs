//! Servers on the loopback interface: a control plane, or etcd. They end with their value.

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::load::{Load, text};
use crate::{bench::interrupt, cluster::process};

/// How long a server may take to its first answer.
const START: Duration = Duration::from_secs(30);

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    process: Child,
    /// `--etcd URL` or `--kubeconfig FILE`, for the load.
    pub(super) target: [String; 2],
    /// What it is called.
    pub(super) label: &'static str,
}

impl Server {
    /// An etcd of one member, as Debian has it.
    pub(super) fn etcd(load: &Load) -> Result<Self> {
        let folder = load.folder("etcd")?;
        let (client, peer) = (free()?, free()?);
        let (at, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new("etcd");
        command
            .args(["--name", "one", "--data-dir", text(&folder.join("data"))?])
            .args(["--listen-client-urls", &at, "--advertise-client-urls", &at])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            // All that a run writes has to fit in.
            .args(["--quota-backend-bytes", "8589934592"]);
        let process = spawn(&mut command, &folder)?;
        let mut server = Self { process, target: ["--etcd".into(), at], label: "etcd" };
        server.wait(|| TcpStream::connect((Ipv4Addr::LOCALHOST, client)).is_ok())?;
        Ok(server)
    }

    /// A whole control plane with its store on the disk.
    pub(super) fn control_plane(load: &Load) -> Result<Self> {
        let folder = load.folder("control-plane")?;
        let mut command = Command::new(&load.control_plane);
        command
            .args(["serve", "--data-dir", text(&folder)?, "--listen", "127.0.0.1:0"])
            .env("RUST_LOG", "warn");
        let process = spawn(&mut command, &folder)?;
        let kubeconfig = folder.join("admin.kubeconfig");
        let target = ["--kubeconfig".into(), text(&kubeconfig)?.to_owned()];
        let mut server = Self { process, target, label: "mizzen-control-plane" };
        server.wait(|| kubeconfig.exists())?;
        Ok(server)
    }

    /// Its id.
    pub(super) fn pid(&self) -> i32 {
        self.process.id().cast_signed()
    }

    /// Runs the load on it.
    pub(super) fn loaded(
        &self,
        load: &Load,
        work: &str,
        more: &[&str],
    ) -> Result<crate::load::Measured> {
        let [flag, value] = &self.target;
        let mut arguments = vec![work, flag, value];
        arguments.extend(more);
        load.run(&arguments).with_context(|| self.label)
    }

    /// Megabytes by a field of `/proc/PID/status`.
    #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
    pub(super) fn megabytes(&self, field: &str) -> Result<f64> {
        Ok(process::status_bytes(self.pid(), field)? as f64 / 1e6)
    }

    /// The CPU time that it has used.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        process::cpu_time(self.pid())
    }

    fn wait(&mut self, answers: impl Fn() -> bool) -> Result<()> {
        let began = Instant::now();
        while !answers() {
            interrupt::check()?;
            if let Some(status) = self.process.try_wait()? {
                bail!("{} ended with {status}", self.label);
            }
            if began.elapsed() > START {
                bail!("{} does not answer after {START:?}", self.label);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(command: &mut Command, folder: &std::path::Path) -> Result<Child> {
    let log: PathBuf = folder.join("log");
    let log = File::create(&log).with_context(|| format!("can't make {}", log.display()))?;
    command.stdout(Stdio::null()).stderr(log);
    command.spawn().with_context(|| format!("can't start {}", command.get_program().display()))
}

fn free() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
