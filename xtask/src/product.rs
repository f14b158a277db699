//! What is built, how, and where it lies.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    checkout, image, invoke,
    step::step,
    target_dir,
    toolchain::{self, BPF_TARGET, BpfCompiler},
};

/// Optimised or quick to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `target/release`.
    Release,
    /// `target/debug`.
    Debug,
}

impl Profile {
    /// The folder below the target folder.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "debug",
        }
    }

    fn flag(self) -> &'static [&'static str] {
        match self {
            Self::Release => &["--release"],
            Self::Debug => &[],
        }
    }
}

/// The folder that has the binaries.
pub fn bin_dir(profile: Profile) -> PathBuf {
    target_dir().join(profile.folder())
}

/// Builds everything that runs on a node. The programs first: the agent embeds them.
pub fn build(profile: Profile) -> Result<()> {
    toolchain::ensure_tools(toolchain::BUILD_TOOLS)?;
    let compiler = toolchain::ensure_bpf()?;
    step("building the eBPF programs", || build_programs(compiler))?;
    step("building mizzen-agent, mizzen and mizzen-control-plane", || {
        invoke::run(cargo().arg("build").args(profile.flag()).args([
            "-p",
            "mizzen-agent",
            "-p",
            "mizzen-control-plane",
        ]))
    })?;
    step("building mizzen-cni (static)", || build_plugin(profile))
}

/// Builds the eBPF object that the agent embeds.
pub fn build_programs(compiler: BpfCompiler) -> Result<()> {
    let mut command = cargo();
    if compiler == BpfCompiler::Nightly {
        command.arg("+nightly");
    }
    command.args(["build", "--release", "--target", BPF_TARGET]);
    match compiler {
        BpfCompiler::Debian => {
            // The crate form: with `1`, build scripts take every crate for a nightly one.
            command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "aya_ebpf,mizzen_ebpf");
        }
        BpfCompiler::Nightly => {
            command.arg("-Zbuild-std=core").env_remove("RUSTUP_TOOLCHAIN");
        }
    }
    let arch = std::env::consts::ARCH;
    let flags = [&format!("--cfg=bpf_target_arch=\"{arch}\""), "-Cdebuginfo=2", "-Clink-arg=--btf"];
    command
        .current_dir(checkout().join("ebpf/programs"))
        .env_remove("RUSTFLAGS")
        .env("CARGO_TARGET_DIR", target_dir())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    invoke::run(&mut command)
}

/// The plugin runs in the mount namespace of whatever runtime calls it: it brings its own libc. It
/// is started for every pod, so it carries no symbols either.
fn build_plugin(profile: Profile) -> Result<()> {
    let built = build_static(profile, "mizzen-cni", "mizzen-cni")?;
    replace(&built, &bin_dir(profile).join("mizzen-cni"))
}

/// Builds a package with its own libc and without symbols; gives its program.
fn build_static(profile: Profile, package: &str, program: &str) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    invoke::run(
        cargo()
            .arg("build")
            .args(profile.flag())
            .args(["-p", package, "--target", &triple])
            .env("CARGO_ENCODED_RUSTFLAGS", static_flags().join("\x1f")),
    )?;
    Ok(target_dir().join(triple).join(profile.folder()).join(program))
}

/// Builds the image of the agent, below the folder of binaries.
pub fn build_node_image(profile: Profile) -> Result<image::node::Made> {
    toolchain::ensure_tools(toolchain::BUILD_TOOLS)?;
    toolchain::ensure_tools(toolchain::IMAGE_TOOLS)?;
    let compiler = toolchain::ensure_bpf()?;
    step("building the eBPF programs", || build_programs(compiler))?;
    let triple = toolchain::static_target();
    step("building mizzen-agent, mizzen and mizzen-cni (static)", || {
        let packages = ["-p", "mizzen-agent", "-p", "mizzen-cni", "--target", &triple];
        let mut build = cargo();
        build.arg("build").args(profile.flag()).args(packages);
        invoke::run(build.env("CARGO_ENCODED_RUSTFLAGS", static_flags().join("\x1f")))
    })?;
    step("packing the image", || {
        let bin = target_dir().join(&triple).join(profile.folder());
        image::node::make(&bin_dir(profile).join("image"), &bin, &triple)
    })
}

/// Flags for binaries with their own libc and without symbols, which don't tell in which folders
/// they were built: the same source gives the same binary anywhere.
fn static_flags() -> Vec<String> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(home?.join(".cargo")));
    let mut flags = vec!["-Ctarget-feature=+crt-static".into(), "-Cstrip=symbols".into()];
    let folders = [(Some(checkout()), "/mizzen"), (cargo_home, "/cargo")];
    for (folder, name) in folders {
        if let Some(folder) = folder {
            flags.push(format!("--remap-path-prefix={}={name}", folder.display()));
        }
    }
    flags
}

/// Builds the images of a cluster on a container runtime. Theirs is a static program too.
pub fn build_images(profile: Profile) -> Result<()> {
    toolchain::ensure_tools(toolchain::CONTAINERD_TOOLS)?;
    step("building the container images", || {
        let built = build_static(profile, "mizzen-images", "mizzen-image")?;
        image::cluster::make_all(&bin_dir(profile).join("images"), &built).map(drop)
    })
}

/// Copies over a file that may be running: a new file takes the name.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let next = to.with_extension("next");
    std::fs::copy(from, &next)
        .and_then(|_| std::fs::rename(&next, to))
        .with_context(|| format!("can't copy {} to {}", from.display(), to.display()))
}

/// Cargo, in the checkout. The name, not the path: rustup's proxy reads `+nightly`.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(checkout());
    command
}
