//! What the agent's process needs before anything starts: a log, rights, and file descriptors.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use nix::{
    mount::{MsFlags, mount},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        statvfs::{FsFlags, statvfs},
    },
};

use crate::{config::Config, kube::migration::gone_back::GoneBack, log::Log, status::State};

/// What the agent shows of itself.
pub(super) struct Shown {
    /// The configuration in force, as a file.
    pub(super) config: String,
    /// What it logs.
    pub(super) log: Arc<Log>,
    /// How kube-proxy's configuration is, where one is named.
    pub(super) kube_proxys: Option<State>,
    /// What is kept of it, where services went back to kube-proxy.
    pub(super) gone_back: Option<GoneBack>,
}

/// Logs to standard error from now on.
pub(super) fn start_log(config: &Config) -> anyhow::Result<Log> {
    Log::start(&config.log_filter, &config.log_format).context("--log-filter or RUST_LOG")
}

/// Every role changes the node's kernel state; without the rights for it nothing would work, and
/// each part would say so in its own words.
pub(super) fn check_rights(config: &Config) -> anyhow::Result<()> {
    /// Bit of CAP_NET_ADMIN in capability sets (capability.h).
    const NET_ADMIN: u32 = 12;
    if !(config.services || config.cni || config.dns) {
        return Ok(());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    anyhow::ensure!(
        bits >> NET_ADMIN & 1 == 1,
        "the agent may not change this node's network: run it as root, or with the capabilities \
         NET_ADMIN, SYS_ADMIN, SYS_PTRACE, DAC_READ_SEARCH and NET_BIND_SERVICE"
    );
    Ok(())
}

/// Takes as many descriptors as there may be: service managers start with 1,024 for the sake of
/// programs that use select(2), and a resolver under load has a socket for each question.
pub(super) fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Makes the settings of the kernel writable where a container runtime shows them read-only: in this
/// process' own mount namespace, and so for it alone. On a node they are writable as they are.
pub(super) fn open_sysctls() {
    let place = Path::new("/proc/sys");
    let read_only = statvfs(place).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY));
    if !read_only {
        return;
    }
    let flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC;
    let none = None::<&str>;
    match mount(none, place, none, flags, none) {
        Ok(()) => tracing::debug!("/proc/sys is writable now"),
        // Whoever needs a setting that is otherwise says which.
        Err(error) => tracing::info!(%error, "/proc/sys stays read-only; that takes SYS_ADMIN"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_the_hard_limit_admits() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(512), hard).unwrap();
        raise_descriptor_limit();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
