//! The hidden subcommand `sandbox`: our own binary as the processes that make and hold a pod.

use std::{os::fd::RawFd, path::PathBuf, process::ExitCode};

use super::{init, launch};

/// `mizzen-control-plane sandbox …`, started by the node part only.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    stage: Stage,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Stage {
    /// Make the namespaces of a sandbox and start its init
    Launch {
        /// The sandbox's folder
        #[arg(long)]
        dir: PathBuf,
    },
    /// Be the init of a sandbox
    Init {
        /// The sandbox's folder
        #[arg(long)]
        dir: PathBuf,
        /// The machine's mount namespace, an inherited descriptor
        #[arg(long)]
        machine: RawFd,
    },
}

/// Runs the stage. Must be called before any thread is started, and without a logger: what goes
/// wrong is one line on standard error, which the caller reads.
pub fn main(args: &Args) -> ExitCode {
    let outcome = match &args.stage {
        Stage::Launch { dir } => launch::main(dir),
        Stage::Init { dir, machine } => init::main(dir, *machine),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
