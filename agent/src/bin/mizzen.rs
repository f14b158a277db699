//! `mizzen`: the operator's command line.

use std::process::ExitCode;

use clap::Parser;
use mizzen_agent::cli::{inspect::Mizzen, report};

fn main() -> ExitCode {
    match Mizzen::parse().execute() {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            report("mizzen", &error);
            ExitCode::FAILURE
        }
    }
}
