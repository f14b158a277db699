//! A pod's /etc/resolv.conf and /etc/hosts.

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::{super::runtime::HostsFile, config, facts::NodeFacts};

/// Name servers that resolvers look at (resolv.conf(5)) and validation admits.
const NAMESERVERS_MAX: usize = 3;
/// Search domains that the API admits.
const SEARCHES_MAX: usize = 32;

/// What a resolv.conf says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ResolvConf {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl ResolvConf {
    fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => conf.nameservers.extend(words.next()),
                // The last of several counts.
                Some("search" | "domain") => conf.searches = words.collect(),
                Some("options") => conf.options.extend(words),
                _ => {}
            }
        }
        conf
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for nameserver in self.nameservers.iter().take(NAMESERVERS_MAX) {
            text.extend(["nameserver ", nameserver, "\n"]);
        }
        let searches = &self.searches[..self.searches.len().min(SEARCHES_MAX)];
        for (name, words) in [("search", searches), ("options", &self.options[..])] {
            if !words.is_empty() {
                text.extend([name, " ", &words.join(" "), "\n"]);
            }
        }
        text
    }
}

/// The text of the pod's /etc/resolv.conf, by its `dnsPolicy` and `dnsConfig`.
pub(super) fn resolv_conf(pod: &Pod, node: &NodeFacts) -> String {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let of_node = ResolvConf::parse(&node.resolv_conf);
    let mut conf = match policy {
        "None" => ResolvConf::default(),
        "ClusterFirst" if config::host_network(pod) => of_node,
        "ClusterFirst" | "ClusterFirstWithHostNet" if !node.cluster_dns.is_empty() => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            let domain = &node.cluster_domain;
            let mut searches =
                vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            append(&mut searches, of_node.searches);
            ResolvConf {
                nameservers: node.cluster_dns.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".to_owned()],
            }
        }
        _ => of_node,
    };
    if let Some(own) = spec.and_then(|spec| spec.dns_config.clone()) {
        append(&mut conf.nameservers, own.nameservers.unwrap_or_default());
        append(&mut conf.searches, own.searches.unwrap_or_default());
        for option in own.options.unwrap_or_default() {
            let name = option.name.unwrap_or_default();
            conf.options.retain(|other| other.split(':').next() != Some(name.as_str()));
            conf.options.push(match option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    conf.text()
}

/// Appends what is not there yet.
fn append(list: &mut Vec<String>, more: Vec<String>) {
    for one in more {
        if !list.contains(&one) {
            list.push(one);
        }
    }
}

/// The pod's /etc/hosts, but for its addresses.
pub(super) fn hosts(pod: &Pod, node: &NodeFacts) -> HostsFile {
    let spec = pod.spec.clone().unwrap_or_default();
    let aliases = spec.host_aliases.clone().unwrap_or_default();
    let aliases =
        aliases.into_iter().map(|alias| (alias.ip, alias.hostnames.unwrap_or_default())).collect();
    if config::host_network(pod) {
        let head = format!("# Kubernetes-managed hosts file (host network).\n{}", node.hosts);
        return HostsFile { head, own_names: Vec::new(), aliases };
    }
    let head = "# Kubernetes-managed hosts file.\n\
                127.0.0.1\tlocalhost\n\
                ::1\tlocalhost ip6-localhost ip6-loopback\n\
                fe00::\tip6-localnet\n\
                fe00::\tip6-mcastprefix\n\
                fe00::1\tip6-allnodes\n\
                fe00::2\tip6-allrouters\n";
    HostsFile { head: head.to_owned(), own_names: own_names(pod, &spec, node), aliases }
}

fn own_names(pod: &Pod, spec: &PodSpec, node: &NodeFacts) -> Vec<String> {
    let hostname = config::hostname(pod);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let full =
        spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty()).map(|subdomain| {
            format!("{hostname}.{subdomain}.{namespace}.svc.{}", node.cluster_domain)
        });
    full.into_iter().chain([hostname]).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::testing, *};

    fn text(spec: serde_json::Value) -> String {
        resolv_conf(&testing::pod(spec), &testing::node())
    }

    const CLUSTER: &str = "nameserver 10.96.0.10\nnameserver fd00:96::a\n\
                           search default.svc.cluster.local svc.cluster.local cluster.local corp\n\
                           options ndots:5\n";
    const OF_NODE: &str = "nameserver 192.0.2.53\nsearch corp\noptions edns0\n";

    #[test]
    fn the_policy_decides_whose_servers_are_asked() {
        assert_eq!(text(json!({})), CLUSTER);
        assert_eq!(text(json!({"dnsPolicy": "ClusterFirst"})), CLUSTER);
        assert_eq!(text(json!({"dnsPolicy": "Default"})), OF_NODE);
        assert_eq!(text(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true})), OF_NODE);
        let with_host = json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true});
        assert_eq!(text(with_host), CLUSTER);
        assert_eq!(text(json!({"dnsPolicy": "None"})), "");
    }

    #[test]
    fn without_a_cluster_dns_the_nodes_servers_are_asked() {
        let node = NodeFacts { cluster_dns: Vec::new(), ..testing::node() };
        assert_eq!(resolv_conf(&testing::pod(json!({})), &node), OF_NODE);
    }

    #[test]
    fn the_pods_own_settings_are_added_and_its_options_win() {
        let own = json!({"dnsPolicy": "ClusterFirst", "dnsConfig": {
            "nameservers": ["192.0.2.1", "10.96.0.10", "192.0.2.2"],
            "searches": ["cluster.local", "own"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}],
        }});
        assert_eq!(
            text(own),
            "nameserver 10.96.0.10\nnameserver fd00:96::a\nnameserver 192.0.2.1\n\
             search default.svc.cluster.local svc.cluster.local cluster.local corp own\n\
             options ndots:2 rotate\n"
        );
    }

    #[test]
    fn hosts_names_the_pod_by_its_subdomain_and_adds_aliases() {
        let pod = testing::pod(json!({"hostname": "db", "subdomain": "sets",
            "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["a", "b"]}]}));
        let text = hosts(&pod, &testing::node()).text(&["10.0.0.9".parse().unwrap()]);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("\n10.0.0.9\tdb.sets.default.svc.cluster.local\tdb\n"), "{text}");
        assert!(text.ends_with("# Entries added by HostAliases.\n192.0.2.7\ta\tb\n"), "{text}");
    }

    #[test]
    fn hosts_with_the_nodes_network_is_the_nodes() {
        let pod = testing::pod(json!({"hostNetwork": true}));
        let text = hosts(&pod, &testing::node()).text(&[]);
        assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n192.0.2.11 node-1\n");
    }
}
