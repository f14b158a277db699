//! What NodeLocal DNSCache's manifest leaves to be filled in: three words by whoever applies it, and
//! two by node-cache when it begins. Here the agent is both that cache and cluster DNS, and fills in
//! all five, so that the manifest's Corefile can be used as it is.

use std::net::{IpAddr, SocketAddr};

use super::{Block, Directive, Served, Word};

/// What all of them begin with.
const MARK: &str = "__PILLAR__";
/// The node's own upstreams.
const UPSTREAMS: &str = "/etc/resolv.conf";

/// `blocks` with these words filled in. What stands for an address that the agent does not have
/// stays as it is.
pub(super) fn filled(blocks: &[Block], served: &Served) -> Vec<Block> {
    let values = values(served);
    let mut blocks = blocks.to_vec();
    for block in &mut blocks {
        block.keys.iter_mut().for_each(|word| fill(word, &values));
        fill_all(&mut block.directives, &values);
    }
    blocks
}

fn fill_all(directives: &mut [Directive], values: &[(&str, String)]) {
    for directive in directives {
        fill(&mut directive.name, values);
        directive.arguments.iter_mut().for_each(|word| fill(word, values));
        // No deeper than braces go.
        fill_all(&mut directive.body, values);
    }
}

fn fill(word: &mut Word, values: &[(&str, String)]) {
    if !word.text.contains(MARK) {
        return;
    }
    for (name, value) in values {
        word.text = word.text.replace(name, value);
    }
}

/// The words, and what they mean; the longer of two with one beginning first.
fn values(served: &Served) -> Vec<(&'static str, String)> {
    let own = served.node_local.iter();
    // One word can't be two addresses: IPv4, as in the manifest, where there is one.
    let own = own.min_by_key(|address| address.is_ipv6());
    let cluster = served.addresses.iter().find(|address| !served.node_local.contains(address));
    let mut values = vec![
        ("__PILLAR__DNS__DOMAIN__", served.domain.to_string()),
        ("__PILLAR__UPSTREAM__SERVERS__", UPSTREAMS.to_owned()),
    ];
    if let Some(own) = own.or(cluster) {
        values.push(("__PILLAR__LOCAL__DNS__:", before_a_port(*own)));
        values.push(("__PILLAR__LOCAL__DNS__", own.to_string()));
    }
    if let Some(cluster) = cluster.or(own) {
        values.push(("__PILLAR__DNS__SERVER__", cluster.to_string()));
        // With the port at which the agent answers: whoever is asked there is the agent itself.
        let itself = SocketAddr::new(*cluster, served.port);
        values.push(("__PILLAR__CLUSTER__DNS__", itself.to_string()));
    }
    values
}

fn before_a_port(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:"),
        IpAddr::V6(address) => format!("[{address}]:"),
    }
}
