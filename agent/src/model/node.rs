//! Nodes: their addresses and the ranges of their pods.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

/// A range of addresses; `address` has no host bits set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// The network address.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix_len: u8,
}

impl Cidr {
    /// The range of `prefix_len` bits that holds `address`; `None` where the length is too long
    /// for the family.
    pub fn holding(address: IpAddr, prefix_len: u8) -> Option<Self> {
        let width = width(address);
        let host_bits = width.checked_sub(prefix_len)?;
        let mask = u128::MAX.checked_shl(host_bits.into()).unwrap_or(0);
        Some(Self { address: from_bits(to_bits(address) & mask, address), prefix_len })
    }

    /// Whether `address` lies inside; never for the other family.
    pub fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && Self::holding(address, self.prefix_len) == Some(self)
    }

    /// How many bits count the addresses inside.
    pub fn host_bits(self) -> u8 {
        width(self.address).saturating_sub(self.prefix_len)
    }

    /// The address that is `offset` above the network address.
    pub fn address_at(self, offset: u128) -> IpAddr {
        from_bits(to_bits(self.address) + offset, self.address)
    }

    /// How far `address`, which lies inside, is above the network address.
    pub fn offset_of(self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| to_bits(address) - to_bits(self.address))
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address with these bits, of the family of `like`.
fn from_bits(bits: u128, like: IpAddr) -> IpAddr {
    match like {
        #[expect(clippy::cast_possible_truncation, reason = "an IPv4 address has 32 bits")]
        IpAddr::V4(_) => IpAddr::V4((bits as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(bits.into()),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// A text that is no range of addresses.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no CIDR, such as 10.244.1.0/24 or fd00:244:1::/64")]
pub struct ParseCidrError(String);

impl FromStr for Cidr {
    type Err = ParseCidrError;

    /// Accepts set host bits, as Kubernetes does, and clears them.
    fn from_str(text: &str) -> Result<Self, ParseCidrError> {
        let parsed = text.split_once('/').and_then(|(address, prefix_len)| {
            Self::holding(address.parse().ok()?, prefix_len.parse().ok()?)
        });
        parsed.ok_or_else(|| ParseCidrError(text.to_owned()))
    }
}

/// A Node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// `status.addresses` of type InternalIP, in order; the first of a family is the primary. Those
    /// of type ExternalIP where a family has none.
    pub internal_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<Cidr>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Whether load balancers shall look for other nodes: the node is being deleted, or has the
    /// taint `ToBeDeletedByClusterAutoscaler` (KEP-3836).
    pub to_be_deleted: bool,
    /// Where its services are on their way from kube-proxy to Mizzen, or back.
    pub kube_proxy: Option<KubeProxy>,
    /// The number by which it is asked whether its agent answers names, where it is.
    pub names_asked: Option<u64>,
}

/// How far a node is on its way from kube-proxy to Mizzen, and back: the value of its label
/// `mizzen.dev/kube-proxy`, which `mizzen migrate` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KubeProxy {
    /// kube-proxy serves, and Mizzen is to serve beside it.
    Runs,
    /// Mizzen serves; kube-proxy is to end.
    Leaving,
    /// kube-proxy has ended; what it left is to be removed.
    Removed,
    /// kube-proxy is to serve again, and then Mizzen's services are to end.
    Returning,
}

impl KubeProxy {
    /// All, in the order of the way there and back.
    pub const ALL: [Self; 4] = [Self::Runs, Self::Leaving, Self::Removed, Self::Returning];

    /// The label's value.
    pub fn value(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Leaving => "leaving",
            Self::Removed => "removed",
            Self::Returning => "returning",
        }
    }

    /// What a label's value means; other values mean nothing.
    pub fn of_value(value: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.value() == value)
    }
}

impl Node {
    /// A node of which nothing but the name is known.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            internal_ips: Vec::new(),
            pod_cidrs: Vec::new(),
            zone: None,
            to_be_deleted: false,
            kube_proxy: None,
            names_asked: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_contain_their_addresses_and_no_others() {
        let check = |range: &str, address: &str, expected| {
            assert_eq!(cidr(range).contains(ip(address)), expected, "{address} in {range}");
        };
        check("10.244.1.0/24", "10.244.1.255", true);
        check("10.244.1.0/24", "10.244.2.0", false);
        check("0.0.0.0/0", "192.0.2.1", true);
        check("0.0.0.0/0", "fd00::1", false);
        check("::/0", "10.0.0.1", false);
        check("fd00:244:1::/64", "fd00:244:1::ffff", true);
        check("fd00:244:1::/64", "fd00:244:1:1::", false);
        check("192.0.2.1/32", "192.0.2.1", true);
    }

    #[test]
    fn text_reads_back_with_host_bits_cleared() {
        assert_eq!(cidr("10.244.1.9/24").to_string(), "10.244.1.0/24");
        assert_eq!(cidr("fd00:244:1::9/64").to_string(), "fd00:244:1::/64");
        for bad in ["10.244.1.0", "10.244.1.0/33", "fd00::/129", "x/8", ""] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn offsets_count_from_the_network_address() {
        assert_eq!(cidr("10.244.1.0/24").address_at(7), ip("10.244.1.7"));
        assert_eq!(cidr("10.244.1.0/24").offset_of(ip("10.244.1.7")), Some(7));
        assert_eq!(cidr("10.244.1.0/24").offset_of(ip("10.244.2.7")), None);
        assert_eq!(cidr("fd00::/64").address_at(1 << 40), ip("fd00::100:0:0"));
        assert_eq!(cidr("fd00::/64").host_bits(), 64);
    }
}
