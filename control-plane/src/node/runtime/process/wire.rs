//! What the node part and a sandbox's init say to each other: one JSON object a line, over
//! `init.sock` in the sandbox's folder.
//!
//! A connection asks one thing at a time and reads one answer, except after [`Request::Watch`]:
//! from then on it only receives [`Reply::Processes`], whole, at every change.
//!
//! What is to become of a process is data here ([`Root`], [`Confinement`]): the node part decides
//! it, and a copy of init does it ([`super::enter`]).

use std::path::PathBuf;

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
    /// Starts a container's process; the answer comes when it runs its program, or can't. Success
    /// also where it is known already.
    Start(Box<Start>),
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
    /// Runs a command in a container; the answer comes when it ends. It is killed when the
    /// connection is closed before.
    Exec(Box<Program>),
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
    /// What it sees as `/`.
    pub root: Root,
    /// File for its output.
    pub log: PathBuf,
    /// Bytes after which the log is moved to `.1` and begun anew.
    pub log_max: u64,
}

/// A program with its surroundings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Program {
    /// The id of the container that it is or is run in.
    pub container: String,
    /// Name of the cgroup below the pod's.
    pub cgroup: String,
    /// Program and arguments, never empty.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: String,
    /// What it may do.
    pub confinement: Confinement,
}

/// What a process may do and use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Confinement {
    /// The cgroups to join, one a hierarchy, as the machine sees them.
    pub cgroups: Vec<PathBuf>,
    /// How soon it is killed where memory is short, see oom_score_adj in proc(5).
    pub oom_score_adj: i32,
    /// User to become.
    pub uid: u32,
    /// Group to become.
    pub gid: u32,
    /// Its other groups.
    pub groups: Vec<u32>,
    /// The capabilities that it may have, one bit each (capabilities(7)).
    pub capabilities: u64,
    /// No program that it starts has more rights than it.
    pub no_new_privileges: bool,
    /// It makes no system calls but those of [`super::seccomp`].
    pub seccomp: bool,
}

/// What a container sees as `/`, and how that is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Root {
    /// Folder of what the container writes, as the machine sees it.
    pub layers: PathBuf,
    /// In this order.
    pub steps: Vec<Step>,
}

/// A step on the way to a root. Targets are as the container sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Step {
    /// Lays a writable layer over a file system of the machine, at the same place. The first one
    /// is the root.
    Layer {
        /// Where it is mounted on the machine.
        lower: PathBuf,
        /// Folders in it that are empty to the container, relative to it.
        hidden: Vec<PathBuf>,
        /// Device files in it can be used.
        devices: bool,
    },
    /// Makes the root the root of the process.
    Enter,
    /// Mounts a file system of the kernel's; a folder for it is made.
    New {
        /// Which.
        kind: Kind,
        /// Where.
        target: PathBuf,
        /// It cannot be written to.
        read_only: bool,
    },
    /// Shows a file or folder of the machine.
    Bind(Bind),
    /// Shows the pod's POSIX shared memory.
    SharedMemory {
        /// Where.
        target: PathBuf,
    },
    /// Makes a symbolic link.
    Link {
        /// Where.
        target: PathBuf,
        /// What it says.
        to: PathBuf,
    },
    /// Puts a file of this text in the place of what is there.
    Text {
        /// Where.
        target: PathBuf,
        /// The text.
        text: String,
    },
    /// Makes a folder with those above it; success where it is there.
    Folder {
        /// Where.
        target: PathBuf,
    },
    /// Hides a file or folder; success where it is not there.
    Mask {
        /// Which.
        target: PathBuf,
    },
    /// Makes what is there, without what is mounted in it, read-only; success where it is not
    /// there.
    ReadOnly {
        /// Which.
        target: PathBuf,
        /// It is a mount point already.
        mounted: bool,
    },
    /// Lets go of the machine's file systems.
    Leave,
}

/// A file system of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Kind {
    /// The pod's processes.
    Proc,
    /// The kernel's devices, and the pod's network.
    Sysfs,
    /// Room for device files.
    Devices,
    /// Terminals of the container's own.
    Terminals,
    /// The pod's message queues; left out where the kernel has none.
    MessageQueues,
}

/// What a container sees of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bind {
    /// What is shown, or the folder that it is in.
    pub source: PathBuf,
    /// The part of it that is shown, relative: nothing in it leads out. Empty for all of it.
    pub inside: PathBuf,
    /// Where.
    pub target: PathBuf,
    /// It cannot be written to.
    pub read_only: bool,
    /// Device files in it can be used.
    pub devices: bool,
    /// What the machine mounts in it later is seen.
    pub follows: bool,
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
