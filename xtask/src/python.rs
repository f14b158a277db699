//! Programs of others that are Python packages, in an environment of their own below the target
//! folder: nothing is installed into the system, and each has one version.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{checkout, invoke, step::step, target_dir, toolchain};

/// What is installed, with versions.
const REQUIREMENTS: &str = "control-plane/tests/python/requirements.txt";

/// Makes the environment, or makes it anew where its requirements have changed.
pub fn ensure_environment() -> Result<()> {
    let environment = target_dir().join("python");
    let requirements = checkout().join(REQUIREMENTS);
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("can't read {}", requirements.display()))?;
    // Written last: what is there is whole.
    let made = environment.join("requirements.txt");
    if fs::read_to_string(&made).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    // Debian has the part of it that brings pip in a package of its own.
    let probe = invoke::command("python3", ["-c", "import ensurepip, venv"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        toolchain::install(&["python3", "python3-venv"])?;
    }
    step("installing clients of others (Python packages)", || {
        install(&environment, &requirements)?;
        fs::write(&made, &wanted).with_context(|| format!("can't write {}", made.display()))
    })
}

fn install(environment: &Path, requirements: &Path) -> Result<()> {
    let mut make = invoke::command("python3", ["-m", "venv", "--clear"]);
    invoke::capture(make.arg(environment))?;
    let mut install = Command::new(environment.join("bin/pip"));
    install.args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
    ]);
    invoke::capture(install.args(["--only-binary", ":all:", "--requirement"]).arg(requirements))?;
    Ok(())
}
