//! A file per command.

pub mod bench;
pub mod build;
pub mod down;
pub mod exec;
pub mod fuzz;
pub mod image;
pub mod lint;
pub mod schemas;
pub mod soak;
pub mod test;
pub mod up;

use crate::{
    cluster::{Layout, Runtime},
    product::{self, Profile},
    target_dir,
};

/// The user's cluster, as `up` makes it.
pub fn users_cluster(nodes: u32, runtime: Runtime, profile: Profile) -> Layout {
    Layout {
        name: "up".into(),
        subnet: (30, 0),
        nodes,
        runtime,
        dir: target_dir().join("cluster"),
        bin_dir: product::bin_dir(profile),
        loopback_api: true,
    }
}

/// The user's cluster as it was started: how many nodes it has is read from its namespaces.
pub fn running_cluster() -> Layout {
    let mut layout =
        users_cluster(crate::cluster::layout::NODES_MAX, Runtime::Process, Profile::Release);
    layout.recall_binaries();
    let hosts = layout.node_hosts();
    let there = hosts.iter().filter(|host| crate::cluster::network::netns_exists(&host.netns));
    layout.nodes = u32::try_from(there.count()).unwrap_or(0);
    layout
}
