//! Keeps the kernel's connection tracking away from the resolver's addresses: a table of our own in
//! nftables says "notrack" to what is sent to them and what they answer, before connection tracking
//! sees it. Where the kernel has no connection tracking there is no table (ADR 20).
//!
//! Each rule bears a comment that says what it is, so that a list of the rules shows whether all
//! are there, to us and to whoever reads `nft list ruleset`.

use std::{collections::BTreeSet, io, net::IpAddr, path::Path};

use crate::netfilter::{
    Family, TalkError,
    tables::{Base, Expression, Hook, Kind, NfTables, Rule, Table},
};

/// The table's name, one for each family.
pub const TABLE: &str = "mizzen-dns";
/// Before connection tracking (-200), behind the defragmentation that it needs (-400).
const PRIORITY: i32 = -300;
/// What a kernel with connection tracking has, in each network namespace.
const TRACKING: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// The chains that the kernel enters: what arrives, and what this node sends.
const ARRIVING: &str = "prerouting";
const SENT: &str = "output";
/// Those to which they lead: by the port that is asked, and that answers.
const ASKED: &str = "to-resolver";
const ANSWERED: &str = "from-resolver";

/// Why connections to the resolver may be tracked.
#[derive(Debug, thiserror::Error)]
#[error(
    "{operation} the nftables table {TABLE}, which keeps connection tracking away from cluster DNS and \
     needs the capability CAP_NET_ADMIN and a kernel with nf_tables: {source}"
)]
pub struct UntrackedError {
    operation: &'static str,
    source: TalkError,
}

/// What is not tracked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Untracked {
    addresses: BTreeSet<IpAddr>,
    /// Ports of datagrams and of connections, by the names of their protocols.
    ports: BTreeSet<(Transport, u16)>,
}

/// A transport's number in IP headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Transport {
    Tcp = 6,
    Udp = 17,
}

impl Untracked {
    /// UDP and TCP at `port` of the addresses, and TCP at the port for TLS, where there is one.
    pub fn new(addresses: BTreeSet<IpAddr>, port: u16, tls: Option<u16>) -> Self {
        let mut ports: BTreeSet<_> = [(Transport::Udp, port), (Transport::Tcp, port)].into();
        ports.extend(tls.map(|port| (Transport::Tcp, port)));
        Self { addresses, ports }
    }

    /// The table of a family; without rules where nothing is to be kept away.
    fn table(&self, family: Family) -> Table {
        let addresses: Vec<_> = self
            .addresses
            .iter()
            .filter(|address| address.is_ipv6() == (family == Family::Ipv6))
            .collect();
        let mut rules = Vec::new();
        // A packet of others is compared with the addresses alone. One from the node itself may have
        // the address at both ends: what is no question then is looked at as an answer. Such an answer
        // arrives that another node's resolver gave (ADR 45).
        let ways = [(ARRIVING, true), (ARRIVING, false), (SENT, true), (SENT, false)];
        for (chain, to_them) in ways {
            rules.extend(addresses.iter().map(|address| Rule {
                chain,
                expressions: vec![
                    Expression::address(**address, to_them),
                    Expression::Jump(if to_them { ASKED } else { ANSWERED }),
                ],
                comment: format!("{} {address}", if to_them { "to" } else { "from" }),
            }));
        }
        for (chain, to_them) in [(ASKED, true), (ANSWERED, false)] {
            rules.extend(self.ports.iter().map(|(transport, port)| Rule {
                chain,
                expressions: vec![
                    Expression::Protocol(*transport as u8),
                    Expression::port(*port, to_them),
                    Expression::NoTrack,
                ],
                comment: format!("{transport:?} {port}").to_lowercase(),
            }));
        }
        if addresses.is_empty() {
            rules.clear();
        }
        let base = |chain, hook| Base { chain, hook, priority: PRIORITY, kind: Kind::Filter };
        let hooks = vec![base(ARRIVING, Hook::Prerouting), base(SENT, Hook::LocalOut)];
        Table { family, name: TABLE, hooks, chains: vec![ASKED, ANSWERED], rules }
    }
}

/// Has this network namespace keep exactly `wanted` untracked, as far as the table is ours; nothing
/// where `wanted` has no address, or the kernel no connection tracking. Idempotent: what is in
/// order is only looked at.
pub async fn hold(wanted: Untracked) -> Result<(), UntrackedError> {
    let held = tokio::task::spawn_blocking(move || {
        if Path::new(TRACKING).exists() { talk(&wanted) } else { Ok(()) }
    });
    held.await.unwrap_or_else(|error| {
        let source = io::Error::other(error).into();
        Err(UntrackedError { operation: "look at", source })
    })
}

fn talk(wanted: &Untracked) -> Result<(), UntrackedError> {
    let error = |operation| move |source| UntrackedError { operation, source };
    let mut kernel = NfTables::open().map_err(|source| error("look at")(source.into()))?;
    for table in Family::ALL.map(|family| wanted.table(family)) {
        let there = match kernel.rules(&table) {
            Ok(there) => there,
            // A kernel without nf_tables has no table to remove.
            Err(source) if source.is_unsupported() && table.rules.is_empty() => continue,
            Err(source) => return Err(error("look at")(source)),
        };
        let wanted = table.rules.iter().map(|rule| (rule.chain.to_owned(), rule.comment.clone()));
        if there == wanted.collect::<Vec<_>>() {
            continue;
        }
        if table.rules.is_empty() {
            kernel.remove(&table).map_err(error("remove"))?;
        } else {
            kernel.replace(&table).map_err(error("write"))?;
        }
        tracing::debug!(
            family = table.family.name(),
            rules = table.rules.len(),
            "nftables table changed"
        );
    }
    Ok(())
}
