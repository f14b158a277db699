//! Addresses as a label: what an endpoint without a hostname, and a pod, are called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The label that stands for `address`: its text with dashes for dots and colons. No label may end
/// in a dash, so an IPv6 address that ends in `::` gets a zero behind it.
pub fn dashed(address: IpAddr) -> String {
    let mut label = address.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

/// The address for which `label` stands, in any spelling that its family admits.
pub fn parse(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    let dashes = text.bytes().filter(|octet| *octet == b'-').count();
    if dashes == 3
        && let Ok(address) = text.replace('-', ".").parse::<Ipv4Addr>()
    {
        return Some(address.into());
    }
    text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_11_labels_of_addresses() {
        for (address, label) in [
            ("172.0.0.2", "172-0-0-2"),
            ("5678:abcd::2", "5678-abcd--2"),
            ("2001:db8::", "2001-db8--0"),
            ("1:2:3:4:5:6:7:8", "1-2-3-4-5-6-7-8"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(dashed(address), label);
            assert_eq!(parse(label.as_bytes()), Some(address));
        }
        for label in ["", "blah", "1-2-3", "256-0-0-1", "10-0-0-1-2", "1-2-3-4-5-6-7-8-9"] {
            assert_eq!(parse(label.as_bytes()), None, "{label}");
        }
        assert_eq!(parse(b"\xff\xfe"), None);
    }
}
