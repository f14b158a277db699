//! Client and server: two network namespaces joined by a link, the same for every contender.
//!
//! ```text
//!  client 10.244.1.2 ── c0  server, asked at 10.96.0.10
//!  and the upstream           │ eth0
//!                      bridge of the cluster ── the API server
//! ```
//! Client and upstream run on one CPU, the server on the other.

use std::{fs, net::Ipv4Addr, path::PathBuf, thread};

use anyhow::{Context, Result, anyhow};
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns},
    unistd::Pid,
};

use crate::{
    bench::triple::{self, ip},
    cluster::{Layout, cgroup, layout::Host, network, process, up},
    invoke,
};

/// Where every server is asked.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
/// The port of the upstream at the client's address.
pub const UPSTREAM_PORT: u16 = 5353;
/// The CPU of the servers.
pub const SERVER_CPU: usize = triple::CPU;

/// A pair that is there.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The cluster that it belongs to.
    pub layout: Layout,
    /// The server's host.
    pub host: Host,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The client.
    Client,
    /// The server.
    Server,
}

impl Pair {
    /// Makes what is missing of it.
    pub fn make(layout: &Layout, host: &Host) -> Result<Self> {
        let pair = Self { layout: layout.clone(), host: host.clone() };
        let (server, client) = (pair.netns(At::Server), pair.netns(At::Client));
        if network::netns_exists(&client) {
            return Ok(pair);
        }
        ip(&format!("netns add {client}"))?;
        ip(&format!("-n {server} link add c0 type veth peer name eth0 netns {client}"))?;
        ip(&format!("-n {server} addr add 10.244.1.1/24 dev c0"))?;
        ip(&format!("-n {server} link set c0 up"))?;
        ip(&format!("-n {client} link set lo up"))?;
        ip(&format!("-n {client} addr add {CLIENT}/24 dev eth0"))?;
        ip(&format!("-n {client} link set eth0 up"))?;
        ip(&format!("-n {client} route add default via 10.244.1.1"))?;
        ip(&format!("-n {server} addr add fd00:244:0:1::1/64 dev c0 nodad"))?;
        ip(&format!("-n {client} addr add fd00:244:0:1::2/64 dev eth0 nodad"))?;
        ip(&format!("-n {client} -6 route add default via fd00:244:0:1::1"))?;
        Ok(pair)
    }

    /// The name of one of the namespaces.
    pub fn netns(&self, at: At) -> String {
        match at {
            At::Client => format!("{}-c", self.host.netns),
            At::Server => self.host.netns.clone(),
        }
    }

    /// A folder for what belongs to this pair.
    pub fn folder(&self) -> Result<PathBuf> {
        let folder = self.layout.dir.join("dns").join(&self.host.name);
        fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        Ok(folder)
    }

    /// Starts a process in one of the two, on its CPU alone.
    pub fn start(
        &self,
        at: At,
        name: &str,
        argv: Vec<String>,
        env: Vec<(String, String)>,
    ) -> Result<process::Started> {
        let argv = pinned(at).into_iter().chain(argv).collect();
        let spec = process::Spec {
            name: format!("{name}-{}", self.host.name),
            netns: Some(self.netns(at)),
            cgroup: self.cgroup()?,
            argv,
            env,
        };
        process::ensure(&self.layout, &spec)
    }

    /// Runs a command in one of the two, on its CPU alone, and gives what it printed.
    pub fn capture(&self, at: At, argv: &[&str]) -> Result<String> {
        let argv: Vec<String> =
            pinned(at).into_iter().chain(argv.iter().map(|&word| word.to_owned())).collect();
        let dir = self.cgroup()?;
        cgroup::make(&dir)?;
        let line = process::enter(Some(&self.netns(at)), &dir, &argv);
        let (program, args) = line.split_first().context("no command was given")?;
        invoke::capture(&mut invoke::command(program, args))
    }

    /// Runs `body` in a thread of its own in one of the two, on its CPU alone.
    pub fn within<T: Send>(&self, at: At, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.netns(at));
        let netns = fs::File::open(&path).with_context(|| format!("can't open {path}"))?;
        let mut cpus = CpuSet::new();
        cpus.set(cpu(at))?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                sched_setaffinity(Pid::from_raw(0), &cpus)?;
                body()
            });
            thread.join().map_err(|_| anyhow!("the thread panicked"))?
        })
    }

    /// Packets that went over the link so far, both ways.
    pub fn packets(&self) -> Result<u64> {
        let text = self.capture(At::Server, &["ip", "-json", "-stats", "link", "show", "c0"])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let count = |way: &str| links[0]["stats64"][way]["packets"].as_u64();
        count("rx").zip(count("tx")).map(|(rx, tx)| rx + tx).context("no counters of c0")
    }

    fn cgroup(&self) -> Result<PathBuf> {
        Ok(cgroup::node_dir(&self.layout, &self.host.name)?.join("dns"))
    }
}

fn pinned(at: At) -> Vec<String> {
    ["taskset", "--cpu-list", &cpu(at).to_string()].map(str::to_owned).to_vec()
}

fn cpu(at: At) -> usize {
    match at {
        At::Client => triple::other_cpu(),
        At::Server => SERVER_CPU,
    }
}

/// Waits for something of a pair.
pub fn wait<T>(
    pair: &Pair,
    what: &str,
    check: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    up::wait(&pair.layout, what, check)
}
