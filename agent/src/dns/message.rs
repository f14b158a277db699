//! Messages at the edge: what of a client's octets is a question for us, and how a reply becomes
//! octets that fit. Pure, and safe with any input.

use std::net::IpAddr;

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{DNSClass, Record, RecordType, rdata::opt::EdnsCode},
};

use super::{
    answer::Reply,
    wire::{self, HEADER, Writer},
};

/// What a UDP answer may have where the client names no size (RFC 1035 4.2.1).
const PLAIN_PAYLOAD: u16 = 512;
/// What a UDP answer may have at most, and what we say that we take: passes every network that
/// carries IPv6 without fragments (DNS flag day 2020).
pub const MAX_PAYLOAD: u16 = 1232;
/// The code of the option that explains failures (RFC 8914).
const EXTENDED_ERROR: u16 = 15;
/// The code of the option that hides how long a message is (RFC 7830).
pub const PADDING: u16 = 12;
/// Answers over TLS have a multiple of so many octets (RFC 8467 4.1),
const ANSWER_BLOCK: usize = 468;
/// questions one of so many.
pub const QUESTION_BLOCK: usize = 128;
/// Octets of an option before its data.
const OPTION_HEAD: usize = 4;

/// The transport by which a message came: it bounds the answer's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A stream with lengths before messages.
    Tcp,
    /// The same, encrypted.
    Tls,
}

/// What octets from a client are.
#[derive(Debug)]
pub enum Received {
    /// Nothing that may be answered.
    Nothing,
    /// Something that is answered without looking anything up.
    Refused(Vec<u8>),
    /// A question of class IN.
    Question(Box<Question>),
}

/// A question and all that its answer depends on.
#[derive(Clone, Debug)]
pub struct Question {
    /// The identifier that the answer repeats.
    pub id: u16,
    /// Whether upstreams may be asked (RD).
    pub recursion_desired: bool,
    /// Whether the client checks signatures itself (CD).
    pub checking_disabled: bool,
    /// Whether it wants to be told that an upstream has checked them (AD, RFC 6840 5.7).
    pub authentic_data: bool,
    /// The name, as it was written, and the type.
    pub query: Query,
    /// What the client said in OPT, if it did.
    pub edns: Option<ClientEdns>,
    /// How the answer travels.
    pub transport: Transport,
    /// Whose it is, as the server knows it: what is scarce is shared out by it. Nobody's where the
    /// agent asks by itself.
    pub client: Option<IpAddr>,
}

impl Question {
    /// A plain one, as of a client by UDP that knows no EDNS and wants upstreams to be asked.
    pub fn plain(query: Query) -> Self {
        Self {
            id: 0,
            recursion_desired: true,
            checking_disabled: false,
            authentic_data: false,
            query,
            edns: None,
            transport: Transport::Udp,
            client: None,
        }
    }
}

/// What a client says with EDNS (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientEdns {
    /// The largest datagram that it takes.
    pub payload: u16,
    /// Whether it wants signatures (DO).
    pub dnssec_ok: bool,
    /// Whether its question bears padding.
    pub padded: bool,
}

impl Question {
    /// Whether the client wants signatures.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }
}

/// The number of octets that an answer may have.
pub(super) fn limit(edns: Option<ClientEdns>, transport: Transport) -> u16 {
    match (transport, edns) {
        (Transport::Tcp | Transport::Tls, _) => u16::MAX,
        (Transport::Udp, None) => PLAIN_PAYLOAD,
        (Transport::Udp, Some(edns)) => edns.payload.clamp(PLAIN_PAYLOAD, MAX_PAYLOAD),
    }
}

/// Reads a client's message.
pub fn read(octets: &[u8], transport: Transport) -> Received {
    let Some(header) = octets.first_chunk::<HEADER>() else { return Received::Nothing };
    let is_response = header[2] & 0x80 != 0;
    if is_response {
        // To answer an answer would let two servers talk for ever.
        return Received::Nothing;
    }
    if header[2] >> 3 & 0xf != u8::from(OpCode::Query) {
        return Received::Refused(bare(header, ResponseCode::NotImp));
    }
    let questions = u16::from_be_bytes([header[4], header[5]]);
    if questions != 1 {
        return Received::Refused(bare(header, ResponseCode::FormErr));
    }
    let message = Message::from_vec(octets).or_else(|error| {
        // Options that nobody here understands are ignored, whatever they hold (RFC 6891 6.1.2).
        let plain = wire::with_options(octets, |code| code == PADDING);
        plain.map_or(Err(error), |octets| Message::from_vec(&octets))
    });
    match message {
        Ok(message) => classify(message, transport),
        Err(error) => {
            tracing::debug!(%error, "malformed query");
            Received::Refused(bare(header, ResponseCode::FormErr))
        }
    }
}

fn classify(mut message: Message, transport: Transport) -> Received {
    let Some(query) = message.queries.pop() else { return Received::Nothing };
    let question = Question {
        id: message.metadata.id,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        authentic_data: message.metadata.authentic_data,
        query,
        edns: message.edns.as_ref().map(|edns| ClientEdns {
            payload: edns.max_payload(),
            dnssec_ok: edns.flags().dnssec_ok,
            padded: edns.option(EdnsCode::Padding).is_some(),
        }),
        transport,
        client: None,
    };
    let code = match question.query.query_type() {
        _ if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) => {
            Some(ResponseCode::BADVERS)
        }
        _ if question.query.query_class() != DNSClass::IN => Some(ResponseCode::Refused),
        // No type of records, and none that a name could be asked for (RFC 6895 3.1).
        RecordType::ZERO => Some(ResponseCode::FormErr),
        // The zone is not for copying.
        RecordType::AXFR | RecordType::IXFR => Some(ResponseCode::Refused),
        _ => None,
    };
    match code {
        Some(code) => Received::Refused(write(&question, &Reply::of_code(code))),
        None => Received::Question(Box::new(question)),
    }
}

