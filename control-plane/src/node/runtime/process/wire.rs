//! What the node part and a sandbox's init say to each other: one JSON object a line, over
//! `init.sock` in the sandbox's folder.
//!
//! A connection asks one thing at a time and reads one answer, except after [`Request::Watch`]:
//! from then on it only receives [`Reply::Processes`], whole, at every change.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Name of the socket in the sandbox's folder.
pub(super) const SOCKET: &str = "init.sock";
/// A longer line ends the connection.
pub(super) const LINE_MAX: usize = 1 << 20;
/// How much of an executed command's output is kept.
pub(super) const OUTPUT_MAX: usize = 4096;

/// What init is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase")]
pub(super) enum Request {
    /// Starts a container's process. Success also where it is known already.
    Start(Start),
    /// Sends a signal to the container's process; success where it is gone.
    Signal {
        /// The container's id.
        container: String,
        /// Number of the signal.
        signal: i32,
    },
    /// Kills everything that is left in the container's cgroup, and forgets the container.
    Forget {
        /// The container's id.
        container: String,
    },
    /// Runs a command beside the containers; the answer comes when it ends. It is killed when
    /// the connection is closed before.
    Exec(Program),
    /// Sends the processes now and at every change.
    Watch,
}

/// A process to start as a container.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    /// The container's id.
    pub container: String,
    /// What to run.
    pub program: Program,
    /// File for its output.
    pub log: std::path::PathBuf,
    /// Bytes after which the log is moved to `.1` and begun anew.
    pub log_max: u64,
}

/// A program with its surroundings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Program {
    /// Name of the cgroup below the pod's.
    pub cgroup: String,
    /// Program and arguments, never empty.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: String,
    /// User to become, where not root.
    pub uid: Option<u32>,
    /// Group to become, where not root's.
    pub gid: Option<u32>,
}

/// What init answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "camelCase")]
pub(super) enum Reply {
    /// Done.
    Done,
    /// Not done, and why.
    Refused {
        /// For people.
        message: String,
    },
    /// All processes that were started and not forgotten.
    Processes {
        /// In the order of their ids.
        processes: Vec<Process>,
    },
    /// An executed command ended.
    Executed {
        /// Exit code, 128 + signal where a signal ended it.
        exit_code: i32,
        /// The first [`OUTPUT_MAX`] bytes of both its outputs.
        output: String,
    },
}

/// A container's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// The container's id.
    pub container: String,
    /// When it was started.
    pub started_at: Timestamp,
    /// How it ended, where it did.
    pub exit: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exit {
    /// Exit code, 128 + signal where a signal ended it, 128 where it could not be started.
    pub code: i32,
    /// When.
    pub at: Timestamp,
    /// Why it could not be started.
    pub start_error: Option<String>,
}
