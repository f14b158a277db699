//! `mizzen-agent ready`: whether the agent of this container serves its node. Two containers of one
//! node share addresses and sockets while one takes over from the other, so that an answer alone
//! does not tell whose it is.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::serve::{listen::SOCKET, wire};

/// How long the agent may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Options of `ready`.
#[derive(Debug, clap::Args)]
pub struct Ready {
    /// The agent's state folder
    #[arg(long, default_value = "/run/mizzen")]
    state_dir: PathBuf,
}

impl Ready {
    /// An error where the agent is another container's, or a part of it waits for something.
    pub fn execute(self) -> anyhow::Result<()> {
        let stream = connect(&self.state_dir)?;
        let pid = getsockopt(&stream, PeerCredentials).context("ask who serves")?.pid();
        let mounts = |who: &str| fs::read_link(format!("/proc/{who}/ns/mnt"));
        let own = mounts("self").context("look at this process")?;
        let its = mounts(&pid.to_string())
            .with_context(|| format!("look at the agent, process {pid}; that needs hostPID"))?;
        ensure!(
            own == its,
            "the agent that serves the node, process {pid}, is another container's"
        );
        let (_, body) = ask(stream, "/v1/status")?;
        let status: wire::Status = serde_json::from_str(&body).context("the answer is odd")?;
        // What is degraded serves: a roll-out that waited for it would never end.
        let waits = status.parts.into_iter().find(|part| part.state == "waiting");
        let why = waits.map(|part| format!("{} waits: {}", part.name, part.reason));
        ensure!(why.is_none(), "the agent is not ready: {}", why.unwrap_or_default());
        Ok(())
    }
}

/// The way to the agent that serves this state folder.
pub(super) fn connect(state_dir: &Path) -> anyhow::Result<UnixStream> {
    let path = state_dir.join(SOCKET);
    UnixStream::connect(&path).with_context(|| format!("no agent serves {}", path.display()))
}

/// The code and the body of its answer.
pub(super) fn ask(mut stream: UnixStream, path: &str) -> anyhow::Result<(u16, String)> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the agent did not answer in time")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the agent's answer is cut off")?;
    let code = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    Ok((code.context("the answer is odd")?, body.to_owned()))
}
