//! `mizzen-agent config show|check`.

use std::path::PathBuf;

use clap::Subcommand;

use crate::{
    config::{ConfigError, Flags, Resolved, resolve},
    dns,
};

/// Where the configuration comes from.
#[derive(Clone, Debug, clap::Args)]
pub struct Source {
    /// The configuration file (YAML); every field of it is also a flag, which goes first
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The flags.
    #[command(flatten)]
    pub flags: Flags,
}

impl Source {
    /// The configuration in force.
    pub fn resolve(self) -> Result<Resolved, ConfigError> {
        let node_name = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
        resolve(self.config.as_deref(), self.flags, node_name)
    }
}

/// `config` and its verbs.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration in force, with the origin of each value
    Show(Box<Source>),
    /// Say whether the configuration, and the Corefile that it names, is valid
    Check(Box<Source>),
}

impl ConfigCommand {
    /// Does what it says.
    pub fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Show(source) => print!("{}", source.resolve()?.show()),
            Self::Check(source) => {
                let role = source.resolve()?.config.dns();
                if matches!(role.source, dns::Source::Corefile(_) | dns::Source::Blocks(_)) {
                    for warning in dns::follow::check(&role).map_err(anyhow::Error::msg)? {
                        eprintln!("left out: {warning}");
                    }
                }
                println!("the configuration is valid");
            }
        }
        Ok(())
    }
}
