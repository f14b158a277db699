//! Writes messages: names compressed against all that was written before, records whole or not
//! at all, and never more octets than were given.
//!
//! Hickory's encoder can't be asked for the largest part of an answer that fits, and stops
//! compressing after some names, which cuts large headless Services even by TCP.

use hickory_proto::{
    op::Query,
    rr::{Name, RData, Record},
    serialize::binary::{BinEncodable, BinEncoder, NameEncoding},
};

/// Octets of a message's header.
pub const HEADER: usize = 12;
/// Where pointers can't lead (RFC 1035 4.1.4).
const FAR: usize = 0x4000;
/// How many places are remembered for pointers: enough for all that repeats in an answer, and few
/// enough that a hostile one costs no more time to search them than to write it.
const MAX_PLACES: usize = 64;

/// The message in `octets` with only those options of its OPT record whose codes pass `keep`; `None`
/// where there is no such record, or not a whole one.
pub fn with_options(octets: &[u8], keep: impl Fn(u16) -> bool) -> Option<Vec<u8>> {
    /// Type, class, TTL and length of a record.
    const FIXED: usize = 10;
    const OPT: [u8; 2] = [0, 41];
    let count = |place: usize| Some(u16::from_be_bytes(*octets.get(place..)?.first_chunk()?));
    let mut at = HEADER;
    for _ in 0..count(4)? {
        at = after_name(octets, at)? + 4;
    }
    let records: u32 = [6, 8, 10].into_iter().filter_map(count).map(u32::from).sum();
    for _ in 0..records {
        let data = after_name(octets, at)? + FIXED;
        let end = data + usize::from(count(data - 2)?);
        let options = octets.get(data..end)?;
        if octets.get(data - FIXED..)?.starts_with(&OPT) {
            let kept = options_with(options, keep)?;
            let length = u16::try_from(kept.len()).ok()?.to_be_bytes();
            return Some([&octets[..data - 2], &length, &kept[..], &octets[end..]].concat());
        }
        at = end;
    }
    None
}

/// Those of an OPT record's options whose codes pass `keep` (RFC 6891 6.1.2).
fn options_with(mut options: &[u8], keep: impl Fn(u16) -> bool) -> Option<Vec<u8>> {
    let mut kept = Vec::new();
    while let Some(&[code, more, high, low]) = options.first_chunk() {
        let whole = 4 + usize::from(u16::from_be_bytes([high, low]));
        let (option, rest) = options.split_at_checked(whole)?;
        if keep(u16::from_be_bytes([code, more])) {
            kept.extend_from_slice(option);
        }
        options = rest;
    }
    options.is_empty().then_some(kept)
}

