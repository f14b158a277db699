//! What this agent says to the kernel's netfilter, and hears of it, over netlink: tables of its own
//! in nftables ([`tables`]), the rules that others made ([`ruleset`]), and the connections that were
//! translated by such rules ([`conntrack`]). Rules of `iptables-legacy` are in tables of another kind
//! ([`legacy`]), by socket options. All of it concerns the calling thread's network namespace.
//!
//! No program of netfilter's is called: a node needs neither `nft` nor `iptables`.

pub mod conntrack;
pub mod legacy;
pub mod ruleset;
pub mod tables;
mod wire;

pub use self::wire::TalkError;

/// The protocols that netfilter keeps apart and services have.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Family {
    /// IPv4 (NFPROTO_IPV4).
    #[serde(rename = "ip")]
    Ipv4 = 2,
    /// IPv6 (NFPROTO_IPV6).
    #[serde(rename = "ip6")]
    Ipv6 = 10,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// Its name in nftables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }
}
