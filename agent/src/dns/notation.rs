//! How zones, times, ranges and upstreams are written, in a Corefile and in the agent's own
//! configuration alike. What is wrong is said without where: that is for whoever read it.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RecordType},
};

use super::{
    cache::Keeping,
    chain::template,
    resolv_conf,
    route::{Policy, Upstream},
    tls::{self, Peer},
    zone::PodNames,
};
use crate::model::{
    labels::{Selector, SelectorError},
    node::Cidr,
};

/// The port of an upstream that names none.
const PORT: u16 = 53;
/// The longest and the shortest that CoreDNS keeps an answer where nothing else is said, in seconds.
pub const MAX_TTL: u64 = 3600;
const MAX_NEGATIVE_TTL: u64 = 1800;
const MIN_TTL: u64 = 5;
/// The longest that a failure is kept (RFC 9520).
pub const LONGEST_FAILURE: Duration = Duration::from_mins(5);

/// The response code of that name, in letters of any size.
pub fn response_code(text: &str) -> Result<ResponseCode, String> {
    let code = template::code_named(&text.to_ascii_uppercase());
    code.ok_or_else(|| format!("{text:?} is no response code such as NXDOMAIN"))
}

/// The same of one after which another upstream may be asked.
pub fn failing_code(text: &str) -> Result<ResponseCode, String> {
    match response_code(text)? {
        ResponseCode::NoError => Err("after NOERROR nobody else is asked".to_owned()),
        code => Ok(code),
    }
}

/// The zone that `text` names: a name, or a range of addresses that means their reverse names.
pub fn zone(text: &str) -> Result<Name, String> {
    match <[Name; 1]>::try_from(zones(text)?) {
        Ok([zone]) => Ok(zone),
        Err(several) => Err(format!(
            "{text:?} is {} zones, and one is wanted: a range that ends where a label does, as /8, \
             /16 and /24 do",
            several.len()
        )),
    }
}

/// The zones that `text` names: a name, or a range of addresses that means their reverse names.
/// One that ends within a label is as many zones as it has labels there: 128 at most.
pub fn zones(text: &str) -> Result<Vec<Name>, String> {
    if let Some((address, length)) = text.split_once('/') {
        let range = address.parse().ok().zip(length.parse().ok());
        let range = range.and_then(|(address, length)| Cidr::holding(address, length));
        let range = range
            .ok_or_else(|| format!("{text:?} is no range such as 10.96.0.0/12 or fd00:96::/112"))?;
        return Ok(reverse(range));
    }
    let mut name =
        Name::from_ascii(text).map_err(|error| format!("{text:?} is no zone: {error}"))?;
    name.set_fqdn(true);
    Ok(vec![name])
}

/// The names below which the addresses of a range are.
fn reverse(range: Cidr) -> Vec<Name> {
    let (width, bits) = if range.address.is_ipv4() { (32, 8) } else { (128, 4) };
    let whole = range.prefix_len.div_ceil(bits);
    let size = width - whole * bits;
    let count = 1_u128 << (whole * bits - range.prefix_len);
    // The whole of a tree is one zone, whose size is no offset of anything.
    let offset = |place: u128| place.checked_shl(size.into()).unwrap_or(0);
    let zone = |place| Name::from(range.address_at(offset(place))).trim_to(usize::from(whole) + 2);
    (0..count).map(zone).collect()
}

/// A type of records, by its name.
pub fn record_type(text: &str) -> Result<RecordType, String> {
    let known = text.to_ascii_uppercase().parse();
    known.map_err(|_| format!("{text:?} is no type such as A or SRV"))
}

/// A range of addresses, or a single one.
pub fn range(text: &str) -> Result<Cidr, String> {
    let single = || {
        let address: IpAddr = text.parse().ok()?;
        Cidr::holding(address, if address.is_ipv4() { 32 } else { 128 })
    };
    text.parse()
        .ok()
        .or_else(single)
        .ok_or_else(|| format!("{text:?} is no range such as 192.0.2.0/24 or 2001:db8::/64"))
}

/// Which objects are meant, by their labels.
pub fn selection(text: &str) -> Result<Selector, String> {
    text.parse().map_err(|why: SelectorError| why.to_string())
}

/// How names of pods are answered.
pub fn pods(text: &str) -> Result<PodNames, String> {
    match text {
        "disabled" => Ok(PodNames::Disabled),
        "insecure" => Ok(PodNames::Insecure),
        "verified" => Ok(PodNames::Verified),
        other => Err(format!("pods {other:?} must be disabled, insecure or verified")),
    }
}

/// With whom a question begins.
pub fn policy(text: &str) -> Result<Policy, String> {
    match text {
        "random" => Ok(Policy::Random),
        "round_robin" => Ok(Policy::RoundRobin),
        "sequential" => Ok(Policy::Sequential),
        other => Err(format!("policy {other:?} must be random, round_robin or sequential")),
    }
}

/// How long answers are kept where nothing but the longest time is said, in seconds; as CoreDNS
/// has it.
pub fn keeping(most: Option<u64>) -> Keeping {
    let seconds = Duration::from_secs;
    let bounded = |limit: u64| seconds(most.map_or(limit, |most| most.min(limit)));
    Keeping {
        ttl: (seconds(MIN_TTL), bounded(MAX_TTL)),
        negative_ttl: (seconds(MIN_TTL), bounded(MAX_NEGATIVE_TTL)),
        ..Keeping::default()
    }
}