/// Where the name ends that begins at `at`.
fn after_name(octets: &[u8], mut at: usize) -> Option<usize> {
    const POINTER: u8 = 0xc0;
    loop {
        match *octets.get(at)? {
            0 => return Some(at + 1),
            length if length & POINTER == POINTER => return Some(at + 2),
            length if length & POINTER == 0 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

/// A message that is being written. The header comes last: until then its place is kept.
#[derive(Debug)]
pub struct Writer {
    octets: Vec<u8>,
    limit: usize,
    /// Where labels stand with which a name may end.
    places: Vec<u16>,
}

/// A state to which a writer can be brought back.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    octets: usize,
    places: usize,
}

impl Writer {
    /// A message of at most `limit` octets; its question fits in any case.
    pub fn new(limit: usize) -> Self {
        let mut octets = Vec::with_capacity(512);
        octets.resize(HEADER, 0);
        Self { octets, limit, places: Vec::with_capacity(16) }
    }

    /// The question, letter by letter.
    pub fn question(&mut self, query: &Query) {
        self.name(query.name(), false);
        self.u16(query.query_type().into());
        self.u16(query.query_class().into());
    }

    /// A record; `false`, and nothing written, where it does not fit or can't be written.
    pub fn record(&mut self, record: &Record) -> bool {
        let mark = self.mark();
        self.name(&record.name, true);
        self.u16(record.record_type().into());
        self.u16(record.dns_class.into());
        self.octets.extend(record.ttl.to_be_bytes());
        let data = self.octets.len();
        self.u16(0);
        let written = self.data(&record.data);
        let length = u16::try_from(self.octets.len() - data - 2);
        match length {
            Ok(length) if written && self.octets.len() <= self.limit => {
                self.octets[data..data + 2].copy_from_slice(&length.to_be_bytes());
                true
            }
            _ => {
                self.back_to(mark);
                false
            }
        }
    }

    /// The state of now.
    pub fn mark(&self) -> Mark {
        Mark { octets: self.octets.len(), places: self.places.len() }
    }

    /// Forgets what was written since `mark`.
    pub fn back_to(&mut self, mark: Mark) {
        self.octets.truncate(mark.octets);
        self.places.truncate(mark.places);
    }

    /// The message with its header, and `tail` behind it, for which the limit left room.
    pub fn finish(mut self, header: [u8; HEADER], tail: &[u8]) -> Vec<u8> {
        self.octets[..HEADER].copy_from_slice(&header);
        self.octets.extend(tail);
        self.octets
    }

    fn data(&mut self, data: &RData) -> bool {
        match data {
            RData::A(address) => self.octets.extend(address.octets()),
            RData::AAAA(address) => self.octets.extend(address.octets()),
            RData::CNAME(name) => self.name(name, true),
            RData::NS(name) => self.name(name, true),
            RData::PTR(name) => self.name(name, true),
            RData::SOA(soa) => {
                self.name(&soa.mname, true);
                self.name(&soa.rname, true);
                self.octets.extend(soa.serial.to_be_bytes());
                for seconds in [soa.refresh, soa.retry, soa.expire] {
                    self.octets.extend(seconds.to_be_bytes());
                }
                self.octets.extend(soa.minimum.to_be_bytes());
            }
            // Names in all other types are written out (RFC 3597 4), SRV's too (RFC 2782).
            other => return self.uncompressed(other),
        }
        true
    }

    fn uncompressed(&mut self, data: &RData) -> bool {
        let mut octets = Vec::with_capacity(64);
        let mut encoder = BinEncoder::new(&mut octets);
        encoder.set_name_encoding(NameEncoding::Uncompressed);
        let result = data.emit(&mut encoder);
        if let Err(error) = &result {
            tracing::debug!(%error, "record can't be encoded");
        }
        self.octets.extend(octets);
        result.is_ok()
    }

    fn name(&mut self, name: &Name, compress: bool) {
        for (index, label) in name.iter().enumerate() {
            if compress && let Some(place) = self.place_of(name, index) {
                // The two upper bits mark a pointer.
                self.u16(0xc000 | place);
                return;
            }
            self.remember();
            // Labels have at most 63 octets.
            self.octets.push(u8::try_from(label.len()).unwrap_or(0));
            self.octets.extend(label);
        }
        self.octets.push(0);
    }

    /// Remembers that a name ends from here on.
    fn remember(&mut self) {
        let here = self.octets.len();
        if here < FAR
            && self.places.len() < MAX_PLACES
            && let Ok(here) = u16::try_from(here)
        {
            self.places.push(here);
        }
    }

    /// Where the labels of `name` from `index` on stand already, letter by letter.
    fn place_of(&self, name: &Name, index: usize) -> Option<u16> {
        let places = self.places.iter().copied();
        let mut same = places.filter(|place| self.stands_at(usize::from(*place), name, index));
        same.next()
    }

    fn stands_at(&self, mut at: usize, name: &Name, index: usize) -> bool {
        for label in name.iter().skip(index) {
            at = self.behind_pointer(at);
            let end = at + 1 + label.len();
            let same =
                self.octets.get(at).is_some_and(|length| usize::from(*length) == label.len())
                    && self.octets.get(at + 1..end) == Some(label);
            if !same {
                return false;
            }
            at = end;
        }
        self.octets.get(self.behind_pointer(at)) == Some(&0)
    }

    /// Where a label stands, following a pointer of ours; ours never lead to another pointer.
    fn behind_pointer(&self, at: usize) -> usize {
        match self.octets.get(at..at + 2) {
            Some([high, low]) if high & 0xc0 == 0xc0 => {
                usize::from(u16::from_be_bytes([high & 0x3f, *low]))
            }
            _ => at,
        }
    }

    fn u16(&mut self, value: u16) {
        self.octets.extend(value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::{
        op::Message,
        rr::{
            RecordType,
            rdata::{A, CNAME, MX, SOA, SRV, TXT},
        },
    };
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn header(answers: usize) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[2] = 0x80;
        header[5] = 1;
        header[6..8].copy_from_slice(&u16::try_from(answers).unwrap().to_be_bytes());
        header
    }

    /// What of `records` fits, as Hickory reads it, and the message's size.
    fn through(limit: usize, question: &Query, records: &[Record]) -> (usize, Message) {
        let mut writer = Writer::new(limit);
        writer.question(question);
        let count = records.iter().take_while(|record| writer.record(record)).count();
        let octets = writer.finish(header(count), &[]);
        (octets.len(), Message::from_vec(&octets).unwrap())
    }

    #[test]
    fn every_kind_of_record_is_read_back() {
        let question = Query::query(name("WWW.example.org."), RecordType::ANY);
        let owner = name("www.Example.org.");
        let soa = SOA::new(name("ns.example.org."), name("root.example.org."), 1, 2, -3, 4, 5);
        let records: Vec<_> = [
            RData::A(A(Ipv4Addr::LOCALHOST)),
            RData::CNAME(CNAME(name("a.www.Example.org."))),
            RData::SOA(soa),
            RData::SRV(SRV::new(0, 1, 2, name("a.www.Example.org."))),
            RData::MX(MX::new(1, name("mail.example.org."))),
            RData::TXT(TXT::new(vec!["1.1.0".to_owned()])),
        ]
        .into_iter()
        .map(|data| Record::from_rdata(owner.clone(), 5, data))
        .collect();
        let (_, message) = through(usize::MAX, &question, &records);
        assert!(message.queries[0].name().eq_case(question.name()));
        assert_eq!(message.answers, records);
        assert!(message.answers[0].name.eq_case(&owner), "the case is the record's own");
    }

    #[test]
    fn names_that_repeat_are_pointers() {
        let question = Query::query(name("hdls.testns.svc.cluster.local."), RecordType::A);
        let record = |bits| {
            let data = RData::A(A(Ipv4Addr::from_bits(bits)));
            Record::from_rdata(question.name().clone(), 5, data)
        };
        let records: Vec<_> = (0..4000).map(record).collect();
        let (size, message) = through(65_535, &question, &records);
        assert_eq!(size, HEADER + 31 + 4 + 4000 * 16, "two octets for each owner");
        assert_eq!(message.answers, records);
    }

    #[test]
    fn pointers_lead_nowhere_beyond_their_reach() {
        let question = Query::query(name("hdls.testns.svc.cluster.local."), RecordType::A);
        let record =
            |owner: &str| Record::from_rdata(name(owner), 5, RData::A(A(Ipv4Addr::LOCALHOST)));
        // 1,100 records of 16 octets end beyond octet 16,384, and then a new name comes twice.
        let mut records = vec![record("hdls.testns.svc.cluster.local."); 1100];
        records.extend(["late.example.org."; 2].map(record));
        let (_, message) = through(65_535, &question, &records);
        assert_eq!(message.answers, records);
    }

    #[test]
    fn a_record_that_does_not_fit_leaves_nothing() {
        let question = Query::query(name("a.org."), RecordType::A);
        let target = RData::CNAME(CNAME(name("long.name.that.is.elsewhere.net.")));
        let records = [
            Record::from_rdata(name("a.org."), 5, target),
            Record::from_rdata(name("elsewhere.net."), 5, RData::A(A(Ipv4Addr::LOCALHOST))),
        ];
        let (whole, _) = through(usize::MAX, &question, &records);
        for limit in 24..whole {
            let (size, message) = through(limit, &question, &records);
            assert!(size <= limit && message.answers.len() < 2);
        }
        // A pointer into what was taken back would not be readable.
        let mut writer = Writer::new(40);
        writer.question(&question);
        assert!(!writer.record(&records[0]));
        assert!(!writer.record(&records[1]));
        assert!(Message::from_vec(&writer.finish(header(0), &[])).is_ok());
    }

    proptest! {
        /// What is written is what is read, whatever names there are and however they end.
        #[test]
        fn any_names(names in prop::collection::vec("([abAB]{1,3}\\.){0,6}", 1..40)) {
            let question = Query::query(name("b.a."), RecordType::A);
            let records: Vec<_> = names
                .iter()
                .map(|text| name(if text.is_empty() { "." } else { text }))
                .map(|name| Record::from_rdata(name.clone(), 1, RData::CNAME(CNAME(name))))
                .collect();
            let (_, message) = through(usize::MAX, &question, &records);
            for (read, written) in message.answers.iter().zip(&records) {
                prop_assert!(read.name.eq_case(&written.name), "{} {}", read.name, written.name);
                prop_assert_eq!(&read.data, &written.data);
            }
            prop_assert_eq!(message.answers.len(), records.len());
        }
    }
}
