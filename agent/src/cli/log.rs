//! `mizzen log`: what the agent logs, while it runs.

use std::path::Path;

use clap::Subcommand;

use super::inspect::{Format, Outcome, ask, get, question};
use crate::log::Filters;

/// What to do with it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Log {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Log by this filter until the agent ends, or is told otherwise
    Set {
        /// A level, or levels of parts: `debug`, `info,mizzen_agent::dns=debug`
        filter: String,
    },
    /// Log by the configured filter again
    Reset,
    /// Print the last lines
    Tail,
}

impl Log {
    /// Asks the agent.
    pub(super) fn execute(&self, state_dir: &Path, format: Format) -> anyhow::Result<Outcome> {
        let body = match &self.verb {
            None => get(state_dir, "/v1/log")?,
            Some(Verb::Set { filter }) => {
                ask(state_dir, "PUT", &question("/v1/log", &[("filter", filter.clone())]))?
            }
            Some(Verb::Reset) => ask(state_dir, "PUT", "/v1/log")?,
            Some(Verb::Tail) => {
                print!("{}", get(state_dir, "/v1/log/tail")?);
                return Ok(Outcome::Ok);
            }
        };
        if format == Format::Json {
            println!("{body}");
            return Ok(Outcome::Ok);
        }
        let Filters { filter, configured } = serde_json::from_str(&body)?;
        if filter == configured {
            println!("{filter}");
        } else {
            println!("{filter}  (the configuration says {configured})");
        }
        Ok(Outcome::Ok)
    }
}