/// A duration as Go writes it: numbers with units, such as `1m30s`; 0 needs none.
pub fn duration(text: &str) -> Result<Duration, String> {
    let why = || format!("{text:?} is no duration such as 30s, 1m30s or 1h");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut whole = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|next: char| !next.is_ascii_digit()).ok_or_else(why)?;
        let (count, behind) = rest.split_at(digits);
        let letters = behind.find(|next: char| next.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let count: u32 = count.parse().map_err(|_| why())?;
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return Err(why()),
        };
        whole = unit.checked_mul(count).and_then(|part| whole.checked_add(part)).ok_or_else(why)?;
        rest = behind;
    }
    // Times far beyond any use would not fit in a clock.
    if text.is_empty() || whole > Duration::from_hours(24 * 365) { Err(why()) } else { Ok(whole) }
}

/// Who `text` names: an address, with a port perhaps and over TLS perhaps, or those in a file such
/// as `/etc/resolv.conf`, which `read` reads.
pub fn upstreams(
    text: &str,
    over_tls: &Peer,
    read: impl Fn(&Path) -> Option<String>,
) -> Result<Vec<Upstream>, String> {
    let text = match text.split_once("://") {
        Some(("dns", rest)) => rest,
        Some(("tls", rest)) => return Ok(vec![secure_upstream(rest, over_tls)?]),
        Some((other, _)) => {
            return Err(format!(
                "{other}:// is not supported: upstreams are asked by UDP and TCP, and over TLS"
            ));
        }
        None => text,
    };
    if let Some(address) = address(text, PORT) {
        return Ok(vec![address.into()]);
    }
    let servers = resolv_conf::name_servers(Path::new(text), read).ok_or_else(|| {
        format!("{text:?} is neither an address nor a file such as /etc/resolv.conf")
    })?;
    Ok(servers.into_iter().map(Upstream::from).collect())
}

/// The upstream that `tls://` is followed by: an address, behind `%` the name of its certificate,
/// and a port.
fn secure_upstream(text: &str, of_all: &Peer) -> Result<Upstream, String> {
    let (written, name) = match text.split_once('%') {
        None => (text.to_owned(), None),
        // The port stands behind the name.
        Some((address, name)) => match name.rsplit_once(':') {
            Some((name, port)) => (format!("{address}:{port}"), Some(name)),
            None => (address.to_owned(), Some(name)),
        },
    };
    let address =
        address(&written, tls::PORT).ok_or_else(|| format!("{written:?} is no address"))?;
    let mut peer = of_all.clone();
    if let Some(name) = name {
        if peer.server_name.is_some() {
            return Err("two names are said for its certificate: the name behind % and that of \
                        tls do not go together"
                .to_owned());
        }
        peer.server_name = Some(name.to_owned());
    }
    peer.check(address.ip())?;
    Ok(Upstream { address, tls: Some(Arc::new(peer)) })
}

/// An address, with `port` where it names none.
fn address(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    bare.map(|ip| (ip, port).into()).ok().or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times() {
        let seconds = |text: &str| duration(text).map(|time| time.as_millis());
        assert_eq!(seconds("1m30s"), Ok(90_000));
        assert_eq!(seconds("100ms"), Ok(100));
        assert_eq!(seconds("0"), Ok(0));
        for bad in ["", "1", "s", "1y", "9999999999s", "5000000h", "-1s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_the_zones_that_they_begin_with() {
        let names = |text: &str| -> Vec<String> {
            zones(text).unwrap().iter().map(ToString::to_string).collect()
        };
        assert_eq!(names("10.0.0.0/8"), ["10.in-addr.arpa."]);
        assert_eq!(names("10.96.1.2/24"), ["1.96.10.in-addr.arpa."]);
        assert_eq!(names("10.96.1.2/32"), ["2.1.96.10.in-addr.arpa."]);
        assert_eq!(names("0.0.0.0/0"), ["in-addr.arpa."]);
        assert_eq!(names("::/0"), ["ip6.arpa."]);
        let many: Vec<_> = (96..112).map(|octet| format!("{octet}.10.in-addr.arpa.")).collect();
        assert_eq!(names("10.96.0.0/12"), many);
        assert_eq!(names("10.96.7.0/23"), ["6.96.10.in-addr.arpa.", "7.96.10.in-addr.arpa."]);
        assert_eq!(names("10.0.0.0/9").len(), 128);
        let nibbles = ["8", "9", "a", "b"].map(|nibble| format!("{nibble}.0.d.f.ip6.arpa."));
        assert_eq!(names("fd08::/14"), nibbles);
        assert_eq!(names("fd00:96::/32"), ["6.9.0.0.0.0.d.f.ip6.arpa."]);
        assert_eq!(names("::/1").len(), 8);
        assert!(zone("10.96.0.0/12").unwrap_err().contains("is 16 zones, and one is wanted"));
        for bad in ["10.0.0.0/33", "::/129", "x/8", "10.0.0.0/", "10.0.0.0/-1", "a..b"] {
            assert!(zones(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// Any text is something or an error.
        #[test]
        fn any_text(text in "[a-z0-9.:/%\\[\\]é -]{0,40}", tls in any::<bool>()) {
            let text = if tls { format!("tls://{text}") } else { text };
            let _any = (zone(&text), zones(&text), range(&text), duration(&text), record_type(&text));
            let _any = upstreams(&text, &Peer::default(), |_| None);
        }
    }
}
