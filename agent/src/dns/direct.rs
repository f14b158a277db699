//! Answers that are written straight from the index, octet by octet: what is asked most, addresses
//! of the cluster's names, without a record or a message in between. Pure, and allocates nothing.
//!
//! Whatever is not plain is left to [`message`](super::message) and [`answer`](super::answer), and
//! what is answered here is what these would have said, to the octet: a property test holds both
//! against each other.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::{op::ResponseCode, rr::RecordType};

use super::{
    answer::{SOA_HOST, SOA_SERVER, SOA_TIMES},
    message::{ClientEdns, MAX_PAYLOAD, Transport, limit},
    name::LowerName,
    wire::HEADER,
    zone::{
        Found, Place, Zone,
        service::{Addresses, Own},
    },
};

/// What was asked and said, for those who count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// The type that was asked for.
    pub kind: RecordType,
    /// Whether signatures were asked for.
    pub dnssec_ok: bool,
    /// The answer's code.
    pub code: ResponseCode,
}

/// What is answered this way at all: whoever has a word in answers before the index narrows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Nothing.
    Nothing,
    /// Names that exist.
    Existing,
    /// That a name does not exist, too.
    All,
}

/// Octets of OPT without options: the root's name, type, class, TTL and length.
const OPT: usize = 11;
/// Octets of a record before its data.
const HEAD: usize = 12;
/// The longest name, in labels, whose every end can be pointed to.
const MAX_LABELS: usize = 32;

/// A question as it stands in a datagram.
struct Asked<'q> {
    header: [u8; HEADER],
    /// Name, type and class.
    question: &'q [u8],
    name: LowerName,
    kind: RecordType,
    edns: Option<ClientEdns>,
}

/// Writes the answer to `query`, which came by UDP, to `octets`; `None`, and nothing of use there,
/// where the question is not for this way or not in `scope`.
pub fn answer(zone: &Zone, query: &[u8], scope: Scope, octets: &mut Vec<u8>) -> Option<Said> {
    if scope == Scope::Nothing || !zone.synced() {
        return None;
    }
    let asked = Asked::read(query)?;
    let place = zone.look_up(&asked.name).filter(|place| !place.reverse)?;
    let (addresses, code) = match &place.found {
        Found::Service(names) => match &names.own {
            Own::ClusterIps(all) | Own::Endpoints(all) => (Some(all), ResponseCode::NoError),
            Own::Alias(_) => return None,
        },
        Found::Empty | Found::Apex | Found::Version | Found::Ports(..) => {
            (None, ResponseCode::NoError)
        }
        Found::Missing if scope == Scope::All => (None, ResponseCode::NXDomain),
        _ => return None,
    };
    // Before anything is written: of the addresses of a thousand endpoints none would be of use.
    if addresses.is_some_and(|all| !asked.has_room_for(all)) {
        return None;
    }
    octets.clear();
    octets.extend_from_slice(&asked.header(code));
    octets.extend_from_slice(asked.question);
    let answers = addresses.map_or(0, |all| asked.addresses(zone, all, octets));
    if answers == 0 {
        asked.soa(zone, &place, octets)?;
    }
    let counts = [1, answers, usize::from(answers == 0), usize::from(asked.edns.is_some())];
    for (place, count) in octets[4..HEADER].chunks_exact_mut(2).zip(counts) {
        place.copy_from_slice(&u16::try_from(count).ok()?.to_be_bytes());
    }
    if let Some(edns) = asked.edns {
        octets.extend_from_slice(&opt(edns));
    }
    let fits = octets.len() <= usize::from(limit(asked.edns, Transport::Udp));
    let dnssec_ok = asked.edns.is_some_and(|edns| edns.dnssec_ok);
    fits.then_some(Said { kind: asked.kind, dnssec_ok, code })
}

impl<'q> Asked<'q> {
    /// Reads a question for addresses of class IN, with at most an OPT record without options
    /// behind it.
    fn read(query: &'q [u8]) -> Option<Self> {
        /// A query of the opcode QUERY, whatever it says of TC, AA and RD.
        const FLAGS: u8 = 0b1111_1000;
        /// One question, no answer, nothing of authority, and none or one beside.
        const COUNTS: [u8; 7] = [0, 1, 0, 0, 0, 0, 0];
        const IN: [u8; 2] = [0, 1];
        let header = query.first_chunk::<HEADER>()?;
        if header[2] & FLAGS != 0 || header[4..11] != COUNTS {
            return None;
        }
        let (name, length) = LowerName::read(&query[HEADER..])?;
        let (question, rest) = query.split_at_checked(HEADER + length + 4)?;
        let (kind, class) = question[HEADER + length..].split_at(2);
        let kind = match kind {
            [0, 1] => RecordType::A,
            [0, 28] => RecordType::AAAA,
            _ => return None,
        };
        if class != IN || name.label_count() > MAX_LABELS {
            return None;
        }
        let edns = match (header[11], rest) {
            (0, []) => None,
            // The root's name, type OPT, the client's size, no code, version 0, flags, no options.
            (1, [0, 0, 41, high, low, _, 0, flags, _, 0, 0]) => Some(ClientEdns {
                payload: u16::from_be_bytes([*high, *low]),
                dnssec_ok: flags & 0x80 != 0,
                padded: false,
            }),
            _ => return None,
        };
        Some(Self { header: *header, question: &question[HEADER..], name, kind, edns })
    }

