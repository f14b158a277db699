//! The command lines: `mizzen-agent` ([`run`], [`config`], [`ready`], [`live`]) and `mizzen` ([`inspect`], `why`, `check`).

mod bugreport;
mod check;
pub mod config;
mod flows;
pub mod inspect;
pub mod live;
mod log;
mod man;
mod migrate;
pub mod mount_bpffs;
mod names;
mod pod_network;
pub mod ready;
mod reference;
pub mod run;
mod signals;
mod status;
mod traffic;
mod why;

use clap::{Parser, Subcommand};

/// Mizzen's node agent: Services, pod network and DNS of a Kubernetes node.
#[derive(Debug, Parser)]
#[command(name = "mizzen-agent", version, about, max_term_width = 100)]
pub struct Agent {
    /// What to do.
    #[command(subcommand)]
    pub command: AgentCommand,
}

/// The agent's verbs.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Run the agent
    #[command(after_help = run::EXAMPLES)]
    Run(Box<config::Source>),
    /// Say whether the agent of this container serves its node (for probes)
    Ready(ready::Ready),
    /// Say whether an agent, whosever, serves this node and does its work (for probes)
    Live(live::Live),
    /// Mount a bpf file system where there is none (for an init container that may)
    MountBpffs(mount_bpffs::MountBpffs),
    /// Show or check the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
}

impl Agent {
    /// Does what the command line says.
    pub fn execute(self) -> anyhow::Result<()> {
        match self.command {
            AgentCommand::Run(source) => run::run(source.resolve()?.named()?),
            AgentCommand::Ready(ready) => ready.execute(),
            AgentCommand::Live(live) => live.execute(),
            AgentCommand::MountBpffs(mount) => mount.execute(),
            AgentCommand::Config(command) => command.execute(),
        }
    }
}

/// An error and its causes, a line each; a cause that the line before quotes is not repeated.
pub fn report(program: &str, error: &anyhow::Error) {
    let mut said = error.to_string();
    eprintln!("{program}: {said}");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.ends_with(&cause) {
            eprintln!("  because: {cause}");
            said = cause;
        }
    }
}
