//! What a cluster's parts are called and which addresses they have. Pure: nothing is touched.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

/// Nodes that fit between the node and the client addresses.
pub const NODES_MAX: u32 = 80;

/// What runs a cluster's containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    /// The node part itself: processes in namespaces.
    Process,
    /// A containerd on each node.
    Containerd,
}

impl Runtime {
    /// As `--runtime` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Containerd => "containerd",
        }
    }
}

/// A cluster on this machine.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Tells clusters on one machine apart; `up` is the user's.
    pub name: String,
    /// Second and third octet of the nodes' network: (30, 0) is 172.30.0.0/24 and fd00:30::/64.
    pub subnet: (u8, u8),
    /// How many nodes.
    pub nodes: u32,
    /// What runs the containers.
    pub runtime: Runtime,
    /// Its files: kubeconfig, logs, CNI folders, state.
    pub dir: PathBuf,
    /// Where the binaries are.
    pub bin_dir: PathBuf,
    /// Also serve the API on 127.0.0.1:6443.
    pub loopback_api: bool,
}

/// A host of the cluster's network: a node, or the client outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// `node-1`, …, or `client`.
    pub name: String,
    /// Its network namespace, as `ip netns` knows it.
    pub netns: String,
    /// The bridge's end of its veth.
    pub port: String,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
}

impl Layout {
    /// The bridge that joins the hosts, in the machine's own namespace.
    pub fn bridge(&self) -> String {
        format!("mz-{}", self.name)
    }

    /// The first part of every name outside the cluster's folder.
    pub fn prefix(&self) -> String {
        format!("mizzen-{}", self.name)
    }

    /// The machine's addresses on the bridge: the API server's.
    pub fn machine(&self) -> (Ipv4Addr, Ipv6Addr) {
        self.addresses(1)
    }

    fn addresses(&self, host: u8) -> (Ipv4Addr, Ipv6Addr) {
        let (second, third) = self.subnet;
        // Decimal digits read as hexadecimal: fd00:30::11 stands beside 172.30.0.11.
        let digits = |n: u8| u16::from_str_radix(&n.to_string(), 16).unwrap_or(u16::from(n));
        let v6 = [0xfd00, digits(second), digits(third), 0, 0, 0, 0, digits(host)];
        (Ipv4Addr::new(172, second, third, host), Ipv6Addr::from(v6))
    }

    fn host(&self, name: &str, port: &str, number: u8) -> Host {
        let (ipv4, ipv6) = self.addresses(number);
        Host {
            name: name.to_owned(),
            netns: format!("{}-{name}", self.prefix()),
            port: format!("{}-{port}", self.bridge()),
            ipv4,
            ipv6,
        }
    }

    /// The nodes.
    pub fn node_hosts(&self) -> Vec<Host> {
        (1..=self.nodes.min(NODES_MAX))
            .map(|n| {
                let number = u8::try_from(10 + n).unwrap_or(u8::MAX);
                self.host(&format!("node-{n}"), &n.to_string(), number)
            })
            .collect()
    }

    /// The client outside the cluster.
    pub fn client(&self) -> Host {
        self.host("client", "c", 100)
    }

    /// Every host.
    pub fn hosts(&self) -> Vec<Host> {
        let mut hosts = self.node_hosts();
        hosts.push(self.client());
        hosts
    }

    /// The API server's address for everyone, the machine's own namespace included.
    pub fn api_address(&self) -> String {
        format!("{}:6443", self.machine().0)
    }

    /// Sockets and run-time state of a node (`--state-dir`).
    pub fn state_dir(&self, node: &str) -> PathBuf {
        self.run_dir().join(node)
    }

    /// What a node's agent keeps over a reboot (`--data-dir`).
    pub fn data_dir(&self, node: &str) -> PathBuf {
        self.dir.join(node).join("data")
    }

    /// Run-time state of the whole cluster; goes with it.
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from("/run").join(self.prefix())
    }

    /// A node's BPF file system folder (`--bpffs`).
    pub fn bpffs(&self, node: &str) -> PathBuf {
        self.bpffs_dir().join(node)
    }

    /// The BPF file system folder of the whole cluster.
    pub fn bpffs_dir(&self) -> PathBuf {
        PathBuf::from("/sys/fs/bpf").join(self.prefix())
    }

    /// Data of the control plane.
    pub fn control_plane_dir(&self) -> PathBuf {
        self.dir.join("control-plane")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// The agents' kubeconfig.
    pub fn agent_kubeconfig(&self) -> PathBuf {
        self.dir.join("agent.kubeconfig")
    }

    /// The kubeconfig of a node's node part.
    pub fn node_kubeconfig(&self, node: &str) -> PathBuf {
        self.dir.join(node).join("node.kubeconfig")
    }

    /// Logs, a file per process.
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// A node's CNI configuration folder.
    pub fn cni_conf_dir(&self, node: &str) -> PathBuf {
        self.dir.join(node).join("cni/net.d")
    }

    /// A node's CNI plugin folder.
    pub fn cni_bin_dir(&self, node: &str) -> PathBuf {
        self.dir.join(node).join("cni/bin")
    }

    /// What a node's pods keep in volumes; on a disk.
    pub fn volume_dir(&self, node: &str) -> PathBuf {
        self.dir.join(node).join("volumes")
    }

    /// One of the product's binaries.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout {
            name: "up".into(),
            subnet: (30, 0),
            nodes: 2,
            runtime: Runtime::Process,
            dir: "/tmp/x".into(),
            bin_dir: "/tmp/y".into(),
            loopback_api: true,
        }
    }

    #[test]
    fn the_contract_s_addresses() {
        let nodes = layout().node_hosts();
        assert_eq!(nodes[1].name, "node-2");
        assert_eq!(nodes[1].ipv4, Ipv4Addr::new(172, 30, 0, 12));
        assert_eq!(nodes[1].ipv6, "fd00:30::12".parse::<Ipv6Addr>().expect("an address"));
        assert_eq!(layout().machine().1, "fd00:30::1".parse::<Ipv6Addr>().expect("an address"));
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        let big = Layout { nodes: NODES_MAX, name: "t99".into(), ..layout() };
        assert!(big.hosts().iter().all(|host| host.port.len() <= 15));
    }
}
