//! The agent's listeners. They are opened before anything is touched: a second agent on a node
//! then ends here, with the reason.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::config::Config;

/// Name of the command line's socket in the state folder.
pub use mizzen_cni::wire::AGENT_SOCKET as SOCKET;

/// The open listeners.
#[derive(Debug)]
pub struct Listeners {
    pub(super) health: TcpListener,
    pub(super) metrics: TcpListener,
    pub(super) admin: UnixListener,
}

/// Why a listener can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Someone has the port.
    #[error(
        "port {} of {} is in use, which is for {what}: stop the other agent or kube-proxy on this \
         node, or set {flag}",
        address.port(), address.ip()
    )]
    PortInUse {
        /// What is served there.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
    },
    /// Another agent serves the socket.
    #[error("another agent serves {path}: stop it, or set --state-dir")]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// The address can't be listened on.
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
        matches!(self, Self::PortInUse { .. } | Self::SocketInUse { .. })
    }
}

impl Listeners {
    /// Opens all of them.
    pub async fn open(config: &Config) -> Result<Self, ListenError> {
        let health = config.healthz_bind_address;
        let metrics = config.metrics_bind_address;
        Ok(Self {
            health: tcp(health, "health checks", "--healthz-bind-address").await?,
            metrics: tcp(metrics, "metrics", "--metrics-bind-address").await?,
            admin: unix(&config.state_dir).await?,
        })
    }
}

async fn tcp(
    address: SocketAddr,
    what: &'static str,
    flag: &'static str,
) -> Result<TcpListener, ListenError> {
    let mut bound = TcpListener::bind(address).await;
    let no_ipv6 = |error: &io::Error| error.raw_os_error() == Some(libc::EAFNOSUPPORT);
    if address.ip().is_unspecified() && bound.as_ref().is_err_and(no_ipv6) {
        // A kernel without IPv6: all addresses are those of IPv4.
        bound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::PortInUse { what, address, flag },
        _ => ListenError::Tcp { what, address, flag, source },
    })
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
    async fn a_port_in_use_is_named_with_the_remedy() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = tcp(address, "metrics", "--metrics-bind-address").await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&address.port().to_string()), "{text}");
        assert!(text.contains("--metrics-bind-address"), "{text}");
    }

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
