//! `mizzen-agent live`: whether an agent serves this node and does its work, whosever it is.
//!
//! A container whose agent was relieved rests, and is alive for as long as the one that goes on is:
//! when nobody serves the node any more, the rest ends, for its supervisor starts it anew. Asked over
//! `agent.sock`, since the ports may be kube-proxy's.

use std::path::PathBuf;

use anyhow::ensure;

use super::ready::{ask, connect};

/// What an agent that is stuck answers.
const STUCK: u16 = 503;

/// Options of `live`.
#[derive(Debug, clap::Args)]
pub struct Live {
    /// The agent's state folder
    #[arg(long, default_value = "/run/mizzen")]
    state_dir: PathBuf,
}

impl Live {
    /// An error where no agent answers, or one does that is stuck.
    pub fn execute(self) -> anyhow::Result<()> {
        // One of an earlier version does not know the question; it answers.
        let (code, said) = ask(connect(&self.state_dir)?, "/v1/live")?;
        ensure!(
            code != STUCK,
            "changes have not got into the tables for a minute, see `mizzen status`: {said}"
        );
        Ok(())
    }
}
