//! What is on this node of kube-proxy and of Mizzen, as far as the kernel and the agent tell. Nothing
//! is changed by looking.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::hold;
use crate::netfilter::{
    Family, TalkError, conntrack,
    legacy::{self, Table, Unread},
    ruleset::Ruleset,
    tables::NfTables,
};

/// The name of kube-proxy's process (`comm`).
const NAME: &str = "kube-proxy";
/// This process's pid namespace, and the number of the first one (`PROC_PID_INIT_INO`).
const PIDS: &str = "/proc/self/ns/pid";
const FIRST_PIDS: u64 = 0xefff_fffc;
/// The virtual servers of kube-proxy's ipvs mode.
const IPVS: &str = "/proc/thread-self/net/ip_vs";

/// Why it can't be seen what there is.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The processes can't be listed.
    #[error("look for kube-proxy among the processes of this node: read {path}: {source}", path = path.display())]
    Processes {
        /// What can't be read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Netfilter does not answer.
    #[error(
        "ask the kernel for netfilter's rules and connections, which needs root and the node's \
         network namespace: {0}"
    )]
    Netfilter(#[from] TalkError),
}

/// A kube-proxy of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// How it was started.
    pub command: String,
}

/// How this node's agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    /// Its services are in force.
    Serves {
        /// The Node.
        node: String,
    },
    /// It says that they are not.
    Waits(String),
    /// It does not answer.
    Away(String),
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Running kube-proxies.
    pub processes: Vec<Process>,
    /// Whether other processes of the node are seen at all: not from a pod without `hostPID`.
    pub sees_processes: bool,
    /// All of nftables' rules.
    pub ruleset: Ruleset,
    /// The tables of `iptables-legacy`.
    pub legacy: Vec<Table>,
    /// Those of them that exist and can't be read.
    pub unread: Vec<Unread>,
    /// The families in which the kernel has virtual servers of ipvs.
    pub ipvs: Vec<Family>,
    /// Connections that rules translated.
    pub translated: usize,
    /// Whether they are held without these rules.
    pub held: bool,
    /// This node's agent.
    pub agent: Agent,
}

impl Seen {
    /// Looks.
    pub fn now(agent: Agent) -> Result<Self, LookError> {
        let ruleset = match NfTables::ruleset() {
            Err(error) if error.is_unsupported() => Ruleset::default(),
            found => found?,
        };
        let held = !ruleset.chains.is_empty() && hold::is_held()?;
        let (legacy, unread) = legacy::tables();
        Ok(Self {
            processes: processes(Path::new("/proc"))?,
            sees_processes: fs::metadata(PIDS).is_ok_and(|meta| meta.ino() == FIRST_PIDS),
            ruleset,
            legacy,
            unread,
            ipvs: virtual_servers(&lines(IPVS)),
            translated: conntrack::count_translated()?,
            held,
            agent,
        })
    }
}

/// The families of the virtual servers in these lines, below heads: `TCP  0A600001:01BB rr`, and of
/// IPv6 with brackets around the address.
fn virtual_servers(lines: &[String]) -> Vec<Family> {
    let servers = lines.iter().filter_map(|line| {
        let (protocol, server) = line.split_once(' ')?;
        let known = ["TCP", "UDP", "SCTP"].contains(&protocol);
        known.then(|| server.trim_start().starts_with('['))
    });
    let of_ipv6: Vec<_> = servers.collect();
    let families = [(Family::Ipv4, false), (Family::Ipv6, true)].into_iter();
    families.filter(|(_, wanted)| of_ipv6.contains(wanted)).map(|(family, _)| family).collect()
}

/// The lines of a file that a kernel need not have.
fn lines(path: &str) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The kube-proxies that share this thread's network namespace, as far as its pid namespace shows
/// them. Processes come and go: what can't be read of one is no error.
fn processes(proc: &Path) -> Result<Vec<Process>, LookError> {
    let error = |path: PathBuf| move |source| LookError::Processes { path, source };
    let own = proc.join("thread-self/ns/net");
    let netns = fs::metadata(&own).map_err(error(own))?.ino();
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).map_err(error(proc.to_owned()))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let path = entry.path();
        let is_its_name = fs::read_to_string(path.join("comm")).is_ok_and(|c| c.trim_end() == NAME);
        let shares = || fs::metadata(path.join("ns/net")).is_ok_and(|meta| meta.ino() == netns);
        if is_its_name && shares() {
            let command = fs::read(path.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.push(Process { pid, command: command.trim_end().to_owned() });
        }
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_are_told_by_their_family() {
        let heads = ["IP Virtual Server version 1.2.1 (size=4096)", "Prot LocalAddress:Port Sched"];
        let with = |servers: &[&str]| {
            let lines = heads.iter().chain(servers).map(|line| (*line).to_owned());
            virtual_servers(&lines.collect::<Vec<_>>())
        };
        assert_eq!(with(&[]), []);
        let ipv4 = "TCP  0A600001:01BB rr ";
        assert_eq!(
            with(&[ipv4, "  -> 0AF40102:1F90      Masq    1      0          0"]),
            [Family::Ipv4]
        );
        let ipv6 = "UDP  [fd00:0096:0000:0000:0000:0000:0000:000a]:0035 rr ";
        assert_eq!(with(&[ipv6]), [Family::Ipv6]);
        assert_eq!(with(&[ipv6, ipv4]), Family::ALL);
    }
}
