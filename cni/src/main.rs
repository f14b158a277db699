//! The plugin's entry: results and errors as JSON on standard output, all else on standard error.

use std::{io::Write, process::ExitCode, time::Instant};

use mizzen_cni::{
    plugin::{self, Start, TIME_LIMIT},
    protocol::{Version, env, error::CniError, supported_list},
};
use serde_json::Value;

fn main() -> ExitCode {
    let start = Start::until(Instant::now() + TIME_LIMIT);
    let invocation = match env::parse(|name| std::env::var(name).ok()) {
        Ok(Some(invocation)) => invocation,
        Ok(None) => {
            eprintln!(
                "mizzen-cni {}: CNI plugin of Mizzen, called by container runtimes\n\
                 CNI protocol versions supported: {}",
                env!("CARGO_PKG_VERSION"),
                supported_list()
            );
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(Version::V1_1_0, &error),
    };
    let stdin = match plugin::read_stdin(start.deadline) {
        Ok(stdin) => stdin,
        Err(error) => return fail(Version::V1_1_0, &error),
    };
    match plugin::run(&invocation, &stdin, start) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => print(&result, ExitCode::SUCCESS),
        Err((version, error)) => fail(version, &error),
    }
}

fn fail(version: Version, error: &CniError) -> ExitCode {
    print(&error.render(version), ExitCode::FAILURE)
}

fn print(value: &Value, exit_code: ExitCode) -> ExitCode {
    match writeln!(std::io::stdout(), "{value}") {
        Ok(()) => exit_code,
        Err(error) => {
            eprintln!("mizzen-cni: write the result: {error}");
            ExitCode::FAILURE
        }
    }
}
