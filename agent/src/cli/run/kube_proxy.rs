//! What `mizzen migrate` asks of this node by its Node's label.

use nix::sys::signal::{Signal, raise};

use crate::{
    config::Config,
    kube::{client::ApiServers, migration::node},
    supervisor::Tasks,
};

use super::Shared;

/// Switches services off that went back to kube-proxy; whether they did.
pub(super) fn give_back(config: &mut Config) -> bool {
    let gone_back = config.services && node::went_back(config.data_dir().as_deref());
    config.services &= !gone_back;
    gone_back
}

/// Follows the label.
pub(super) fn start(
    config: &Config,
    shared: &Shared,
    servers: &ApiServers,
    intake: &mut Tasks,
) -> anyhow::Result<()> {
    // Then the configuration asked for services, and this agent has none.
    let gone_back = !config.services && node::went_back(config.data_dir().as_deref());
    let about = node::Config {
        node_name: config.node_name.clone(),
        data_dir: config.data_dir(),
        bpffs: config.bpffs.clone(),
        services: config.services || gone_back,
        gone_back,
        cni: config.cni,
    };
    let (snapshots, board) = (shared.snapshots.calm.clone(), shared.board.clone());
    let task = node::run(about, servers.clients()?, snapshots, board, stop, intake.token());
    intake.spawn("kube-proxy", task);
    Ok(())
}

/// As a supervisor would tell it.
fn stop() {
    if let Err(error) = raise(Signal::SIGTERM) {
        tracing::error!(%error, "can't end this process: start it anew");
    }
}
