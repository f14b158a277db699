//! `mizzen-image`: the static program inside our container images.

use std::process::ExitCode;

use clap::Parser;

/// One of Mizzen's own container images
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    args: mizzen_images::Args,
}

fn main() -> ExitCode {
    mizzen_images::main(&Cli::parse().args)
}
