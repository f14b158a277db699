//! The real kube-proxy as a contender, where one is in `PATH`.

use anyhow::Result;

use super::{
    contender::{Contender, Seat},
    mizzen,
    triple::{At, PODS, Triple},
    world::World,
};
use crate::cluster::{cgroup, process};

/// Its name in `PATH`.
pub const KUBE_PROXY: &str = "kube-proxy";

/// kube-proxy in its nftables mode. It ends when its rules are there and leaves them, as an agent
/// that is not live does.
#[derive(Clone, Copy, Debug)]
pub struct KubeProxy;

impl Contender for KubeProxy {
    fn label(&self) -> String {
        "kube-proxy (nftables)".into()
    }

    fn settle(&self, world: &World, triple: &Triple, size: u32) -> Result<()> {
        mizzen::register(world, triple)?;
        let (layout, node) = (&triple.layout, &triple.host.name);
        let (range, bits) = PODS;
        let kubeconfig = layout.kubeconfig().display().to_string();
        let cidr = format!("{range}/{bits}");
        let argv = [
            KUBE_PROXY,
            "--proxy-mode",
            "nftables",
            "--kubeconfig",
            &kubeconfig,
            "--hostname-override",
            node,
            "--cluster-cidr",
            &cidr,
            "--bind-address",
            &triple.host.ipv4.to_string(),
        ];
        let spec = process::Spec {
            name: format!("{KUBE_PROXY}-{node}"),
            netns: Some(triple.netns(At::Node)),
            cgroup: cgroup::node_dir(layout, node)?.join(KUBE_PROXY),
            argv: argv.map(str::to_owned).to_vec(),
            env: Vec::new(),
        };
        let proxy = process::ensure(layout, &spec)?;
        Seat { label: self.label(), size, triple: triple.clone() }.await_answer()?;
        process::end(&proxy)
    }
}
