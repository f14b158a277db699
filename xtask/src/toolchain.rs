//! What the machine must have: found where it is, installed where it may be (root on Debian),
//! else named together with the exact commands.
//!
//! The BPF target needs a `core` library that rustup's stable toolchain does not bring. Two ways
//! are known to work (docs/adr/0001-toolchain.md): Debian's `rustc-web` with a prebuilt `core`,
//! and a nightly toolchain with `rust-src`.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{invoke, step::step};

/// The triple that the programs are built for.
pub const BPF_TARGET: &str = "bpfel-unknown-none";

/// The last release with the proxy that loads the LLVM of the toolchain that started it.
const BPF_LINKER: &str = "0.10.3";

/// A compiler that can build for [`BPF_TARGET`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BpfCompiler {
    /// Debian's `/usr/bin/rustc` with its prebuilt `core`.
    Debian,
    /// rustup's nightly, which builds `core` from source.
    Nightly,
}

/// A program that a command needs, and the Debian package that has it.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// Name in `PATH`, or a path.
    pub program: &'static str,
    /// Debian package.
    pub package: &'static str,
}

/// What building needs beside Rust.
pub const BUILD_TOOLS: &[Tool] = &[
    Tool { program: "cc", package: "gcc" },
    // The messages of the Container Runtime Interface are made of its own definition.
    Tool { program: "protoc", package: "protobuf-compiler" },
    // etcd's definition imports protobuf's own types.
    Tool { program: "/usr/include/google/protobuf/descriptor.proto", package: "libprotobuf-dev" },
];

/// What the search for octets that are not borne needs on top: libFuzzer is C++.
pub const FUZZ_TOOLS: &[Tool] = &[Tool { program: "c++", package: "g++" }];

/// What a cluster on containerd needs on top, and its images.
pub const CONTAINERD_TOOLS: &[Tool] = &[
    Tool { program: "containerd", package: "containerd" },
    Tool { program: "ctr", package: "containerd" },
    Tool { program: "runc", package: "runc" },
    Tool { program: "/usr/lib/cni/loopback", package: "containernetworking-plugins" },
    Tool { program: "/bin/busybox", package: "busybox" },
    Tool { program: "ldd", package: "libc-bin" },
];

/// What making an image needs.
pub const IMAGE_TOOLS: &[Tool] = &[
    Tool { program: "tar", package: "tar" },
    Tool { program: "gzip", package: "gzip" },
    Tool { program: "sha256sum", package: "coreutils" },
];

/// What a cluster in network namespaces needs.
pub const CLUSTER_TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "nsenter", package: "util-linux" },
    Tool { program: "setsid", package: "util-linux" },
    Tool { program: "curl", package: "curl" },
];

/// What the tests need on top: foreign clients, a foreign hand at the maps and links, another
/// proxy's rules, and CNI plugins of others, which are in no `PATH`.
pub const TEST_TOOLS: &[Tool] = &[
    Tool { program: "bpftool", package: "bpftool" },
    Tool { program: "dig", package: "bind9-dnsutils" },
    Tool { program: "nft", package: "nftables" },
    Tool { program: "iptables-restore", package: "iptables" },
    Tool { program: "conntrack", package: "conntrack" },
    Tool { program: "/usr/lib/cni/bridge", package: "containernetworking-plugins" },
    Tool { program: "readelf", package: "binutils" },
    // Several control planes share one.
    Tool { program: "etcd", package: "etcd-server" },
    // A small disk that is full, and a clock that jumps.
    Tool { program: "unshare", package: "util-linux" },
    Tool { program: "faketime", package: "faketime" },
    // The first process of a machine in a machine.
    Tool { program: "systemctl", package: "systemd" },
];

/// What the benchmarks need on top: a load generator, other contenders, and a look at the kernel's
/// tables.
///
/// Connections are loaded by `xtask load`, not by wrk: the same client and server run for every
/// contender, close with a reset so that ports come back at once, and say who answered.
pub const BENCH_TOOLS: &[Tool] = &[
    Tool { program: "iperf3", package: "iperf3" },
    Tool { program: "nft", package: "nftables" },
    Tool { program: "iptables", package: "iptables" },
    Tool { program: "conntrack", package: "conntrack" },
    Tool { program: "bpftool", package: "bpftool" },
    Tool { program: "sysctl", package: "procps" },
];

