//! `cargo xtask test`: every test, set-up included.

use anyhow::Result;
use clap::Args;

use crate::{
    product::{self, Profile},
    python,
    step::{note, step},
    toolchain,
};

/// Options of `test`.
#[derive(Args, Debug)]
pub struct Test {
    /// Handed to the test runner: names, flags
    #[arg(last = true)]
    filter: Vec<String>,
}

/// Builds what the tests start, then runs unit, property, scenario, namespace and cluster tests.
pub fn run(options: &Test) -> Result<()> {
    prepare("`cargo xtask test`")?;
    let cargo_test = |args: &[&str]| {
        let mut command = product::cargo();
        command.arg("test").args(args);
        command
    };
    step("building the tests", || crate::invoke::run(&mut cargo_test(&["--no-run"])))?;
    step("running the tests", || {
        let mut command = cargo_test(&["--no-fail-fast", "--"]);
        crate::invoke::run(command.args(&options.filter))
    })
}

/// Makes sure that the machine has what tests need, and builds what they start.
pub(super) fn prepare(command: &str) -> Result<()> {
    toolchain::require_root(command)?;
    toolchain::ensure_tools(toolchain::CLUSTER_TOOLS)?;
    toolchain::ensure_tools(toolchain::TEST_TOOLS)?;
    if let Err(error) = python::ensure_environment() {
        note(&format!(
            "Python packages can't be had, and the tests with them will fail: {error:#}"
        ));
    }
    product::build(Profile::Debug)?;
    product::build_images(Profile::Debug)?;
    product::build_node_image(Profile::Debug).map(drop)
}
