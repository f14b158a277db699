//! Client, node, backend: three network namespaces in a row, the same for every contender, with
//! nothing shared but the machine.
//!
//! ```text
//!  client 10.244.1.2 ── c0  node  b0 ── backend 10.244.2.2, 10.244.2.3
//!                            │ eth0
//!                     bridge of the cluster ── the client outside
//! ```
//!
//! The node is a host of the benchmark's cluster; the other two hang off it. Addresses repeat from
//! triple to triple.

use std::{net::Ipv4Addr, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::catalogue::{ECHO_PORT, IPERF_PORT, SINK_PORT};
use crate::{
    cluster::{Layout, cgroup, layout::Host, network, process},
    invoke,
};

/// The addresses behind every service that is called.
pub const BACKENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 2, 2), Ipv4Addr::new(10, 244, 2, 3)];
/// The range of all clients and backends.
pub const PODS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 244, 0, 0), 16);
/// Where clients and the echo server run, both: a round trip is then what it costs and not how
/// fast another CPU wakes up.
pub const CPU: usize = 0;

/// The servers behind every triple.
const SERVERS: [&str; 2] = ["echo", "iperf"];

/// Whether a process of this name is a triple's server.
pub fn is_server(process: &str) -> bool {
    SERVERS.iter().any(|server| process.starts_with(server))
}

/// A triple that is there.
#[derive(Clone, Debug)]
pub struct Triple {
    /// The cluster that it belongs to.
    pub layout: Layout,
    /// Its node.
    pub host: Host,
}

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The client.
    Client,
    /// The node.
    Node,
    /// The backend.
    Backend,
}

impl Triple {
    /// Makes what is missing of it and starts its servers.
    pub fn make(layout: &Layout, host: &Host) -> Result<Self> {
        let triple = Self { layout: layout.clone(), host: host.clone() };
        let node = triple.netns(At::Node);
        if !network::netns_exists(&triple.netns(At::Backend)) {
            triple.leg(At::Client, "c0", 1, &[2])?;
            triple.leg(At::Backend, "b0", 2, &BACKENDS.map(|ip| ip.octets()[3]))?;
        }
        let forward = format!("--net=/run/netns/{node}");
        let args = [forward.as_str(), "sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1"];
        invoke::capture(&mut invoke::command("nsenter", args))?;
        triple.start_servers()?;
        Ok(triple)
    }

    /// A namespace behind the node, with the addresses 10.244.`net`.`addresses`.
    fn leg(&self, at: At, link: &str, net: u8, addresses: &[u8]) -> Result<()> {
        let (node, netns) = (self.netns(At::Node), self.netns(at));
        ip(&format!("netns add {netns}"))?;
        ip(&format!("-n {node} link add {link} type veth peer name eth0 netns {netns}"))?;
        ip(&format!("-n {node} addr add 10.244.{net}.1/24 dev {link}"))?;
        ip(&format!("-n {node} link set {link} up"))?;
        ip(&format!("-n {netns} link set lo up"))?;
        for address in addresses {
            ip(&format!("-n {netns} addr add 10.244.{net}.{address}/24 dev eth0"))?;
        }
        ip(&format!("-n {netns} link set eth0 up"))?;
        ip(&format!("-n {netns} route add default via 10.244.{net}.1"))
    }

    fn start_servers(&self) -> Result<()> {
        let xtask = std::env::current_exe()?.display().to_string();
        let mut echo = vec![xtask, "load".into(), "serve".into()];
        echo.extend(["--cpu".into(), CPU.to_string()]);
        for ip in BACKENDS {
            echo.extend(["--sink".into(), format!("{ip}:{SINK_PORT}")]);
        }
        echo.extend(BACKENDS.map(|ip| format!("{ip}:{ECHO_PORT}")));
        let iperf = format!("iperf3 --server --port {IPERF_PORT} --affinity {}", other_cpu());
        let iperf = iperf.split(' ').map(str::to_owned).collect();
        for (server, argv) in SERVERS.into_iter().zip([echo, iperf]) {
            let spec = process::Spec {
                name: format!("{server}-{}", self.host.name),
                netns: Some(self.netns(At::Backend)),
                cgroup: self.cgroup()?,
                argv,
                env: Vec::new(),
            };
            process::ensure(&self.layout, &spec)?;
        }
        Ok(())
    }

    /// The name of one of the three namespaces.
    pub fn netns(&self, at: At) -> String {
        match at {
            At::Client => format!("{}-c", self.host.netns),
            At::Node => self.host.netns.clone(),
            At::Backend => format!("{}-b", self.host.netns),
        }
    }

    /// The cgroup of clients and servers: below that of the node, which the socket programs are
    /// attached to.
    pub fn cgroup(&self) -> Result<PathBuf> {
        Ok(cgroup::node_dir(&self.layout, &self.host.name)?.join("load"))
    }

    /// Runs a command in one of the three and gives what it printed.
    pub fn capture(&self, at: At, argv: &[&str]) -> Result<String> {
        invoke::capture(&mut self.command(at, argv)?)
    }

    /// A command that runs in one of the three.
    pub fn command(&self, at: At, argv: &[&str]) -> Result<Command> {
        let argv: Vec<_> = argv.iter().map(|&word| word.to_owned()).collect();
        let dir = self.cgroup()?;
        cgroup::make(&dir)?;
        let line = process::enter(Some(&self.netns(at)), &dir, &argv);
        let (program, args) = line.split_first().context("no command was given")?;
        Ok(invoke::command(program, args))
    }
}

/// Where the server of streams runs: on another CPU, where there is one.
pub fn other_cpu() -> usize {
    let last = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) - 1;
    last.min(CPU + 1)
}

/// Runs `ip` with these arguments.
pub fn ip(line: &str) -> Result<()> {
    invoke::capture(&mut invoke::command("ip", line.split(' '))).map(drop)
}
