//! The other servers: each with the same names, one thread, no log, and answers of the least size.
//! Pure: texts of configurations, and command lines.

use std::fmt::Write;

use super::{
    pair::{ADDRESS, CLIENT, UPSTREAM_PORT},
    questions::{self, DOMAIN, SOA, TTL},
};

/// A server from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The reference: names as local data, others forwarded and cached.
    Unbound,
    /// Names as host records.
    Dnsmasq,
    /// BIND, authoritative.
    Named,
    /// Knot DNS, authoritative.
    Knot,
    /// CoreDNS with kubeadm's configuration and a cache, where one is in `PATH`.
    CoreDns,
}

/// A file that a server reads, by its name in the server's folder.
pub type File = (&'static str, String);

impl Peer {
    /// What it is called in the figures.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unbound => "unbound",
            Self::Dnsmasq => "dnsmasq",
            Self::Named => "named",
            Self::Knot => "knot",
            Self::CoreDns => "coredns",
        }
    }

    /// Its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Knot => "knotd",
            other => other.label(),
        }
    }

    /// Its arguments; `folder` has its files.
    pub fn arguments(self, folder: &str) -> Vec<String> {
        let file = |flag: &str, name: &str| vec![flag.to_owned(), format!("{folder}/{name}")];
        let mut arguments = match self {
            Self::Unbound => vec!["-d".to_owned()],
            Self::Dnsmasq => vec!["--keep-in-foreground".to_owned()],
            Self::Named => ["-g", "-n", "1", "-U", "1"].map(str::to_owned).to_vec(),
            Self::Knot | Self::CoreDns => Vec::new(),
        };
        arguments.extend(match self {
            Self::Unbound => file("-c", "unbound.conf"),
            Self::Dnsmasq => vec![format!("--conf-file={folder}/dnsmasq.conf")],
            Self::Named => file("-c", "named.conf"),
            Self::Knot => file("-c", "knot.conf"),
            Self::CoreDns => file("-conf", "Corefile"),
        });
        arguments
    }

    /// Its files; `folder` will have them.
    pub fn files(self, folder: &str, kubeconfig: &str) -> Vec<File> {
        let zone = ("zone", questions::zone_file());
        match self {
            Self::Unbound => vec![("unbound.conf", unbound(folder))],
            Self::Dnsmasq => vec![("dnsmasq.conf", dnsmasq())],
            Self::Named => vec![("named.conf", named(folder)), zone],
            Self::Knot => {
                vec![("knot.conf", knot(folder, &format!("{ADDRESS}@53"), DOMAIN)), zone]
            }
            Self::CoreDns => vec![("Corefile", coredns(kubeconfig))],
        }
    }
}

/// The files of the upstream: Knot again, for names outside.
pub fn upstream_files(folder: &str) -> Vec<File> {
    let listen = format!("{CLIENT}@{UPSTREAM_PORT}");
    vec![("knot.conf", knot(folder, &listen, ".")), ("zone", questions::foreign_zone_file())]
}

fn unbound(folder: &str) -> String {
    let mut text = format!(
        "server:\n  interface: {ADDRESS}\n  access-control: 0.0.0.0/0 allow\n  do-daemonize: no\n  \
         username: \"\"\n  chroot: \"\"\n  directory: \"{folder}\"\n  pidfile: \"\"\n  \
         use-syslog: no\n  verbosity: 0\n  num-threads: 1\n  minimal-responses: yes\n  \
         module-config: \"iterator\"\n  qname-minimisation: no\n  local-zone: \"{DOMAIN}.\" \
         static\n  local-data: \"{DOMAIN}. {TTL} IN SOA {SOA} 1 7200 1800 86400 {TTL}\"\n"
    );
    for (name, address) in questions::services() {
        // Writing to a String can't fail.
        let _ = writeln!(text, "  local-data: \"{name}. {TTL} IN A {address}\"");
    }
    let _ = writeln!(
        text,
        "remote-control:\n  control-enable: no\nforward-zone:\n  name: \".\"\n  forward-addr: \
         {CLIENT}@{UPSTREAM_PORT}"
    );
    text
}

fn dnsmasq() -> String {
    let mut text = format!(
        "listen-address={ADDRESS}\nbind-interfaces\nuser=root\npid-file=\nno-resolv\nno-hosts\n\
         local=/{DOMAIN}/\nlocal-ttl={TTL}\ncache-size=10000\n\
         server={CLIENT}#{UPSTREAM_PORT}\n"
    );
    for (name, address) in questions::services() {
        let _ = writeln!(text, "host-record={name},{address}");
    }
    text
}

fn named(folder: &str) -> String {
    format!(
        "options {{ directory \"{folder}\"; listen-on {{ {ADDRESS}; }}; listen-on-v6 {{ none; }}; \
         pid-file none; session-keyfile none; recursion no; minimal-responses yes; \
         dnssec-validation no; allow-query {{ any; }}; }};\ncontrols {{ }};\nlogging {{ category \
         default {{ null; }}; }};\nzone \"{DOMAIN}\" {{ type primary; file \"zone\"; }};\n"
    )
}

fn knot(folder: &str, listen: &str, zone: &str) -> String {
    format!(
        "server:\n  rundir: {folder}\n  listen: {listen}\n  udp-workers: 1\n  tcp-workers: 1\n  \
         background-workers: 1\nlog:\n - target: stderr\n   any: error\ndatabase:\n  storage: \
         {folder}\ntemplate:\n - id: default\n   storage: {folder}\n   semantic-checks: off\nzone:\n \
         - domain: {zone}\n   file: {folder}/zone\n"
    )
}

/// The Corefile of kubeadm's clusters with a cache, less the ports that nobody asks here.
fn coredns(kubeconfig: &str) -> String {
    format!(
        ".:53 {{\n  bind {ADDRESS}\n  errors\n  kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{\n    \
         kubeconfig {kubeconfig}\n    pods insecure\n    ttl {TTL}\n    fallthrough in-addr.arpa \
         ip6.arpa\n  }}\n  forward . {CLIENT}:{UPSTREAM_PORT}\n  cache 30\n  loadbalance\n}}\n"
    )
}
