//! A node for tests of the datapath: a network namespace, a cgroup and a bpf file system of its
//! own. All of it goes with the guard.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use mizzen_agent::datapath::{Datapath, OpenError, Options};
use nix::mount::{MntFlags, umount2};

use crate::{actor::Actor, netns::Netns};

/// A node without an agent.
#[derive(Debug)]
pub struct TestNode {
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// How many flows a new table of its packet path has room for.
    pub flows: Option<u32>,
    cgroup: PathBuf,
    folder: tempfile::TempDir,
}

impl TestNode {
    /// A new node. Whatever it has no route for goes to its loopback interface, so that a connect
    /// to a service's address finds one.
    pub fn new(role: &str) -> Self {
        let netns = Arc::new(Netns::new(role));
        netns.ip("route add default dev lo");
        netns.ip("-6 route add default dev lo");
        let cgroup = cgroup2().join(netns.name());
        fs::create_dir(&cgroup).expect("make a cgroup, which needs root");
        let folder = tempfile::Builder::new().prefix("mzt-").tempdir().expect("a folder");
        Self { netns, flows: None, cgroup, folder }
    }

    /// Gives the node's loopback interface an address.
    pub fn add_address(&self, addr: std::net::IpAddr) {
        match addr {
            std::net::IpAddr::V4(addr) => self.netns.ip(&format!("addr add {addr}/32 dev lo")),
            std::net::IpAddr::V6(addr) => {
                self.netns.ip(&format!("addr add {addr}/128 dev lo nodad"))
            }
        };
    }

    /// The options for its datapath.
    pub fn options(&self) -> Options {
        let (bpffs, cgroup_root) = (self.bpffs(), Some(self.cgroup.clone()));
        Options { bpffs, mounts: true, cgroup_root, flows: self.flows }
    }

    /// The folder for pins.
    pub fn bpffs(&self) -> PathBuf {
        self.folder.path().join("bpf")
    }

    /// Opens its datapath, as an agent in the node's namespace does.
    pub fn try_open(&self) -> Result<Datapath, OpenError> {
        let options = self.options();
        self.netns.run(|| Datapath::open(&options))
    }

    /// As [`Self::try_open`]; panics where it fails.
    pub fn open(&self) -> Datapath {
        self.try_open().unwrap_or_else(|error| {
            // Of what the verifier has to say the end tells most.
            let said = format!("{:#}", anyhow::Error::from(error));
            let from = said.char_indices().rev().nth(3_000).map_or(0, |(at, _)| at);
            panic!("{}", &said[from..])
        })
    }

    /// A process of the node.
    pub fn actor(&self) -> Actor {
        Actor::start(&self.netns, &self.cgroup)
    }

    /// A process of one of the node's pods, whose namespace is `netns`.
    pub fn pod_actor(&self, netns: &Netns) -> Actor {
        Actor::start(netns, &self.cgroup)
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let _unmounted = umount2(&self.bpffs(), MntFlags::MNT_DETACH);
        // Whoever is still inside ends with the node; the kernel lets go of them in its own time.
        let _killed = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.cgroup).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where cgroup2 is mounted.
fn cgroup2() -> PathBuf {
    let both = [Path::new("/sys/fs/cgroup/unified"), Path::new("/sys/fs/cgroup")];
    let mounted = both.into_iter().find(|path| path.join("cgroup.controllers").is_file());
    mounted.expect("a cgroup2 file system").to_owned()
}
