//! Files that operators write.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use hickory_proto::rr::Name;
use mizzen_agent::{
    config,
    dns::{
        corefile::{self, Surroundings},
        meaning::Served,
    },
};

/// Where the files are said to be.
const PLACE: &str = "/etc/file";

/// A file, and nothing around it: what it names is itself, or not there.
struct Alone<'a>(&'a str);

impl Surroundings for Alone<'_> {
    fn read(&self, path: &Path) -> io::Result<String> {
        let is_there = path == Path::new(PLACE);
        if is_there { Ok(self.0.to_owned()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
        if pattern == Path::new(PLACE) { vec![pattern.to_owned()] } else { Vec::new() }
    }

    fn variable(&self, name: &str) -> Option<String> {
        (name == "NAME").then(|| "a value { }".to_owned())
    }
}

/// A Corefile.
///
/// # Panics
///
/// Where an error is at a place that the file does not have.
pub(crate) fn corefile(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else { return };
    let served = Served {
        domain: Name::from_ascii("cluster.local.").expect("a name"),
        port: 53,
        addresses: vec![IpAddr::from([10, 96, 0, 10])],
        node_local: vec![IpAddr::from([169, 254, 20, 10])],
        connects_pods: true,
    };
    if let Err(error) = corefile::read(Path::new(PLACE), &served, &Alone(text)) {
        let lines = text.lines().count().max(1);
        assert!((1..=lines).contains(&error.at.line), "{error} of {lines}");
        assert!(error.at.column >= 1, "{error}");
    }
}

/// The agent's configuration, or kube-proxy's.
///
/// # Panics
///
/// Never by itself.
pub(crate) fn agent(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else { return };
    let _refused = config::check_text(text, Path::new(PLACE));
}

/// Those of kubeadm's, k3s' and NodeLocal's clusters, and one with everything.
pub(crate) fn corefiles() -> Vec<Vec<u8>> {
    let texts = [
        include_str!("../../agent/src/dns/corefile/fixtures/kubeadm.Corefile"),
        include_str!("../../agent/src/dns/corefile/fixtures/k3s.Corefile"),
        include_str!("../../agent/src/dns/corefile/fixtures/nodelocal.Corefile"),
        include_str!("../../agent/src/dns/corefile/fixtures/everything.Corefile"),
        "(part) {\n  cache 30\n}\nimport /etc/file\n. {\n  import part\n  log {$NAME}\n}\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// One of ours and one of kube-proxy's.
pub(crate) fn agents() -> Vec<Vec<u8>> {
    let texts = [
        "apiVersion: mizzen.dev/v1alpha1\nkind: AgentConfiguration\nnodeName: node-1\n\
         clusterDns: [10.96.0.10, \"fd00:96::a\"]\npodCidr: [10.244.0.0/16]\ndnsBlocks:\n\
         - forward:\n  - from: corp.example\n    to: [tls://192.0.2.9]\n    tls: {serverName: \
         dns.corp.example}\n  - to: [/etc/resolv.conf]\n  cache: {maxTtl: 60s, serveStale: 1h}\n  \
         rewrite:\n  - name: {match: suffix, from: .corp, to: .corp.example, answerAuto: true}\n  \
         acl:\n  - zones: [corp.example]\n    policies:\n    - {action: block, nets: \
         [10.244.3.0/24]}\n",
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: \
         nftables\nclusterCIDR: 10.244.0.0/16\nnodePortAddresses: [10.0.0.0/8]\nconntrack:\n  \
         maxPerCore: 32768\nnftables:\n  syncPeriod: 30s\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
