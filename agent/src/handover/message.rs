//! What the agents say to each other. Fields that one does not know it passes over; what changes a
//! meaning needs another version.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Message {
    /// The new agent: who asks.
    Hello {
        /// The versions of the protocol that it speaks.
        versions: Vec<u32>,
        /// Its own version.
        agent: String,
        /// Its process.
        pid: u32,
        /// The Node object's name.
        node: String,
        /// The folder of pins.
        bpffs: PathBuf,
        /// Whether it takes the ports of health and metrics too.
        #[serde(default)]
        takes_ports: bool,
    },
    /// The running agent: what there is.
    Offer {
        /// The version that is spoken from here on.
        version: u32,
        /// Its own version.
        agent: String,
        /// Its process.
        pid: u32,
        /// So many descriptors of DNS follow.
        sockets: usize,
        /// And then so many of the ports of health and metrics.
        #[serde(default)]
        ports: usize,
    },
    /// The running agent: it goes on alone.
    Refusal {
        /// Why.
        why: String,
    },
    /// Descriptors of listening sockets come with this.
    Sockets {
        /// So many.
        count: usize,
    },
    /// The new agent: it answers.
    Serving,
    /// The running agent, told to stop before the new one serves: it stops answering now.
    Leaving,
    /// The descriptor of a client's connection comes with this; nothing of it has been read that was
    /// not answered.
    Connection,
}

impl Message {
    /// How many descriptors come with it.
    pub(super) fn descriptors(&self) -> usize {
        match self {
            Self::Sockets { count } => *count,
            Self::Connection => 1,
            _ => 0,
        }
    }
}
