//! The agent's listeners. They are opened before anything is touched: a second agent on a node finds
//! `agent.sock` served, and ends here with the reason. A port that another program has is no such
//! reason: kube-proxy has both until `mizzen migrate` has it end ([`super::ports`]).

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use tokio::net::{UnixListener, UnixStream};

use super::ports::Port;
use crate::{config::Config, handover::GivenPorts};

/// Name of the command line's socket in the state folder.
pub use mizzen_cni::wire::AGENT_SOCKET as SOCKET;

/// The listeners.
#[derive(Debug)]
pub struct Listeners {
    /// None where kube-proxy balances services: load balancers ask it.
    pub(super) health: Option<Port>,
    pub(super) metrics: Port,
    pub(super) admin: UnixListener,
    /// Until then the ports may be those of an agent that leaves.
    pub(super) leaving: Option<Instant>,
}

/// Why a listener can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another agent serves the socket.
    #[error("another agent serves {path}: stop it, or set --state-dir")]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// The address can't be listened on, whoever has the port.
    #[error("listen on {address} for {what}; {flag} sets the address")]
    Tcp {
        /// What is served there.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The socket or its folder can't be made.
    #[error("make {path}; the agent needs root and a writable --state-dir")]
    Socket {
        /// The socket or the folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl ListenError {
    /// Whether somebody is there who may soon have left.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::SocketInUse { .. })
    }
}

impl Listeners {
    /// Opens the socket, and the ports that nobody has; those that were `given` are taken as they
    /// are. Until `leaving` an agent that leaves may have others.
    pub async fn open(
        config: &Config,
        given: &GivenPorts,
        leaving: Option<Instant>,
    ) -> Result<Self, ListenError> {
        let admin = unix(&config.state_dir).await?;
        let (health, metrics) = (config.healthz_bind_address, config.metrics_bind_address);
        let health = if config.services {
            Some(Port::open("health checks", "--healthz-bind-address", health, given).await?)
        } else {
            None
        };
        let metrics = Port::open("metrics", "--metrics-bind-address", metrics, given).await?;
        Ok(Self { health, metrics, admin, leaving })
    }
}

async fn unix(state_dir: &Path) -> Result<UnixListener, ListenError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ListenError::Socket { path, source }
    };
    fs::create_dir_all(state_dir).map_err(failed(state_dir))?;
    let path = state_dir.join(SOCKET);
    if UnixStream::connect(&path).await.is_ok() {
        return Err(ListenError::SocketInUse { path });
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed(&path))?;
    // Until here others could connect; their credentials are checked in any case.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed(&path))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        drop(unix(folder.path()).await.unwrap());
        let live = unix(folder.path()).await.unwrap();
        let mode = fs::metadata(folder.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(unix(folder.path()).await, Err(ListenError::SocketInUse { .. })));
        drop(live);
    }
}
