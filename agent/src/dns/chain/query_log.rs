//! `log`: a line for each answer, in the form that CoreDNS's `log` has. What goes into a line is
//! noted when the answer goes out; the line is made and written elsewhere, and where that can't
//! keep up lines are lost and counted, never answers held up.

use std::{fmt::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RecordType},
};

use super::text;
use crate::dns::{
    answer::Reply,
    message::{ClientEdns, Transport},
};

/// CoreDNS's default form.
pub const COMMON: &str = "{remote}:{port} - {>id} \"{type} {class} {name} {proto} {size} {>do} \
                          {>bufsize}\" {rcode} {>rflags} {rsize} {duration}";
/// The same with the opcode.
pub const COMBINED: &str = "{remote}:{port} - {>id} \"{type} {class} {name} {proto} {size} {>do} \
                            {>bufsize}\" {rcode} {>rflags} {rsize} {duration} \"{>opcode}\"";

/// Which answers are logged, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRule {
    /// For names in these zones.
    pub zones: Vec<Name>,
    /// The form of a line.
    pub format: Arc<Format>,
    /// Answers of these classes.
    pub classes: Vec<Class>,
    /// And all that took longer.
    pub slow: Option<Duration>,
}

impl LogRule {
    /// Whether an answer is logged.
    pub fn admits(&self, reply: &Reply, took: Duration) -> bool {
        self.classes.iter().any(|class| *class == Class::All || *class == Class::of(reply))
            || self.slow.is_some_and(|slow| took > slow)
    }
}

/// What kind of answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Any.
    All,
    /// There is something.
    Success,
    /// There is no such name, or nothing of that type.
    Denial,
    /// It failed or was refused.
    Error,
}

impl Class {
    /// The class of that name in a Corefile.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "all" => Self::All,
            "success" => Self::Success,
            "denial" => Self::Denial,
            "error" => Self::Error,
            _ => return None,
        })
    }

    fn of(reply: &Reply) -> Self {
        let has_soa =
            || reply.authorities.iter().any(|record| record.record_type() == RecordType::SOA);
        match reply.code {
            ResponseCode::NoError if reply.answers.is_empty() && has_soa() => Self::Denial,
            ResponseCode::NoError => Self::Success,
            ResponseCode::NXDomain => Self::Denial,
            _ => Self::Error,
        }
    }
}

/// What stands in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Type,
    Name,
    Class,
    Proto,
    Remote,
    Size,
    Port,
    Duration,
    Code,
    ResponseSize,
    ResponseFlags,
    Payload,
    DnssecOk,
    Id,
    Opcode,
}

const FIELDS: [(&str, Field); 15] = [
    ("type", Field::Type),
    ("name", Field::Name),
    ("class", Field::Class),
    ("proto", Field::Proto),
    ("remote", Field::Remote),
    ("size", Field::Size),
    ("port", Field::Port),
    ("duration", Field::Duration),
    ("rcode", Field::Code),
    ("rsize", Field::ResponseSize),
    (">rflags", Field::ResponseFlags),
    (">bufsize", Field::Payload),
    (">do", Field::DnssecOk),
    (">id", Field::Id),
    (">opcode", Field::Opcode),
];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

/// The form of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format(Vec<Part>);

impl Default for Format {
    /// CoreDNS's.
    fn default() -> Self {
        Self::new(COMMON).unwrap_or(Self(Vec::new()))
    }
}

impl Format {
    /// The form that `text` is, with `{…}` in the places of what differs; or what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.replace("{common}", COMMON).replace("{combined}", COMBINED);
        let mut parts = Vec::new();
        let mut rest = &*text;
        while let Some((before, behind)) = rest.split_once('{') {
            let (name, behind) = behind
                .split_once('}')
                .ok_or_else(|| format!("the brace before {behind:?} has no end"))?;
            let field = FIELDS.iter().find(|(known, _)| *known == name);
            let (_, field) = field.ok_or_else(|| {
                let known: Vec<_> =
                    FIELDS.iter().map(|(known, _)| format!("{{{known}}}")).collect();
                format!(
                    "{{{name}}} is not supported in a log line; supported are {}",
                    known.join(" ")
                )
            })?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Field(*field));
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// The line of an answer.
    pub fn line(&self, entry: &Entry) -> String {
        let mut line = String::with_capacity(160);
        for part in &self.0 {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Field(field) => entry.write(*field, &mut line),
            }
        }
        line
    }
}

/// What a line is made of.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Who asked.
    pub client: SocketAddr,
    /// How.
    pub transport: Transport,
    /// The question's identifier.
    pub id: u16,
    /// What was asked for.
    pub name: Name,
    /// Of which type.
    pub kind: RecordType,
    /// What the client said with EDNS.
    pub edns: Option<ClientEdns>,
    /// The question's octets.
    pub size: usize,
    /// The answer's code.
    pub code: ResponseCode,
    /// The two octets of flags in its header (RFC 1035 4.1.1).
    pub flags: [u8; 2],
    /// Its octets.
    pub response_size: usize,
    /// How long it took.
    pub took: Duration,
}

