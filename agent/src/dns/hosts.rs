//! Names with addresses as in `/etc/hosts`: in the Corefile itself, or in a file beside it. Pure.

use std::{collections::HashMap, net::IpAddr};

use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR},
    },
};

use super::{
    answer::{Explanation, Reply},
    name::LowerName,
    zone::reverse::{self, Arpa},
};

/// How many pairs of a name and an address a table holds, lists of names to be blocked among them;
/// later ones are left out, and counted.
const MAX_PAIRS: usize = 262_144;
/// How many addresses one name may have.
const MAX_ADDRESSES: usize = 256;

/// A table of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    /// Addresses by the lower-case wire form of their name.
    addresses: HashMap<Box<[u8]>, Vec<IpAddr>>,
    /// Names by address, as they were written.
    names: HashMap<IpAddr, Vec<Name>>,
    pairs: usize,
    /// Pairs that found no room.
    left_out: usize,
    /// How long clients may keep it, in seconds.
    pub ttl: u32,
    /// Zones in which what is not in the table is looked for elsewhere. Elsewhere it fails.
    pub fallthrough: Vec<Name>,
    /// Whether addresses have no names.
    pub no_reverse: bool,
    /// Whether the addresses of a name are said in turns.
    pub loadbalance: bool,
}

impl Hosts {
    /// An empty table whose names clients may keep for so many seconds.
    pub fn new(ttl: u32) -> Self {
        Self { ttl, ..Self::default() }
    }

    /// Adds the lines of `text`: an address and its names; the rest after `#` is ignored, and so is
    /// what is neither address nor name.
    pub fn extend(&mut self, text: &str) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            // A zone behind `%` is of no use to others than this host.
            let address = words.next().and_then(|word| word.split('%').next()?.parse().ok());
            let Some(address) = address else { continue };
            for name in words.filter_map(|word| Name::from_ascii(word).ok()) {
                self.add(address, name);
            }
        }
    }

    /// Whether it has a word in names of `domain`: it has one of them, or lets none through.
    pub fn concern(&self, domain: &Name) -> bool {
        let lets_through = self.fallthrough.iter().any(|zone| zone.zone_of(domain));
        let domain = LowerName::of(domain);
        !lets_through || self.addresses.keys().any(|name| is_below(name, domain.wire()))
    }

    /// What the table is too long for, if it is, and what to do.
    pub fn excess(&self) -> Option<String> {
        (self.left_out > 0).then(|| {
            format!(
                "its table of hosts leaves out {} of its pairs of a name and an address, as if \
                 they were not there: it holds {MAX_PAIRS} pairs, and {MAX_ADDRESSES} addresses of \
                 one name; shorten it",
                self.left_out
            )
        })
    }

    fn add(&mut self, address: IpAddr, mut name: Name) {
        name.set_fqdn(true);
        let lower = LowerName::of(&name);
        let known = self.addresses.get(lower.wire()).map_or(&[][..], Vec::as_slice);
        // Of names with one address there may be a hundred thousand, and nobody looks through them.
        if known.contains(&address) {
            return;
        }
        if self.pairs >= MAX_PAIRS || known.len() >= MAX_ADDRESSES {
            self.left_out += 1;
            return;
        }
        self.addresses.entry(lower.wire().into()).or_default().push(address);
        self.names.entry(address).or_default().push(name);
        self.pairs += 1;
    }

    /// The answer, where the table has one or nobody else may. An address without a name here is
    /// always others' to answer, as CoreDNS has it.
    pub fn answer(&self, query: &Query) -> Option<Reply> {
        let lower = LowerName::of(query.name());
        let data: Vec<RData> = match query.query_type() {
            RecordType::PTR => {
                let names = self.pointed_to(&lower)?;
                names.iter().map(|name| RData::PTR(PTR(name.clone()))).collect()
            }
            kind => {
                let addresses = self.addresses.get(lower.wire());
                let of_type = |address: &IpAddr| match (kind, address) {
                    (RecordType::A, IpAddr::V4(address)) => Some(RData::A(A(*address))),
                    (RecordType::AAAA, IpAddr::V6(address)) => Some(RData::AAAA(AAAA(*address))),
                    _ => None,
                };
                addresses.into_iter().flatten().filter_map(of_type).collect()
            }
        };
        if data.is_empty() && !self.addresses.contains_key(lower.wire()) {
            let elsewhere = self.fallthrough.iter().any(|zone| zone.zone_of(query.name()));
            // There is no zone, hence no SOA with which to say that there is no such name.
            return (!elsewhere).then(|| Reply::failure(Explanation::NotInHosts));
        }
        let record = |data| Record::from_rdata(query.name().clone(), self.ttl, data);
        Some(Reply {
            code: ResponseCode::NoError,
            authoritative: true,
            answers: data.into_iter().map(record).collect(),
            ..Reply::default()
        })
    }

    /// The names of the address that `name` is in a reverse tree.
    fn pointed_to(&self, name: &LowerName) -> Option<&[Name]> {
        match reverse::parse(name)? {
            Arpa::Address(address) if !self.no_reverse => Some(self.names.get(&address)?),
            _ => None,
        }
    }
}

