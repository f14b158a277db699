//! `mizzen-agent`: the node agent.

use std::process::ExitCode;

use clap::Parser;
use mizzen_agent::cli;

fn main() -> ExitCode {
    match cli::Agent::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::report("mizzen-agent", &error);
            ExitCode::FAILURE
        }
    }
}