impl Entry {
    fn write(&self, field: Field, line: &mut String) {
        // Writing to a String can't fail.
        let _ = match field {
            Field::Type => write!(line, "{}", self.kind),
            Field::Name => write!(line, "{}", text::of(&self.name)),
            Field::Class => write!(line, "IN"),
            Field::Proto => {
                write!(line, "{}", if self.transport == Transport::Udp { "udp" } else { "tcp" })
            }
            Field::Remote if self.client.is_ipv6() => write!(line, "[{}]", self.client.ip()),
            Field::Remote => write!(line, "{}", self.client.ip()),
            Field::Size => write!(line, "{}", self.size),
            Field::Port => write!(line, "{}", self.client.port()),
            Field::Duration => {
                write!(line, "{}.{:09}s", self.took.as_secs(), self.took.subsec_nanos())
            }
            Field::Code => write!(line, "{}", code(self.code)),
            Field::ResponseSize => write!(line, "{}", self.response_size),
            Field::ResponseFlags => write!(line, "{}", self.flags()),
            // What a client takes that does not say (RFC 1035 4.2.1).
            Field::Payload => write!(line, "{}", self.edns.map_or(512, |edns| edns.payload)),
            Field::DnssecOk => write!(line, "{}", self.edns.is_some_and(|edns| edns.dnssec_ok)),
            Field::Id => write!(line, "{}", self.id),
            Field::Opcode => write!(line, "0"),
        };
    }

    fn flags(&self) -> String {
        let names = ["qr", "aa", "tc", "rd", "ra", "ad", "cd"];
        // The other bits are the opcode, the code, and one that is always zero.
        let [first, second] = self.flags;
        let bits =
            [first >> 7, first >> 2, first >> 1, first, second >> 7, second >> 5, second >> 4];
        let set = names.iter().zip(bits).filter(|(_, bit)| bit & 1 == 1);
        let set: Vec<_> = set.map(|(name, _)| *name).collect();
        set.join(",")
    }
}

/// What CoreDNS calls a code.
fn code(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".into(),
        ResponseCode::FormErr => "FORMERR".into(),
        ResponseCode::ServFail => "SERVFAIL".into(),
        ResponseCode::NXDomain => "NXDOMAIN".into(),
        ResponseCode::NotImp => "NOTIMP".into(),
        ResponseCode::Refused => "REFUSED".into(),
        other => u16::from(other).to_string(),
    }
}

/// An entry for tests.
#[cfg(test)]
pub(in crate::dns) fn entry() -> Entry {
    Entry {
        client: "[::1]:50759".parse().unwrap(),
        transport: Transport::Udp,
        id: 29_008,
        name: Name::from_ascii("Example.org.").unwrap(),
        kind: RecordType::A,
        edns: Some(ClientEdns { payload: 4096, dnssec_ok: false, padded: false }),
        size: 41,
        code: ResponseCode::NoError,
        flags: [0x81, 0xa0],
        response_size: 68,
        took: Duration::from_nanos(37_990_251),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_form_is_that_of_coredns() {
        let line = Format::new(COMMON).unwrap().line(&entry());
        let expected = "[::1]:50759 - 29008 \"A IN example.org. udp 41 false 4096\" NOERROR \
                        qr,rd,ra,ad 68 0.037990251s";
        assert_eq!(line, expected);
        assert_eq!(Format::new("{combined}").unwrap().line(&entry()), format!("{expected} \"0\""));
        let plain = Entry {
            client: "192.0.2.7:53".parse().unwrap(),
            transport: Transport::Tcp,
            edns: None,
            code: ResponseCode::NXDomain,
            flags: [0x86, 0x13],
            ..entry()
        };
        let line =
            Format::new("{proto} {remote} {>bufsize}: {rcode} {>rflags}").unwrap().line(&plain);
        assert_eq!(line, "tcp 192.0.2.7 512: NXDOMAIN qr,aa,tc,cd");
    }

    #[test]
    fn forms_that_are_none() {
        assert!(Format::new("{local}").unwrap_err().contains("{local} is not supported"));
        assert!(Format::new("{type").unwrap_err().contains("no end"));
        assert!(Format::new("{/kubernetes/endpoint}").is_err());
    }

    #[test]
    fn classes_and_times() {
        let soa = hickory_proto::rr::rdata::SOA::new(Name::root(), Name::root(), 1, 2, 3, 4, 5);
        let soa = hickory_proto::rr::RData::SOA(soa);
        let soa = hickory_proto::rr::Record::from_rdata(Name::root(), 5, soa);
        let nodata = Reply { authorities: vec![soa], ..Reply::default() };
        let of = |code| Class::of(&Reply::of_code(code));
        assert_eq!(Class::of(&nodata), Class::Denial);
        assert_eq!(of(ResponseCode::NXDomain), Class::Denial);
        assert_eq!(of(ResponseCode::NoError), Class::Success);
        assert_eq!(of(ResponseCode::Refused), Class::Error);
        let rule = |classes: &[&str], slow| LogRule {
            zones: vec![Name::root()],
            format: Arc::new(Format::new(COMMON).unwrap()),
            classes: classes.iter().map(|name| Class::named(name).unwrap()).collect(),
            slow,
        };
        let (good, second) = (Reply::default(), Duration::from_secs(1));
        assert!(rule(&["all"], None).admits(&good, second));
        assert!(rule(&["denial", "success"], None).admits(&good, second));
        assert!(!rule(&["denial", "error"], None).admits(&good, second));
        assert!(rule(&["error"], Some(second / 2)).admits(&good, second), "it was slow");
        assert!(!rule(&["error"], Some(second)).admits(&good, second));
    }
}