/// An answer that is a header and nothing else, to a message of which only the header is sure.
fn bare(header: &[u8; HEADER], code: ResponseCode) -> Vec<u8> {
    let mut answer = [0; HEADER];
    answer[..2].copy_from_slice(&header[..2]);
    // QR, and the client's opcode and RD.
    answer[2] = 0x80 | header[2] & 0x79;
    answer[3] = 0x80 | code.low();
    answer.to_vec()
}

/// A number of records of which no message to who asked this has room for all.
pub fn most_records(question: &Question) -> usize {
    /// Of an IPv4 address, whose name is pointed to: none has fewer octets.
    const SMALLEST: usize = 16;
    usize::from(limit(question.edns, question.transport)) / SMALLEST + 1
}

/// The octets of `reply` to `question`. Cut on whole records where it does not fit: first what is
/// beside the answer, which is a courtesy, then the answer itself, with TC set.
pub fn write(question: &Question, reply: &Reply) -> Vec<u8> {
    let opt = question.edns.map_or_else(Vec::new, |client| opt(client, reply));
    let mut writer = Writer::new(
        usize::from(limit(question.edns, question.transport)).saturating_sub(opt.len()),
    );
    writer.question(&question.query);
    let mut fits = true;
    let mut section = |records: &[Record]| {
        let written = records.iter().take_while(|record| fits && writer.record(record)).count();
        fits &= written == records.len();
        written
    };
    let answers = section(&reply.answers);
    let authorities = section(&reply.authorities);
    let cut = !fits;
    let before = writer.mark();
    let mut additionals = if cut { 0 } else { reply.additionals.len() };
    if !reply.additionals[..additionals].iter().all(|record| writer.record(record)) {
        // Some of a name's addresses would pass for all of them.
        writer.back_to(before);
        additionals = 0;
    }
    additionals += usize::from(!opt.is_empty());
    let counts = [1, answers, authorities, additionals];
    let mut octets = writer.finish(header(question, reply, cut, counts), &opt);
    // In the clear it would hide nothing, and make more of what is sent in a client's name.
    if question.transport == Transport::Tls && question.edns.is_some_and(|edns| edns.padded) {
        pad(&mut octets, opt.len());
    }
    octets
}

/// Appends padding to a message that ends with an OPT record of so many octets, where it stays
/// within what a message may have.
fn pad(octets: &mut Vec<u8>, opt: usize) {
    /// Of the length of its data in an OPT record.
    const LENGTH: usize = 9;
    let zeros = padding(octets.len(), ANSWER_BLOCK);
    let opt_start = octets.len() - opt;
    let (Ok(length), Ok(zeros)) =
        (u16::try_from(opt - LENGTH - 2 + OPTION_HEAD + zeros), u16::try_from(zeros))
    else {
        return;
    };
    if octets.len() + OPTION_HEAD + usize::from(zeros) > usize::from(u16::MAX) {
        return;
    }
    octets[opt_start + LENGTH..][..2].copy_from_slice(&length.to_be_bytes());
    octets.extend(PADDING.to_be_bytes());
    octets.extend(zeros.to_be_bytes());
    octets.resize(octets.len() + usize::from(zeros), 0);
}

/// How many zeros the option takes that makes a message of so many octets one of whole blocks.
pub fn padding(octets: usize, block: usize) -> usize {
    let with_option = octets + OPTION_HEAD;
    with_option.next_multiple_of(block) - with_option
}

/// The header of an answer (RFC 1035 4.1.1, RFC 4035 3.2).
fn header(question: &Question, reply: &Reply, cut: bool, counts: [usize; 4]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&question.id.to_be_bytes());
    let bit = |is: bool, place: u8| u8::from(is) << place;
    let truncated = reply.truncated || cut;
    // Others don't know the bit (RFC 6840 5.8).
    let authentic = reply.authentic && (question.authentic_data || question.dnssec_ok());
    header[2] = bit(true, 7)
        | bit(reply.authoritative, 2)
        | bit(truncated, 1)
        | bit(question.recursion_desired, 0);
    header[3] =
        bit(true, 7) | bit(authentic, 5) | bit(question.checking_disabled, 4) | reply.code.low();
    for (place, count) in header[4..].chunks_exact_mut(2).zip(counts) {
        // A message has no room for more records than this can count.
        place.copy_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
    }
    header
}

/// Our OPT record (RFC 6891 6.1): version 0, our size, the client's DO, and why it failed.
fn opt(client: ClientEdns, reply: &Reply) -> Vec<u8> {
    let mut data = Vec::new();
    if let Some(explanation) = reply.explanation {
        let text = explanation.text().as_bytes();
        // The texts are ours, and short.
        let length = u16::try_from(2 + text.len()).unwrap_or(u16::MAX);
        for value in [EXTENDED_ERROR, length, explanation.code()] {
            data.extend(value.to_be_bytes());
        }
        data.extend(text);
    }
    let mut opt = vec![0];
    opt.extend(u16::from(RecordType::OPT).to_be_bytes());
    opt.extend(MAX_PAYLOAD.to_be_bytes());
    opt.extend([reply.code.high(), 0, u8::from(client.dnssec_ok) << 7, 0]);
    opt.extend(u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
    opt.extend(data);
    opt
}

#[cfg(test)]
mod tests;
