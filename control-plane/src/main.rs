//! `mizzen-control-plane`: the companion control plane and node part.

use std::process::ExitCode;

use clap::Parser;
use mizzen_control_plane::node;

/// Mizzen's companion control plane and node part
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Run one of the process runtime's own images
    Image(node::image::Args),
    /// Make or be a pod's sandbox
    #[command(hide = true)]
    Sandbox(node::sandbox::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        // Before there is any thread or logger.
        Command::Sandbox(args) => node::sandbox::main(&args),
        Command::Image(args) => node::image::main(&args),
    }
}
