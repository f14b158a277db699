//! What `mizzen migrate` asks of this node by its Node's label, and the configuration that kube-proxy
//! had.

use nix::sys::signal::{Signal, raise};

use crate::{
    config::{Config, Resolved},
    kube::{
        client::ApiServers,
        migration::{gone_back::GoneBack, names, node},
    },
    status::State,
    supervisor::Tasks,
};

use super::Shared;

/// The part on the board for kube-proxy's configuration.
const CONFIGURATION: &str = "kube-proxy-config";

/// Keeps kube-proxy's configuration, where one is named, and says how it is.
pub(super) fn keep_configuration(resolved: &Resolved) -> Option<State> {
    if resolved.config.kube_proxy_config.as_os_str().is_empty() {
        return None;
    }
    if let Some(gone) = resolved.kube_proxys_is_gone() {
        return Some(State::Degraded(gone));
    }
    Some(match resolved.keep_kube_proxys() {
        Ok(()) => State::Ready,
        Err(error) => State::Degraded(format!(
            "keep a copy of kube-proxy's configuration below --data-dir, for when its ConfigMap is \
             gone: {error}"
        )),
    })
}

/// Switches services off that went back to kube-proxy; what is kept of it where they did.
pub(super) fn give_back(config: &mut Config) -> Option<GoneBack> {
    let gone_back = GoneBack::of(config);
    config.services &= gone_back.is_none();
    gone_back
}

/// Says how kube-proxy's configuration is, where one is named, and follows the label. Where services
/// went back to kube-proxy, the configuration asked for them, and this agent has none.
pub(super) fn start(
    config: &Config,
    (configuration, gone_back): (Option<State>, Option<GoneBack>),
    shared: &Shared,
    servers: &ApiServers,
    intake: &mut Tasks,
) -> anyhow::Result<()> {
    if let Some(state) = configuration {
        shared.board.report(CONFIGURATION, state);
    }
    let about = node::Config {
        node_name: config.node_name.clone(),
        data_dir: config.data_dir(),
        bpffs: config.bpffs.clone(),
        services: config.services || gone_back.is_some(),
        gone_back,
        cni: config.cni,
    };
    let (snapshots, board) = (shared.snapshots.calm.clone(), shared.board.clone());
    let task = node::run(about, servers.clients()?, snapshots, board, stop, intake.token());
    intake.spawn("kube-proxy", task);
    let dns = config.dns();
    let listeners = dns.cluster_addresses.iter().map(|ip| (*ip, dns.port).into());
    let about = names::Config {
        node_name: config.node_name.clone(),
        listeners: if config.dns { listeners.collect() } else { Vec::new() },
        domain: config.cluster_domain.clone(),
    };
    let (snapshots, board) = (shared.snapshots.calm.clone(), shared.board.clone());
    let task = names::run(about, servers.clients()?, snapshots, board, intake.token());
    intake.spawn("names asked for", task);
    Ok(())
}

/// As a supervisor would tell it.
fn stop() {
    if let Err(error) = raise(Signal::SIGTERM) {
        tracing::error!(%error, "can't end this process: start it anew");
    }
}
