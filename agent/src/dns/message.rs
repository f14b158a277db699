//! Messages at the edge: what of a client's octets is a question for us, and how a reply becomes
//! octets that fit. Pure, and safe with any input.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode, emit_message_parts},
    rr::{DNSClass, Record, RecordType, rdata::opt::EdnsOption},
    serialize::binary::BinEncoder,
};

use super::answer::Reply;

/// Octets of a message's header.
const HEADER: usize = 12;
/// What a UDP answer may have where the client names no size (RFC 1035 4.2.1).
const PLAIN_PAYLOAD: u16 = 512;
/// What a UDP answer may have at most, and what we say that we take: passes every network that
/// carries IPv6 without fragments (DNS flag day 2020).
pub const MAX_PAYLOAD: u16 = 1232;
/// The code of the option that explains failures (RFC 8914).
const EXTENDED_ERROR: u16 = 15;

/// The transport by which a message came: it bounds the answer's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A stream with lengths before messages.
    Tcp,
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
    /// The name, as it was written, and the type.
    pub query: Query,
    /// What the client said in OPT, if it did.
    pub edns: Option<ClientEdns>,
    /// How the answer travels.
    pub transport: Transport,
}

/// What a client says with EDNS (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientEdns {
    /// The largest datagram that it takes.
    pub payload: u16,
    /// Whether it wants signatures (DO).
    pub dnssec_ok: bool,
}

impl Question {
    /// The number of octets that the answer may have.
    fn limit(&self) -> u16 {
        match (self.transport, self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_PAYLOAD,
            (Transport::Udp, Some(edns)) => edns.payload.clamp(PLAIN_PAYLOAD, MAX_PAYLOAD),
        }
    }

    /// Whether the client wants signatures.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
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
    match Message::from_vec(octets) {
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
        query,
        edns: message.edns.as_ref().map(|edns| ClientEdns {
            payload: edns.max_payload(),
            dnssec_ok: edns.flags().dnssec_ok,
        }),
        transport,
    };
    let code = match question.query.query_type() {
        _ if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) => {
            Some(ResponseCode::BADVERS)
        }
        _ if question.query.query_class() != DNSClass::IN => Some(ResponseCode::Refused),
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

/// The octets of `reply` to `question`. Cut on whole records where it does not fit: first what is
/// beside the answer, which is a courtesy, then the answer itself, with TC set.
pub fn write(question: &Question, reply: &Reply) -> Vec<u8> {
    let mut message = message_of(question, reply);
    let limit = question.limit();
    if let Some(octets) = whole(&message, limit) {
        return octets;
    }
    message.additionals.clear();
    if let Some(octets) = whole(&message, limit) {
        return octets;
    }
    message.metadata.truncation = true;
    let room = limit.saturating_sub(opt_size(&message));
    let (answers, authorities) = counts_within(&message, room);
    let rest = message.answers.split_off(answers);
    message.authorities.truncate(authorities);
    let mut octets = whole(&message, limit).unwrap_or_else(|| failure(question));
    // The count is on the safe side by what names take before they are compressed.
    for record in rest {
        message.answers.push(record);
        match whole(&message, limit) {
            Some(larger) => octets = larger,
            None => break,
        }
    }
    octets
}

fn message_of(question: &Question, reply: &Reply) -> Message {
    let mut message = Message::new(question.id, MessageType::Response, OpCode::Query);
    message.metadata.response_code = reply.code;
    message.metadata.authoritative = reply.authoritative;
    message.metadata.authentic_data = reply.authentic;
    message.metadata.truncation = reply.truncated;
    message.metadata.recursion_desired = question.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = question.checking_disabled;
    message.queries = vec![question.query.clone()];
    message.answers.clone_from(&reply.answers);
    message.authorities.clone_from(&reply.authorities);
    message.additionals.clone_from(&reply.additionals);
    if let Some(client) = question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_PAYLOAD).set_dnssec_ok(client.dnssec_ok);
        if let Some(explanation) = reply.explanation {
            let mut data = explanation.code().to_be_bytes().to_vec();
            data.extend(explanation.text().bytes());
            edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
        }
        message.set_edns(edns);
    }
    message
}

/// The message's octets where they are no more than `limit`.
fn whole(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut octets);
    // Where it stops early it says so with TC. It needs room for a name before compressing it.
    encoder.set_max_size(limit.saturating_add(255));
    let header = emit(message, message.edns.as_ref(), &mut encoder)?;
    let cut = header.metadata.truncation && !message.metadata.truncation;
    (octets.len() <= usize::from(limit) && !cut).then_some(octets)
}

/// How many records of the answer and authority sections fit into `room` octets.
fn counts_within(message: &Message, room: u16) -> (usize, usize) {
    let mut octets = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_max_size(room);
    emit(message, None, &mut encoder).map_or((0, 0), |header| {
        (usize::from(header.counts.answers), usize::from(header.counts.authorities))
    })
}

fn emit(
    message: &Message,
    edns: Option<&Edns>,
    encoder: &mut BinEncoder<'_>,
) -> Option<hickory_proto::op::Header> {
    emit_message_parts(
        &message.metadata,
        &mut message.queries.iter(),
        &mut message.answers.iter(),
        &mut message.authorities.iter(),
        &mut message.additionals.iter(),
        edns,
        None,
        encoder,
    )
    .inspect_err(|error| tracing::debug!(%error, "answer can't be encoded"))
    .ok()
}

/// The octets that the message's OPT takes.
fn opt_size(message: &Message) -> u16 {
    let Some(edns) = &message.edns else { return 0 };
    let mut octets = Vec::new();
    let mut encoder = BinEncoder::new(&mut octets);
    match encoder.emit_all(std::iter::once(&Record::from(edns))) {
        Ok(_) => u16::try_from(octets.len()).unwrap_or(u16::MAX),
        Err(_) => u16::MAX,
    }
}

/// What is sent where a reply can't be encoded, which no record that we made or read should cause.
fn failure(question: &Question) -> Vec<u8> {
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&question.id.to_be_bytes());
    header[2] = u8::from(question.recursion_desired);
    bare(&header, ResponseCode::ServFail)
}

#[cfg(test)]
mod tests;