/// Whether a name in wire form is `origin` or below it.
fn is_below(name: &[u8], origin: &[u8]) -> bool {
    let mut rest = name;
    while let [length, behind @ ..] = rest
        && rest.len() > origin.len()
    {
        rest = behind.get(usize::from(*length)..).unwrap_or_default();
    }
    rest == origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(hosts: &Hosts, name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>)> {
        let query = Query::query(Name::from_ascii(name).unwrap(), kind);
        let reply = hosts.answer(&query)?;
        Some((reply.code, reply.answers.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn a_list_of_names_to_be_blocked_is_read_in_no_time() {
        let mut hosts = Hosts::new(60);
        let name = |number: usize| format!("ads-{number}.example.org");
        let lines: Vec<_> = (0..100_000).map(|at| format!("0.0.0.0 {}\n", name(at))).collect();
        let lines = lines.concat();
        hosts.extend(&lines);
        hosts.extend(&lines);
        assert_eq!((hosts.pairs, hosts.names.len()), (100_000, 1));
        assert_eq!(hosts.excess(), None, "nothing is lost of what is said twice");
        let (_, answers) = said(&hosts, &format!("{}.", name(99_999)), RecordType::A).unwrap();
        assert_eq!(answers, ["ads-99999.example.org. 60 IN A 0.0.0.0"]);
    }

    #[test]
    fn a_table_is_bounded_whatever_is_in_the_file() {
        let mut hosts = Hosts::new(60);
        let address = |number: u32| std::net::Ipv4Addr::from_bits(number);
        let lines: Vec<_> = (0..1000).map(|at| format!("{} one.example\n", address(at))).collect();
        let lines = lines.concat();
        hosts.extend(&lines);
        assert_eq!((hosts.pairs, hosts.names.len()), (MAX_ADDRESSES, MAX_ADDRESSES));
        assert_eq!(hosts.left_out, 1000 - MAX_ADDRESSES);
        hosts.pairs = MAX_PAIRS;
        hosts.extend("192.0.2.1 late.example later.example\n0.0.0.0 ONE.example\n");
        assert_eq!(hosts.addresses.len(), 1);
        let expected = format!("leaves out {} of its", 1002 - MAX_ADDRESSES);
        let excess = hosts.excess().expect("it is cut");
        assert!(excess.contains(&expected), "{excess}");
    }

    #[test]
    fn lines_are_addresses_and_names() {
        let mut hosts = Hosts { ttl: 60, ..Hosts::default() };
        hosts.extend(
            "# comment\n192.0.2.7 Node-1 node-1.lab # and more\nfd00::7\tnode-1\nbad line here\n\
             192.0.2.8\n192.0.2.7 node-1 a..b\nfe80::1%eth0 gateway\n",
        );
        hosts.fallthrough = vec![Name::from_ascii("example.org.").unwrap()];
        let good = |answers: &[&str]| {
            Some((ResponseCode::NoError, answers.iter().map(ToString::to_string).collect()))
        };
        assert_eq!(said(&hosts, "NODE-1.", RecordType::A), good(&["NODE-1. 60 IN A 192.0.2.7"]));
        assert_eq!(
            said(&hosts, "node-1.", RecordType::AAAA),
            good(&["node-1. 60 IN AAAA fd00::7"])
        );
        assert_eq!(said(&hosts, "gateway.", RecordType::AAAA).unwrap().1.len(), 1);
        assert_eq!(said(&hosts, "node-1.", RecordType::TXT), good(&[]), "no such type");
        let pointers = ["Node-1.", "node-1.lab."]
            .map(|name| format!("7.2.0.192.in-addr.arpa. 60 IN PTR {name}"));
        let pointers = pointers.each_ref().map(String::as_str);
        assert_eq!(said(&hosts, "7.2.0.192.in-addr.arpa.", RecordType::PTR), good(&pointers));
        assert_eq!(said(&hosts, "www.example.org.", RecordType::A), None, "falls through");
        let nobody = Some((ResponseCode::ServFail, vec![]));
        assert_eq!(said(&hosts, "www.example.com.", RecordType::A), nobody);
        // What has no name here may have one elsewhere, whatever falls through.
        for address in ["9.2.0.192.in-addr.arpa.", "node-1.", "2.0.192.in-addr.arpa."] {
            assert_eq!(said(&hosts, address, RecordType::PTR), None, "{address}");
        }
        hosts.no_reverse = true;
        assert_eq!(said(&hosts, "7.2.0.192.in-addr.arpa.", RecordType::PTR), None);
    }
}