/// What those of the pod network need: a load generator, the reference plugins, which are in no
/// `PATH`, and control over the kernel's own VXLAN.
pub const CNI_BENCH_TOOLS: &[Tool] = &[
    Tool { program: "iperf3", package: "iperf3" },
    Tool { program: "/usr/lib/cni/ptp", package: "containernetworking-plugins" },
    Tool { program: "/usr/lib/cni/bridge", package: "containernetworking-plugins" },
    Tool { program: "bridge", package: "iproute2" },
    Tool { program: "sysctl", package: "procps" },
];

/// What those of DNS need: a load generator, a foreign client, and control over which CPU runs
/// what. The other servers are not installed, see `bench::dns::packages`.
pub const DNS_BENCH_TOOLS: &[Tool] = &[
    Tool { program: "dnsperf", package: "dnsperf" },
    Tool { program: "dig", package: "bind9-dnsutils" },
    Tool { program: "taskset", package: "util-linux" },
    Tool { program: "chrt", package: "util-linux" },
    Tool { program: "nft", package: "nftables" },
    Tool { program: "conntrack", package: "conntrack" },
];

/// What those of the control plane need: what its store is compared with.
pub const CONTROL_PLANE_BENCH_TOOLS: &[Tool] = &[Tool { program: "etcd", package: "etcd-server" }];

/// Makes sure that the programs are there.
pub fn ensure_tools(tools: &[Tool]) -> Result<()> {
    let mut packages: Vec<_> = tools
        .iter()
        .filter(|tool| !invoke::in_path(tool.program))
        .map(|tool| tool.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() { Ok(()) } else { install(&packages) }
}

/// Makes sure that the BPF programs can be built, and says how.
pub fn ensure_bpf() -> Result<BpfCompiler> {
    let compiler = if let Some(compiler) = find_compiler() {
        compiler
    } else {
        install(&["rustc-web", "libstd-rust-web-dev-bpf"]).context(
            "the BPF programs need a compiler for bpfel-unknown-none; instead of Debian's, \
             `rustup toolchain install nightly --component rust-src` works too",
        )?;
        find_compiler().context("rustc-web is installed but has no core for BPF")?
    };
    if !invoke::in_path("bpf-linker") {
        step("installing bpf-linker (about a minute, once)", || {
            let version = ["install", "bpf-linker", "--version", BPF_LINKER];
            invoke::run(Command::new("cargo").args(version).args(["--locked", "--debug"]))
        })?;
    }
    Ok(compiler)
}

/// The target for binaries that bring their own libc: musl where it is installed together with a
/// compiler for the C that is linked in, else glibc.
pub fn static_target() -> String {
    let arch = std::env::consts::ARCH;
    let musl = format!("{arch}-unknown-linux-musl");
    let sysroot = invoke::capture(Command::new("rustc").args(["--print", "sysroot"]));
    let installed =
        sysroot.is_ok_and(|root| Path::new(root.trim()).join("lib/rustlib").join(&musl).is_dir());
    if installed && invoke::in_path("musl-gcc") {
        musl
    } else {
        format!("{arch}-unknown-linux-gnu")
    }
}

fn find_compiler() -> Option<BpfCompiler> {
    let sysroot = |command: &mut Command| invoke::capture(command).ok();
    let debian = sysroot(Command::new("/usr/bin/rustc").args(["--print", "sysroot"]));
    if debian
        .is_some_and(|root| Path::new(root.trim()).join("lib/rustlib").join(BPF_TARGET).is_dir())
    {
        return Some(BpfCompiler::Debian);
    }
    let nightly =
        sysroot(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
    nightly
        .is_some_and(|root| Path::new(root.trim()).join("lib/rustlib/src/rust/library").is_dir())
        .then_some(BpfCompiler::Nightly)
}

/// Installs Debian packages, or names them.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let commands = format!("apt-get update && apt-get install -y --no-install-recommends {list}");
    if !Path::new("/etc/debian_version").exists() {
        bail!("missing: {list} (names of Debian packages); install them by your system's means");
    }
    if !is_root() {
        bail!("missing: {list}; as root run:\n  {commands}");
    }
    step(&format!("installing {list}"), || {
        let apt = |args: &[&str]| {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq").args(args);
            invoke::capture(&mut command).map(drop)
        };
        apt(&["update"])?;
        let mut install = vec!["install", "-y", "--no-install-recommends"];
        install.extend_from_slice(packages);
        apt(&install)
    })
}

/// Whether this process has the rights of root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Fails where this process is not root, and says why that is needed.
pub fn require_root(what: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    // Plain sudo has a PATH of its own, without rustup's cargo.
    bail!(
        "{what} needs root: it makes network namespaces and loads eBPF programs; become root, or \
         put `sudo -E env \"PATH=$PATH\"` before the command"
    )
}
