//! `cargo xtask soak`: the fault tests at full counts.

use anyhow::Result;
use clap::Args;

use super::test;
use crate::{
    invoke,
    preemption::Preemption,
    product,
    step::{note, step},
};

/// Options of `soak`.
#[derive(Args, Debug)]
pub struct Soak {
    /// Begins the chances with this number; a failure names the one that it had
    #[arg(long)]
    seed: Option<u64>,
    /// Only the tests whose names hold this
    filter: Option<String>,
}

/// Where fault tests are: package, test binary, and how it is run.
const BINARIES: [(&str, &str, &[&str]); 4] = [
    ("mizzen-tests", "suite", &["--test-threads=1", "--nocapture"]),
    ("mizzen-tests", "cluster", &["--nocapture"]),
    ("mizzen-control-plane", "reliability", &["--test-threads=1", "--nocapture"]),
    ("mizzen-control-plane", "api", &["--test-threads=1", "--nocapture"]),
];

/// Says which kernel it is that shows that readers are never led astray.
fn tell(preemption: &Preemption) {
    note(&format!("the kernel's preemption model: {preemption}"));
    if !preemption.is_preemptible() {
        note("no task takes another's place in a program of it: for R7 boot with preempt=full");
    }
}

/// Runs the tests whose names or modules say `soak`, one after another, with twenty times the
/// counts that `cargo xtask test` gives them.
pub fn run(options: &Soak) -> Result<()> {
    test::prepare("`cargo xtask soak`")?;
    note("this takes about two hours; `cargo xtask test` runs a twentieth");
    tell(&Preemption::of_kernel());
    let filter = options.filter.as_deref().unwrap_or("soak");
    for (package, name, flags) in BINARIES {
        step(&format!("soaking: {name}"), || {
            let mut command = product::cargo();
            command.args(["test", "--package", package, "--test", name, "--", filter]);
            command.args(flags).env("MIZZEN_SOAK", "full");
            if let Some(seed) = options.seed {
                command.env("MIZZEN_SOAK_SEED", seed.to_string());
            }
            invoke::run(&mut command)
        })?;
    }
    Ok(())
}
