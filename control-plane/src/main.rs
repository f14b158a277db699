//! `mizzen-control-plane`: the companion control plane and node part.

use std::{io::IsTerminal as _, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use mizzen_control_plane::{kubeconfig, node, serve};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Mizzen's companion control plane and node part
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Run the control plane: API server, controllers and scheduler
    Serve(serve::Args),
    /// Run the node part: the pods of one node
    Node(node::Args),
    /// Make a kubeconfig for a user, with a certificate of the cluster's CA
    Kubeconfig(kubeconfig::Args),
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
        Command::Kubeconfig(args) => report(kubeconfig::run(&args).map_err(Into::into)),
        Command::Node(args) => report(daemon(|shutdown| node::run(args, shutdown))),
        Command::Serve(args) => report(daemon(|shutdown| serve::run(args, shutdown))),
    }
}

/// Says why a daemon ended, if it failed.
fn report(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a daemon with a logger and a runtime until it ends, or is told to by SIGINT or SIGTERM.
fn daemon<F, E>(run: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<()>
where
    F: Future<Output = Result<(), E>>,
    E: Into<anyhow::Error>,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        stop_on_signals(shutdown.clone()).context("cannot listen for signals")?;
        run(shutdown).await.map_err(Into::into)
    })
}

/// Cancels `shutdown` at SIGINT and SIGTERM.
fn stop_on_signals(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        shutdown.cancel();
    });
    Ok(())
}
