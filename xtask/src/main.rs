//! `cargo xtask`: the development commands of Mizzen.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{commands, load};

/// Development commands of Mizzen.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  cargo xtask up                                        a two-node cluster with live traffic
  cargo xtask exec client -- curl -s http://172.30.0.11:30080/
  cargo xtask exec pod/hello-… -- curl -s http://hello.default.svc.cluster.local/
  cargo xtask down                                      removes all of it
  cargo xtask test                                      every test, set-up included";

#[derive(Subcommand, Debug)]
enum Command {
    /// Build, start a cluster in network namespaces, apply the example, check live traffic
    Up(commands::up::Up),
    /// Remove everything that `up` made
    Down,
    /// Run a command where a node, the client or a pod is
    Exec(commands::exec::Exec),
    /// Build the binaries of the product
    Build(commands::build::Build),
    /// Build the container image of the agent
    Image(commands::image::Image),
    /// Run every test, set-up included
    Test(commands::test::Test),
    /// Run the fault tests at full counts
    Soak(commands::soak::Soak),
    /// Search for octets that what reads those of others does not bear
    Fuzz(commands::fuzz::Fuzz),
    /// Check formatting, lints, documentation and the rules of the tree
    Lint(commands::lint::Lint),
    /// Run side-by-side benchmarks and write docs/benchmarks.md
    Bench(commands::bench::Bench),
    /// Make the control plane's tables of API types anew from Kubernetes' Go sources
    Schemas(commands::schemas::Schemas),
    /// Generate or answer load (used by the benchmarks inside pods)
    #[command(hide = true)]
    Load(load::Load),
}

#[expect(clippy::print_stderr, reason = "the error of the command")]
fn main() -> ExitCode {
    if let Some(compiled) = commands::fuzz::compile() {
        return if compiled.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let result = match &Cli::parse().command {
        Command::Up(options) => commands::up::run(options),
        Command::Down => commands::down::run(),
        Command::Exec(options) => commands::exec::run(options),
        Command::Build(options) => commands::build::run(options),
        Command::Image(options) => commands::image::run(options),
        Command::Test(options) => commands::test::run(options),
        Command::Soak(options) => commands::soak::run(options),
        Command::Fuzz(options) => commands::fuzz::run(options),
        Command::Lint(options) => commands::lint::run(options),
        Command::Bench(options) => commands::bench::run(options),
        Command::Schemas(options) => commands::schemas::run(options),
        Command::Load(options) => load::run(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parses(line: &str) -> bool {
        Cli::try_parse_from(["cargo-xtask"].into_iter().chain(line.split(' '))).is_ok()
    }

    #[test]
    fn the_documented_command_lines_are_understood() {
        Cli::command().debug_assert();
        for line in [
            "up",
            "up --nodes 3 --runtime process",
            "down",
            "exec node-1 -- mizzen status",
            "exec client -- curl -s http://172.30.0.11:30080/",
            "exec pod/hello-x -- ip route",
            "test",
            "test -- b27_",
            "bench services --json",
            "bench services --only socket-rr --rounds 2 --debug",
            "soak",
            "soak r01 --seed 7",
            "fuzz",
            "fuzz corefile --seconds 600 --keep",
            "lint",
            "schemas /tmp/go/src",
            "build",
            "build --debug",
            "image",
            "image --debug --json",
        ] {
            assert!(parses(line), "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "up --nodes 0",
            "up --nodes 81",
            "up --runtime docker",
            "exec node-1",
            "exec node-1 --",
            "fuzz --seconds 0",
            "bench services --rounds 0",
        ] {
            assert!(!parses(line), "{line}");
        }
    }
}