    /// The header: an answer of authority; identifier, RD and CD as they came, and no counts yet.
    fn header(&self, code: ResponseCode) -> [u8; HEADER] {
        const AUTHORITY: u8 = 0x84;
        const RECURSION_AVAILABLE: u8 = 0x80;
        let [id_high, id_low, flags, more, ..] = self.header;
        let flags = AUTHORITY | flags & 1;
        let more = RECURSION_AVAILABLE | more & 0x10 | code.low();
        [id_high, id_low, flags, more, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    /// Whether a datagram has room for a record for each address.
    fn has_room_for(&self, all: &Addresses) -> bool {
        let (count, data) =
            if self.kind == RecordType::A { (all.v4.len(), 4) } else { (all.v6.len(), 16) };
        let beside = HEADER + self.question.len() + self.edns.map_or(0, |_| OPT);
        beside + count * (HEAD + data) <= usize::from(limit(self.edns, Transport::Udp))
    }

    /// Appends a record for each address, beginning with another one for each identifier; how many.
    fn addresses(&self, zone: &Zone, all: &Addresses, octets: &mut Vec<u8>) -> usize {
        let ttl = zone.settings().ttl;
        let rotation = usize::from(u16::from_be_bytes([self.header[0], self.header[1]]));
        if self.kind == RecordType::A {
            records(&all.v4, rotation, octets, |address: Ipv4Addr, octets| {
                octets.extend_from_slice(&head(self.kind, ttl, 4));
                octets.extend_from_slice(&address.octets());
            })
        } else {
            records(&all.v6, rotation, octets, |address: Ipv6Addr, octets| {
                octets.extend_from_slice(&head(self.kind, ttl, 16));
                octets.extend_from_slice(&address.octets());
            })
        }
    }

    /// Appends the SOA record of the zone (RFC 2308), its names written with the letters of the
    /// question's; `None` where the question's name holds more of these names than the zone's.
    fn soa(&self, zone: &Zone, place: &Place<'_>, octets: &mut Vec<u8>) -> Option<()> {
        let below = self.name.label_count().checked_sub(place.apex_labels)?;
        let shared = below.checked_sub(1).map(|last| self.name.label(last));
        if shared.is_some_and(|label| [SOA_SERVER[1], SOA_HOST].map(str::as_bytes).contains(&label))
        {
            return None;
        }
        let apex = 0xc000 | u16::try_from(HEADER + self.name.start_of(below)).ok()?;
        let ttl = zone.settings().ttl;
        octets.extend_from_slice(&apex.to_be_bytes());
        octets.extend_from_slice(&u16::from(RecordType::SOA).to_be_bytes());
        octets.extend_from_slice(&[0, 1]);
        octets.extend_from_slice(&ttl.to_be_bytes());
        let length = octets.len();
        octets.extend_from_slice(&[0, 0]);
        for labels in [&SOA_SERVER[..], &[SOA_HOST]] {
            for label in labels {
                octets.push(u8::try_from(label.len()).ok()?);
                octets.extend_from_slice(label.as_bytes());
            }
            octets.extend_from_slice(&apex.to_be_bytes());
        }
        octets.extend_from_slice(&zone.serial().to_be_bytes());
        for seconds in SOA_TIMES {
            octets.extend_from_slice(&seconds.to_be_bytes());
        }
        octets.extend_from_slice(&ttl.to_be_bytes());
        let data = u16::try_from(octets.len() - length - 2).ok()?;
        octets[length..length + 2].copy_from_slice(&data.to_be_bytes());
        Some(())
    }
}

/// Appends all of a family, beginning with another one for each rotation; how many.
fn records<A: Copy>(
    all: &[A],
    rotation: usize,
    octets: &mut Vec<u8>,
    append: impl Fn(A, &mut Vec<u8>),
) -> usize {
    let start = rotation.checked_rem(all.len()).unwrap_or(0);
    for address in &all[start..] {
        append(*address, octets);
    }
    for address in &all[..start] {
        append(*address, octets);
    }
    all.len()
}

/// A record of the question's name up to its data: pointer, type, class IN, TTL, length.
fn head(kind: RecordType, ttl: u32, length: u8) -> [u8; HEAD] {
    let [kind_high, kind_low] = u16::from(kind).to_be_bytes();
    let [a, b, c, d] = ttl.to_be_bytes();
    [0xc0, 12, kind_high, kind_low, 0, 1, a, b, c, d, 0, length]
}

/// Our OPT record (RFC 6891 6.1): version 0, our size, the client's DO.
fn opt(client: ClientEdns) -> [u8; OPT] {
    let [high, low] = MAX_PAYLOAD.to_be_bytes();
    [0, 0, 41, high, low, 0, 0, u8::from(client.dnssec_ok) << 7, 0, 0, 0]
}

#[cfg(test)]
mod tests;
