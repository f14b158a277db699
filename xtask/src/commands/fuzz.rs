//! `cargo xtask fuzz`: a search for octets that what reads those of others does not bear.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    checkout, invoke,
    product::{self, Profile},
    step::{note, step},
    target_dir,
    toolchain::{self, FUZZ_TOOLS},
};

/// What is searched.
const TARGETS: &[&str] = &[
    "dns-question",
    "dns-answer",
    "dns-cache",
    "corefile",
    "agent-config",
    "cni-stdin",
    "packet",
    "store-log",
];

/// Has the compiler count which ways are gone, as libFuzzer reads it. Without a sanitizer of
/// memory, which only the nightly compiler has, what is found are panics, and what targets assert.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// The variable that says that cargo called this program as a compiler.
const AS_COMPILER: &str = "MIZZEN_FUZZ_COMPILES";

/// Octets at most. Those that operators write are longer than those that come by the network.
const LENGTH_MAX: &str = "4096";

/// Options of `fuzz`.
#[derive(Args, Debug)]
pub struct Fuzz {
    /// What to search; without it all, one after another
    target: Option<String>,
    /// For how many seconds each
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Then keep what goes ways of its own in `fuzz/corpus`, which `cargo xtask test` calls with
    #[arg(long)]
    keep: bool,
}

/// Builds the targets, and searches each.
pub fn run(options: &Fuzz) -> Result<()> {
    let wanted: Vec<&str> = match options.target.as_deref() {
        None => TARGETS.to_vec(),
        Some(name) if TARGETS.contains(&name) => vec![name],
        Some(name) => bail!("{name} is no target; there are {}", TARGETS.join(", ")),
    };
    toolchain::ensure_tools(toolchain::BUILD_TOOLS)?;
    toolchain::ensure_tools(FUZZ_TOOLS)?;
    let program = step("building the targets", build)?;
    for name in wanted {
        step(name, || search(&program, name, options))?;
    }
    Ok(())
}

/// Has cargo call this program in the place of the compiler for Mizzen's own packages, so that these
/// alone are compiled anew ([`compile`]).
fn build() -> Result<PathBuf> {
    let mut command = product::cargo();
    command
        .args(["build", "-p", "mizzen-fuzz", "--features", "libfuzzer"])
        .env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?)
        .env(AS_COMPILER, "1");
    invoke::run(&mut command)?;
    Ok(product::bin_dir(Profile::Debug).join("mizzen-fuzz"))
}

/// Where cargo called this program so: compiles, and gives how that ended. Programs that run while
/// others are built are compiled as they are: there is nobody who would take the counts.
pub fn compile() -> Option<Result<()>> {
    std::env::var_os(AS_COMPILER)?;
    let mut words = std::env::args_os().skip(1);
    let mut compiler = Command::new(words.next()?);
    let words: Vec<_> = words.collect();
    let is_script = words.iter().any(|word| word == "build_script_build");
    let is_ours = words.iter().any(|word| word == "--crate-name") && !is_script;
    compiler.args(words).args(FLAGS.iter().filter(|_| is_ours));
    Some(invoke::run(&mut compiler))
}

fn search(program: &Path, name: &str, options: &Fuzz) -> Result<()> {
    let work = target_dir().join("fuzz/found").join(name);
    let (seeds, found) = (work.join("seeds"), work.join("corpus"));
    let kept = checkout().join("fuzz/corpus").join(name);
    for folder in [&seeds, &found, &kept] {
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    }
    let start = |args: &[String]| {
        let mut command = invoke::command(&program.display().to_string(), args);
        command.env("MIZZEN_FUZZ", name).env("MIZZEN_FUZZ_SEEDS", &seeds);
        invoke::run(&mut command)
    };
    let path = |folder: &Path| folder.display().to_string();
    let length = format!("-max_len={LENGTH_MAX}");
    start(&[
        format!("-max_total_time={}", options.seconds),
        length.clone(),
        "-verbosity=0".to_owned(),
        "-print_final_stats=1".to_owned(),
        // Where what is found wrong is put.
        format!("-artifact_prefix={}/", path(&work)),
        path(&found),
        path(&kept),
        path(&seeds),
    ])
    .with_context(|| format!("{name}: what it failed on is in {}", work.display()))?;
    if options.keep {
        start(&["-merge=1".to_owned(), length, path(&kept), path(&found)])?;
        note(&format!("{} is kept", kept.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_are_those_of_the_package() {
        let text = fs::read_to_string(checkout().join("fuzz/src/lib.rs")).expect("its text");
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Target { name: \"")?.split('"').next());
        assert_eq!(names.collect::<Vec<_>>(), TARGETS);
    }
}
