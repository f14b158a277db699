//! The node's own upstreams, as `/etc/resolv.conf` names them. Pure: whoever asks reads the files.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    path::Path,
};

use hickory_proto::rr::Name;

/// The port of name servers in this file.
const PORT: u16 = 53;
/// The stub of systemd-resolved: it listens on the node's loopback for the node alone, and asks
/// whom the other file names.
const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
/// Whom it asks.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// Where the kernel says which number an interface has.
const INTERFACES: &str = "/sys/class/net";

/// The name servers that the file at `path` names, in order and each once; in the place of
/// systemd-resolved's stub those that it asks. `None` where there is no such file.
pub fn name_servers(
    path: &Path,
    read: impl Fn(&Path) -> Option<String>,
) -> Option<Vec<SocketAddr>> {
    let mut all = Vec::new();
    for server in listed(&read(path)?, &read) {
        let servers = if server.ip() == STUB {
            listed(&read(Path::new(BEHIND_STUB)).unwrap_or_default(), &read)
        } else {
            vec![server]
        };
        for server in servers.into_iter().filter(|server| server.ip() != STUB) {
            if !all.contains(&server) {
                all.push(server);
            }
        }
    }
    Some(all)
}

/// The domains in which names are looked for that this text of a `resolv.conf` names: its last
/// line `search` or `domain` counts. What is no domain is left out, and so is the root.
pub fn search_list(text: &str) -> Vec<Name> {
    let list = |line: &str| {
        let mut words = line.split_whitespace();
        ["search", "domain"].contains(&words.next()?).then(|| {
            let names = words.filter_map(|word| Name::from_ascii(word).ok());
            names.filter(|name| name.num_labels() > 0).map(absolute).collect()
        })
    };
    text.lines().filter_map(list).next_back().unwrap_or_default()
}

fn absolute(mut name: Name) -> Name {
    name.set_fqdn(true);
    name
}

fn listed(text: &str, read: &impl Fn(&Path) -> Option<String>) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let word = (words.next() == Some("nameserver")).then(|| words.next()).flatten()?;
        let server = server(word, read);
        if server.is_none() {
            tracing::warn!(
                name_server = word,
                "left out: neither an address nor one with an interface that is there"
            );
        }
        server
    };
    text.lines().filter_map(server).collect()
}

/// The name server that a word names: an address, and where it is link-local the interface behind
/// `%` (RFC 4007 11), by its name or its number.
fn server(word: &str, read: &impl Fn(&Path) -> Option<String>) -> Option<SocketAddr> {
    let Some((address, zone)) = word.split_once('%') else {
        return Some(SocketAddr::new(word.parse().ok()?, PORT));
    };
    let index = zone.parse().ok().or_else(|| {
        let is_name = !zone.is_empty() && !zone.starts_with('.') && !zone.contains('/');
        let path = is_name.then(|| Path::new(INTERFACES).join(zone).join("ifindex"))?;
        read(&path)?.trim().parse().ok()
    })?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(etc: Option<&str>, behind: Option<&str>) -> Option<Vec<String>> {
        let read = |path: &Path| {
            let text = if path == Path::new(BEHIND_STUB) { behind } else { etc };
            text.map(str::to_owned)
        };
        let servers = name_servers(Path::new("/etc/resolv.conf"), read)?;
        Some(servers.iter().map(ToString::to_string).collect())
    }

    fn are(servers: &[&str]) -> Vec<String> {
        servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn name_servers_in_order() {
        let text = "# nameserver 192.0.2.1\nsearch a b\nnameserver 192.0.2.2\nnameserver ::1 # x\n\
                    nameserver 192.0.2.2\n";
        assert_eq!(servers(Some(text), None), Some(are(&["192.0.2.2:53", "[::1]:53"])));
        assert_eq!(servers(None, None), None);
    }

    #[test]
    fn link_local_name_servers_are_behind_an_interface() {
        let text = "nameserver fe80::1%eth0\nnameserver fe80::1%3\nnameserver fe80::1%gone\n\
                    nameserver fe80::1%..\nnameserver 192.0.2.1%eth0\nnameserver fe80::2%br.7\n";
        let read = |path: &Path| match path.to_str()? {
            "/etc/resolv.conf" => Some(text.to_owned()),
            "/sys/class/net/eth0/ifindex" => Some("2\n".to_owned()),
            "/sys/class/net/br.7/ifindex" => Some("9\n".to_owned()),
            _ => None,
        };
        let servers = name_servers(Path::new("/etc/resolv.conf"), read).unwrap();
        let at = |last: u16, zone| {
            let address = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last);
            SocketAddr::from(SocketAddrV6::new(address, PORT, 0, zone))
        };
        assert_eq!(servers, [at(1, 2), at(1, 3), at(2, 9)]);
    }

    #[test]
    fn the_last_search_list_counts() {
        let names = |text: &str| -> Vec<String> {
            search_list(text).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            names("search a.example b.example.\nnameserver ::1"),
            ["a.example.", "b.example."]
        );
        assert_eq!(names("search a\ndomain c.example\n# search d\n"), ["c.example."]);
        assert_eq!(names("search . a..b _x.example\n"), ["_x.example."], "27: any label, no root");
        assert_eq!(names("nameserver ::1\n"), [""; 0]);
    }

    #[test]
    fn dns_66_in_the_place_of_the_stub_are_those_that_it_asks() {
        let stub = "nameserver 127.0.0.53\noptions edns0\n";
        let behind = "nameserver 192.0.2.7\nnameserver 127.0.0.53\n";
        assert_eq!(servers(Some(stub), Some(behind)), Some(are(&["192.0.2.7:53"])));
        assert_eq!(servers(Some(stub), None), Some(are(&[])));
    }
}
