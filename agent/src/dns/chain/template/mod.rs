//! `template`: answers made of the question, where a pattern is found in its name.

mod go;

use std::net::IpAddr;

use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};

pub use self::go::Text;
use super::{
    text::{self, Pattern},
    zone_of,
};
use crate::dns::answer::{Explanation, Reply};

/// A template.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Template {
    /// For names in these zones.
    pub zones: Vec<Name>,
    /// For this type; `None`: for any.
    pub kind: Option<RecordType>,
    /// The first of these that is found in the name counts; without any all names fit.
    pub patterns: Vec<Pattern>,
    /// Records of the answer.
    pub answers: Vec<Text>,
    /// Records of the authority section.
    pub authorities: Vec<Text>,
    /// Records of the additional section.
    pub additionals: Vec<Text>,
    /// The response code.
    pub code: ResponseCode,
    /// The code of RFC 8914 that says why.
    pub explanation: Option<u16>,
    /// In which zones a name that no pattern fits is for others to answer; elsewhere it fails.
    pub fallthrough: Vec<Name>,
}

/// What a template may speak of.
struct Subject<'a> {
    query: &'a Query,
    client: IpAddr,
    zone: String,
    name: String,
}

impl Template {
    /// Whether everything that its texts speak of can be there; or what can't.
    pub fn check(&self, text: &Text) -> Result<(), String> {
        text.check(&self.patterns)
    }
}

/// The answer that one of `templates` gives; `None` where all leave it to others.
pub fn answer(templates: &[Template], query: &Query, client: IpAddr) -> Option<Reply> {
    let name = text::of(query.name());
    for template in templates {
        let Some(zone) = zone_of(&template.zones, query.name()) else { continue };
        let of_type = |kind| kind == query.query_type() || query.query_type() == RecordType::ANY;
        if !template.kind.is_none_or(of_type) {
            continue;
        }
        let (name, zone) = (name.clone(), text::of(zone));
        let subject = Subject { query, client, zone, name };
        match template.reply(&subject) {
            Some(reply) => return Some(reply),
            None if template.fallthrough.iter().any(|zone| zone.zone_of(query.name())) => {}
            None => return Some(Reply::failure(Explanation::NoTemplate)),
        }
    }
    None
}

impl Template {
    /// What it says; `None` where no pattern fits.
    fn reply(&self, subject: &Subject<'_>) -> Option<Reply> {
        let found = self.patterns.iter().find_map(|pattern| pattern.found(&subject.name));
        if found.is_none() && !self.patterns.is_empty() {
            return None;
        }
        let section = |texts: &[Text]| -> Option<Vec<Record>> {
            let record = |text: &Text| record(&text.filled(subject, found.as_ref())?);
            texts.iter().map(record).collect()
        };
        let sections = || {
            let [answers, authorities, additionals] =
                [&self.answers, &self.authorities, &self.additionals].map(|texts| section(texts));
            Some((answers?, authorities?, additionals?))
        };
        // What is no record is a defect of the template, and not for the client to guess.
        let Some((answers, authorities, additionals)) = sections() else {
            tracing::debug!(name = %subject.query.name(), "template makes no record");
            return Some(Reply::failure(Explanation::NoTemplate));
        };
        Some(Reply {
            code: self.code,
            authoritative: true,
            answers,
            authorities,
            additionals,
            explanation: self.explanation.map(Explanation::Configured),
            ..Reply::default()
        })
    }
}

/// The response code of that name, as zone and configuration files write it.
pub fn code_named(name: &str) -> Option<ResponseCode> {
    Some(match name {
        "NOERROR" => ResponseCode::NoError,
        "FORMERR" => ResponseCode::FormErr,
        "SERVFAIL" => ResponseCode::ServFail,
        "NXDOMAIN" => ResponseCode::NXDomain,
        "NOTIMP" => ResponseCode::NotImp,
        "REFUSED" => ResponseCode::Refused,
        "YXDOMAIN" => ResponseCode::YXDomain,
        "YXRRSET" => ResponseCode::YXRRSet,
        "NXRRSET" => ResponseCode::NXRRSet,
        "NOTAUTH" => ResponseCode::NotAuth,
        "NOTZONE" => ResponseCode::NotZone,
        _ => return None,
    })
}

/// How long a record may be kept that does not say it, in seconds; CoreDNS's.
const TTL: u32 = 3600;

/// The record that `text` is, as zone files have it (RFC 1035 5.1): owner, TTL and class in any
/// order or not at all, type, data.
fn record(text: &str) -> Option<Record> {
    let (owner, mut rest) = word(text)?;
    let owner = text::name(owner)?;
    let mut ttl = TTL;
    loop {
        let (first, behind) = word(rest)?;
        rest = behind;
        if first.eq_ignore_ascii_case("IN") {
        } else if let Ok(seconds) = first.parse() {
            ttl = seconds;
        } else {
            let kind: RecordType = first.to_ascii_uppercase().parse().ok()?;
            let mut data = RData::try_from_str(kind, rest.trim()).ok()?;
            // A dot at the end is understood.
            if let Some(name) = text::target(&mut data) {
                name.set_fqdn(true);
            }
            if let RData::SOA(soa) = &mut data {
                soa.rname.set_fqdn(true);
            }
            return Some(Record::from_rdata(owner, ttl, data));
        }
    }
}

/// The first word and what stands behind it.
fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests;
