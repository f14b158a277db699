//! What a container runtime writes to the plugin.

use mizzen_cni::protocol::{
    conf,
    env::{self, Invocation, Verb},
    prev_result, runtime_config,
};
use serde_json::json;

const VERBS: [&str; 6] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];

/// A network configuration, for every verb.
///
/// # Panics
///
/// Never by itself.
pub(crate) fn stdin(octets: &[u8]) {
    let _none = conf::version_of(octets);
    for verb in VERBS {
        let Some(invocation) = invocation(verb) else { continue };
        let Ok(read) = conf::parse(invocation.verb, octets) else { continue };
        let _addresses = read.prev_addresses();
        let _dns = runtime_config::dns(&read.runtime_config);
        if invocation.verb == Verb::Check {
            let _refused = prev_result::read(&read, &invocation);
        }
        if invocation.verb == Verb::Add {
            let _refused = runtime_config::requested(&read, &invocation);
        }
    }
}

fn invocation(verb: &str) -> Option<Invocation> {
    let variable = |name: &str| {
        let value = match name {
            "CNI_COMMAND" => verb,
            "CNI_CONTAINERID" => "c1",
            "CNI_NETNS" => "/run/netns/c1",
            "CNI_IFNAME" => "eth0",
            "CNI_PATH" => "/opt/cni/bin",
            _ => return None,
        };
        Some(value.to_owned())
    };
    env::parse(variable).ok().flatten()
}

/// What containerd and CRI-O write, with all that we are capable of.
pub(crate) fn stdins() -> Vec<Vec<u8>> {
    let interfaces = json!([{"name": "mz0", "mac": "02:00:00:00:00:01"}, {"name": "eth0"}]);
    let full = json!({
        "cniVersion": "1.1.0", "name": "mizzen", "type": "mizzen-cni", "stateDir": "/run/mizzen",
        "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp",
                "hostIP": "fd00::1"}],
            "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 65_536, "egressRate": 8},
            "ips": ["10.244.1.7/24", "fd00::7"], "mac": "02:00:00:00:00:02",
            "dns": {"servers": ["10.96.0.10"], "searches": ["a"], "options": ["ndots:5"]},
        },
        "args": {"cni": {"ips": ["10.244.1.7"]}},
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
        "prevResult": {"interfaces": interfaces, "ips": [{"address": "10.244.1.7/32",
            "interface": 1, "gateway": "169.254.1.1"}], "routes": [{"dst": "0.0.0.0/0"}]},
    });
    let least = json!({"cniVersion": "0.4.0", "name": "mizzen", "type": "mizzen-cni"});
    vec![full.to_string().into_bytes(), least.to_string().into_bytes()]
}
