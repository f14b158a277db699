//! Network namespaces as test hosts. A namespace is removed when its guard is dropped.

use std::{
    fs::File,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sched::{CloneFlags, setns};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A test host.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// A new namespace named after `role`, this process and a counter, with `lo` up.
    pub fn new(role: &str) -> Self {
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = Self { name: format!("mzt-{role}-{}-{serial}", std::process::id()) };
        check(Command::new("ip").args(["netns", "add", &netns.name]));
        netns.ip("link set lo up");
        netns
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that names it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip -n NAME ARGS`, split at blanks; panics where it fails.
    pub fn ip(&self, args: &str) -> String {
        let output =
            check(Command::new("ip").arg("-n").arg(&self.name).args(args.split_whitespace()));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `bridge -n NAME ARGS`, split at blanks; panics where it fails.
    pub fn bridge(&self, args: &str) {
        check(Command::new("bridge").arg("-n").arg(&self.name).args(args.split_whitespace()));
    }

    /// A command that starts inside; `nsenter`, because `ip netns exec` hides cgroups and bpffs.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `body` in a thread of its own inside the namespace.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).expect("the namespace's file");
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&file, CloneFlags::CLONE_NEWNET).expect("setns, which needs root");
                    body()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Connects `self` and `peer` by a veth pair with the given interface names, both up.
    pub fn veth(&self, ifname: &str, peer: &Self, peer_ifname: &str) {
        self.ip(&format!(
            "link add {ifname} type veth peer name {peer_ifname} netns {}",
            peer.name
        ));
        self.ip(&format!("link set {ifname} up"));
        peer.ip(&format!("link set {peer_ifname} up"));
    }

    /// Has a device of this namespace leave sums and segments to the kernel, as one that can do
    /// neither: what it sends is looked at packet by packet then.
    pub fn offload_nothing(&self, ifname: &str) {
        /// Of `linux/ethtool.h`: sums on the way out, and with them what needs them.
        const ETHTOOL_STXCSUM: u32 = 0x17;
        #[repr(C)]
        struct EthtoolValue {
            cmd: u32,
            data: u32,
        }
        self.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
            let mut value = EthtoolValue { cmd: ETHTOOL_STXCSUM, data: 0 };
            // SAFETY: zeros are a value of the structure.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(ifname.bytes()) {
                *to = from.cast_signed();
            }
            request.ifr_ifru.ifru_data = (&raw mut value).cast();
            // SAFETY: the request names a device and points to a value that lives until it is done.
            let done =
                unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
            assert_eq!(done, 0, "{ifname}: {}", std::io::Error::last_os_error());
        });
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Runs a command; panics with all it said where it fails.
pub fn check(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
