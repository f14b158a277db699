//! `dns64`: IPv6 addresses for names that have IPv4 addresses only (RFC 6147), behind which a NAT64
//! stands.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::ResponseCode,
    rr::{RData, RecordType, rdata::AAAA},
};

use crate::dns::{answer::Reply, message::Question};

/// How long an address may be kept where nothing says for how long there is no other (RFC 6147
/// 5.1.7), in seconds.
const NO_SOA_TTL: u32 = 600;

/// How addresses are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dns64 {
    prefix: Ipv6Addr,
    /// In bits: 32, 40, 48, 56, 64 or 96.
    length: u8,
    /// Also for names that have IPv6 addresses.
    pub translate_all: bool,
    /// Also for clients that ask over IPv4.
    pub allow_ipv4: bool,
}

impl Default for Dns64 {
    /// The well-known prefix (RFC 6052 2.1), for those who ask over IPv6.
    fn default() -> Self {
        Self {
            prefix: Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0),
            length: 96,
            translate_all: false,
            allow_ipv4: false,
        }
    }
}

impl Dns64 {
    /// Makes addresses with this prefix, such as `64:ff9b::/96`; or says what is wrong with it.
    pub fn set_prefix(&mut self, text: &str) -> Result<(), String> {
        let why = || {
            format!("{text:?} is no IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits (RFC 6052 2.2)")
        };
        let (address, length) = text.split_once('/').ok_or_else(why)?;
        let address: Ipv6Addr = address.parse().map_err(|_| why())?;
        let length: u8 = length.parse().map_err(|_| why())?;
        if ![32, 40, 48, 56, 64, 96].contains(&length) {
            return Err(why());
        }
        self.prefix = Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - length)));
        self.length = length;
        Ok(())
    }

    /// Whether it has to do with a question from `client`. Who checks signatures itself makes its
    /// addresses itself (RFC 6147 5.5).
    pub fn concerns(&self, question: &Question, client: IpAddr) -> bool {
        question.query.query_type() == RecordType::AAAA
            && (self.allow_ipv4 || client.is_ipv6())
            && !(question.dnssec_ok() && question.checking_disabled)
    }

    /// Whether the answer to a question for IPv6 addresses leaves something to do (RFC 6147 5.1).
    pub fn is_wanted(&self, reply: &Reply) -> bool {
        // An IPv4 address in IPv6's clothes is none that an IPv6 network reaches (5.1.4).
        let has_any = || {
            reply.answers.iter().any(|record| match &record.data {
                RData::AAAA(address) => address.0.to_ipv4_mapped().is_none(),
                _ => false,
            })
        };
        reply.code != ResponseCode::NXDomain && (self.translate_all || !has_any())
    }

    /// The answer in the place of `none`, which had no IPv6 addresses, from `v4`, the answer to the
    /// question for IPv4 addresses; `None` where that has none either.
    pub fn synthesized(&self, none: &Reply, mut v4: Reply) -> Option<Reply> {
        let soa = none.authorities.iter().find(|record| record.record_type() == RecordType::SOA);
        let longest = soa.map_or(NO_SOA_TTL, |record| record.ttl);
        let mut made = false;
        for record in &mut v4.answers {
            let RData::A(address) = &record.data else { continue };
            record.data = RData::AAAA(AAAA(self.address(address.0)));
            record.ttl = record.ttl.min(longest);
            made = true;
        }
        // Nobody vouches for what we made.
        v4.authentic = false;
        made.then_some(v4)
    }

    /// The IPv6 address of an IPv4 address: behind the prefix, around the octet of bits 64 to 71,
    /// which stays zero (RFC 6052 2.2).
    fn address(&self, v4: Ipv4Addr) -> Ipv6Addr {
        let mut octets = self.prefix.octets();
        let places = (usize::from(self.length / 8)..).filter(|place| *place != 8);
        for (place, octet) in places.zip(v4.octets()) {
            octets[place] = octet;
        }
        octets.into()
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::Query,
        rr::{
            Name, Record,
            rdata::{A, SOA},
        },
    };

    use super::*;
    use crate::dns::message::ClientEdns;

    fn with_prefix(text: &str) -> Dns64 {
        let mut dns64 = Dns64::default();
        dns64.set_prefix(text).unwrap_or_else(|why| panic!("{why}"));
        dns64
    }

    /// The table of RFC 6052 2.4.
    #[test]
    fn addresses_of_all_lengths() {
        for (prefix, address) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
            ("64:ff9b::1.2.3.4/96", "64:ff9b::192.0.2.33"),
        ] {
            let made = with_prefix(prefix).address(Ipv4Addr::new(192, 0, 2, 33));
            assert_eq!(made, address.parse::<Ipv6Addr>().unwrap(), "{prefix}");
        }
        for bad in ["64:ff9b::", "64:ff9b::/95", "64:ff9b::/128", "192.0.2.0/32", "64:ff9b::/88"] {
            assert!(Dns64::default().set_prefix(bad).unwrap_err().contains("no IPv6 prefix"));
        }
    }

    fn question(kind: RecordType) -> Question {
        Question::plain(Query::query(Name::from_ascii("v4.example.").unwrap(), kind))
    }

    #[test]
    fn whom_it_concerns() {
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "::1".parse().unwrap());
        let plain = Dns64::default();
        assert!(plain.concerns(&question(RecordType::AAAA), v6));
        assert!(!plain.concerns(&question(RecordType::A), v6));
        assert!(!plain.concerns(&question(RecordType::AAAA), v4));
        let all = Dns64 { allow_ipv4: true, ..plain };
        assert!(all.concerns(&question(RecordType::AAAA), v4));
        let checks = Question {
            checking_disabled: true,
            edns: Some(ClientEdns { payload: 1232, dnssec_ok: true, padded: false }),
            ..question(RecordType::AAAA)
        };
        assert!(!plain.concerns(&checks, v6), "it checks signatures itself");
    }

    fn record(ttl: u32, data: RData) -> Record {
        Record::from_rdata(Name::from_ascii("v4.example.").unwrap(), ttl, data)
    }

    fn v6(text: &str) -> RData {
        RData::AAAA(AAAA(text.parse().unwrap()))
    }

    #[test]
    fn when_it_is_wanted() {
        let plain = Dns64::default();
        let all = Dns64 { translate_all: true, ..plain };
        let none = Reply::default();
        assert!(plain.is_wanted(&none));
        assert!(plain.is_wanted(&Reply::of_code(ResponseCode::ServFail)));
        assert!(!all.is_wanted(&Reply::of_code(ResponseCode::NXDomain)));
        let with = |data| Reply { answers: vec![record(5, data)], ..Reply::default() };
        assert!(!plain.is_wanted(&with(v6("2001:db8::1"))));
        assert!(all.is_wanted(&with(v6("2001:db8::1"))));
        assert!(plain.is_wanted(&with(v6("::ffff:192.0.2.1"))));
    }

    #[test]
    fn addresses_are_kept_no_longer_than_their_absence() {
        let soa = SOA::new(Name::root(), Name::root(), 1, 2, 3, 4, 5);
        let none = Reply { authorities: vec![record(60, RData::SOA(soa))], ..Reply::default() };
        let a = |ttl| record(ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, 33))));
        let v4 = |ttl| Reply { answers: vec![a(ttl)], authentic: true, ..Reply::default() };
        let made = |none: &Reply, ttl| Dns64::default().synthesized(none, v4(ttl)).unwrap();
        let reply = made(&none, 300);
        assert_eq!(reply.answers, [record(60, v6("64:ff9b::192.0.2.33"))]);
        assert!(!reply.authentic);
        assert_eq!(made(&none, 7).answers[0].ttl, 7);
        assert_eq!(made(&Reply::default(), 3600).answers[0].ttl, 600);
        assert_eq!(Dns64::default().synthesized(&none, Reply::default()), None);
    }
}
