//! The pod network: addresses, links and routes of this node's pods, asked for by the CNI plugin.

pub mod datapath;
pub mod ipam;

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    model::snapshot::Snapshot,
    status::{Board, State},
};
use datapath::PodDatapath;

/// The name of this part on the [`Board`].
pub const PART: &str = "cni";

/// Where the pod network of a node lives. The network namespace is that of the calling thread.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node that this is.
    pub node_name: String,
    /// Holds `cni.sock` and the journals; on tmpfs, as `/run/mizzen` is.
    pub state_dir: PathBuf,
    /// Where the container runtime reads CNI configurations (`/etc/cni/net.d`).
    pub conf_dir: PathBuf,
    /// Where the container runtime finds plugins (`/opt/cni/bin`).
    pub bin_dir: PathBuf,
    /// The plugin's binary that is installed into `bin_dir`; `None`: `mizzen-cni` beside the
    /// agent's own executable.
    pub plugin: Option<PathBuf>,
    /// MTU of the pods' interfaces in bytes; `None`: that of the node's uplink.
    pub mtu: Option<u32>,
}

/// Why the pod network could not start.
#[derive(Debug, thiserror::Error)]
pub enum PodNetError {
    /// A file or folder of the state folder.
    #[error("{operation} {path}; the agent needs root and a writable --state-dir")]
    StateDir {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// Serves the CNI plugin and keeps the routes to other nodes' pods until `cancel`.
///
/// What can heal (no `podCIDRs` yet, no API server, a busy kernel) is reported on the board under
/// [`PART`] and tried again; an error is what only an operator can mend.
pub async fn run(
    config: Config,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    datapath: Arc<dyn PodDatapath>,
    board: Arc<Board>,
    cancel: CancellationToken,
) -> Result<(), PodNetError> {
    let _inputs = (config, snapshots, datapath);
    board.report(PART, State::Waiting("this build has no pod network yet".into()));
    cancel.cancelled().await;
    Ok(())
}
