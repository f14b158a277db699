//! `mizzen-agent config show|check|reference`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use super::reference;
use crate::{
    config::{self, ConfigError, Environment, Flags, Note, Resolved, resolve},
    dns,
    kube::migration::gone_back::GoneBack,
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
        resolve(self.config.as_deref(), self.flags, Environment::of_process())
    }
}

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A file that would say the same
    Text,
    /// Each value with its origin
    Json,
}

/// `config` and its verbs.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration in force, with the origin of each value
    Show {
        /// Where it is from.
        #[command(flatten)]
        source: Box<Source>,
        /// How to print it
        #[arg(short, long, value_enum, default_value = "text")]
        output: Format,
    },
    /// Say whether a file, or the configuration and the Corefile that it names, is valid
    Check {
        /// A file of the agent's or a KubeProxyConfiguration; without: what `run` would take
        #[arg(value_name = "FILE", exclusive = true)]
        file: Option<PathBuf>,
        /// Where it is from.
        #[command(flatten)]
        source: Box<Source>,
    },
    /// Print docs/configuration.md, or docs/cli.md
    #[command(hide = true)]
    Reference {
        /// That of the command lines
        #[arg(long)]
        command_lines: bool,
        /// The configuration file's JSON schema
        #[arg(long, conflicts_with = "command_lines")]
        schema: bool,
    },
}

impl ConfigCommand {
    /// Does what it says.
    pub fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Show { source, output } => {
                let resolved = source.resolve()?;
                let gone_back = GoneBack::of(&resolved.config);
                match output {
                    Format::Text => {
                        let comment = gone_back.map_or_else(String::new, |kept| kept.comment());
                        print!("{}{comment}", resolved.show());
                    }
                    Format::Json => {
                        let mut shown = resolved.to_json();
                        shown["servicesOfKubeProxy"] = gone_back.map(|kept| kept.words()).into();
                        println!("{shown:#}");
                    }
                }
            }
            Self::Check { file: Some(file), .. } => {
                say_vain(&config::check_file(&file)?);
                println!("{} is valid", file.display());
            }
            Self::Check { file: None, source } => {
                let resolved = source.resolve()?;
                say_vain(&resolved.notes);
                if let Some(gone) = resolved.kube_proxys_is_gone() {
                    eprintln!("degraded: {gone}");
                }
                if let Some(kept) = GoneBack::of(&resolved.config) {
                    eprintln!("degraded: {}", kept.words());
                }
                let role = resolved.config.dns();
                if matches!(role.source, dns::Source::Corefile(_) | dns::Source::Blocks(_)) {
                    for warning in dns::follow::check(&role).map_err(anyhow::Error::msg)? {
                        eprintln!("left out: {warning}");
                    }
                }
                println!("the configuration is valid");
            }
            Self::Reference { command_lines: true, .. } => print!("{}", reference::page()),
            Self::Reference { schema: true, .. } => println!("{:#}", config::schema()),
            Self::Reference { .. } => print!("{}", config::reference_page()),
        }
        Ok(())
    }
}

fn say_vain(notes: &[Note]) {
    for Note { field, why } in notes {
        eprintln!("no effect: {field}: {why}");
    }
}
