//! One question to one upstream: by UDP from a port of its own with an identifier of its own, and
//! by TCP where the answer did not fit; or over TLS.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, ResponseCode},
    rr::rdata::opt::{EdnsCode, EdnsOption},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout, timeout_at},
};

use super::link::Link;
use crate::dns::message::{MAX_PAYLOAD, PADDING, QUESTION_BLOCK, Question, padding};

/// Larger than what we say that we take: some upstreams don't listen.
const DATAGRAM: usize = 4096;
/// How long the real answer may come after one whose question is in other letters. What is left of
/// the time for a try is enough to ask by TCP.
const OTHER_LETTERS: Duration = Duration::from_millis(100);

/// How long an upstream may take to say by TCP what did not fit a datagram, before the part that did
/// is the answer.
const WHOLE: Duration = Duration::from_millis(1500);

/// An upstream's answer.
#[derive(Debug)]
pub struct Received {
    /// As it was read.
    pub message: Message,
    /// As it came.
    pub octets: Vec<u8>,
}

impl Received {
    /// The same, shorter: what is kept of it need not hide anything.
    fn without_padding(mut self) -> Self {
        let edns = self.message.edns.as_mut();
        let padded = edns.filter(|edns| edns.option(EdnsCode::Padding).is_some());
        if let Some(edns) = padded {
            edns.options_mut().remove(EdnsCode::Padding);
            // Where it can't be written it stays as it came.
            if let Ok(octets) = self.message.to_vec() {
                self.octets = octets;
            }
        }
        self
    }
}

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The question can't be written.
    #[error("encode the question")]
    Encode(#[from] hickory_proto::ProtoError),
    /// The system reports an error, such as that nobody listens there.
    #[error("{operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The answer by TCP is none to this question.
    #[error("the answer over TCP is not to the question")]
    Mismatch,
    /// Too many questions wait for the connection to this upstream.
    #[error("too many questions are under way to this upstream")]
    Busy,
    /// The connection was closed, or could not be made, before the answer came.
    #[error("the connection ended before the answer came")]
    Closed,
}

impl ExchangeError {
    fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }

    /// Whether the network, or the upstream's host, says that nobody is there.
    pub(super) fn is_of_network(&self) -> bool {
        use io::ErrorKind::{
            ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
        };
        let Self::Io { source, .. } = self else { return false };
        matches!(
            source.kind(),
            ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable
        )
    }
}

/// The way to an upstream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way<'a> {
    /// By UDP, and by TCP what did not fit.
    Udp(SocketAddr),
    /// By TCP alone.
    Tcp(SocketAddr),
    /// Over TLS.
    Tls(&'a Link),
}

/// Asks an upstream. Takes as long as it takes: the caller has the clock. Datagrams that come from
/// there and are no answers are counted in `passed_over`.
pub(super) async fn ask(
    way: Way<'_>,
    question: &Question,
    passed_over: &AtomicU64,
) -> Result<Received, ExchangeError> {
    let mut query = query(question);
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_PAYLOAD).set_dnssec_ok(question.dnssec_ok());
    query.set_edns(edns);
    // Whoever asks later may want to know (RFC 6840 5.7): the answer is kept for all.
    query.metadata.authentic_data = true;
    let received = put(way, &query, passed_over).await?;
    let code = received.message.metadata.response_code;
    if matches!(code, ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS) {
        // It may be older than EDNS (RFC 6891 7).
        return put(way, &self::query(question), passed_over).await;
    }
    Ok(received)
}

/// Asks another resolver, by UDP first. Takes as long as it takes.
pub(in crate::dns) async fn ask_at(
    at: SocketAddr,
    question: &Question,
) -> Result<Received, ExchangeError> {
    ask(Way::Udp(at), question, &AtomicU64::new(0)).await
}

/// The question as it is put to an upstream, without EDNS.
fn query(question: &Question) -> Message {
    // A random identifier, from a generator that can't be guessed (RFC 5452).
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.metadata.checking_disabled = question.checking_disabled;
    query.add_query(question.query.clone());
    query
}

async fn put(
    way: Way<'_>,
    query: &Message,
    passed_over: &AtomicU64,
) -> Result<Received, ExchangeError> {
    let octets = query.to_vec()?;
    match way {
        Way::Tls(link) => {
            let octets = padded(query.clone(), octets.len())?;
            Ok(link.ask(query, octets).await?.without_padding())
        }
        Way::Tcp(upstream) => by_tcp(upstream, query, &octets).await,
        Way::Udp(upstream) => match by_udp(upstream, query, &octets, passed_over).await? {
            Some(received) if !received.message.metadata.truncation => Ok(received),
            Some(part) => {
                let whole = timeout(WHOLE, by_tcp(upstream, query, &octets)).await;
                // Who asks is told that it is a part, and may have a better way than ours.
                Ok(whole.ok().and_then(Result::ok).unwrap_or(part))
            }
            None => by_tcp(upstream, query, &octets).await,
        },
    }
}

/// The octets of a question that has so many without it, with padding (RFC 8467 4.1).
fn padded(mut query: Message, length: usize) -> Result<Vec<u8>, ExchangeError> {
    let zeros = vec![0; padding(length, QUESTION_BLOCK)];
    if let Some(edns) = &mut query.edns {
        edns.options_mut().insert(EdnsOption::Unknown(PADDING, zeros));
    }
    Ok(query.to_vec()?)
}

/// `None` where the upstream answers with a question in other letters than ours: either it does so
/// always, or that was a forgery, which TCP tells.
async fn by_udp(
    upstream: SocketAddr,
    query: &Message,
    octets: &[u8],
    passed_over: &AtomicU64,
) -> Result<Option<Received>, ExchangeError> {
    // A fresh socket has a fresh port, and connected it takes only what comes from the upstream.
    let any = match upstream.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(ExchangeError::io("open a UDP socket"))?;
    socket.connect(upstream).await.map_err(ExchangeError::io("connect the UDP socket"))?;
    socket.send(octets).await.map_err(ExchangeError::io("send the question"))?;
    let mut buffer = [0; DATAGRAM];
    let mut in_other_letters = None;
    loop {
        let receiving = socket.recv(&mut buffer);
        let received = match in_other_letters {
            None => receiving.await,
            Some(until) => match timeout_at(until, receiving).await {
                Ok(received) => received,
                Err(_) => return Ok(None),
            },
        };
        let length = received.map_err(ExchangeError::io("receive the answer"))?;
        // Anything else may be a forgery: the real answer can still come.
        match answer_to(query, &buffer[..length]) {
            Some(message) if in_same_letters(query, &message) => {
                return Ok(Some(Received { message, octets: buffer[..length].to_vec() }));
            }
            Some(_) => {
                in_other_letters.get_or_insert_with(|| Instant::now() + OTHER_LETTERS);
            }
            None => {}
        }
        passed_over.fetch_add(1, Relaxed);
    }
}

async fn by_tcp(
    upstream: SocketAddr,
    query: &Message,
    octets: &[u8],
) -> Result<Received, ExchangeError> {
    let mut stream =
        TcpStream::connect(upstream).await.map_err(ExchangeError::io("connect by TCP"))?;
    let length = u16::try_from(octets.len()).map_err(|_| ExchangeError::Mismatch)?;
    let framed = [&length.to_be_bytes()[..], octets].concat();
    stream.write_all(&framed).await.map_err(ExchangeError::io("send the question by TCP"))?;
    let length = stream.read_u16().await.map_err(ExchangeError::io("receive the answer by TCP"))?;
    let mut octets = vec![0; usize::from(length)];
    stream.read_exact(&mut octets).await.map_err(ExchangeError::io("receive the answer by TCP"))?;
    let message = answer_to(query, &octets).ok_or(ExchangeError::Mismatch)?;
    Ok(Received { message, octets })
}

/// Whether the question stands in the answer letter by letter as it was asked (RFC 5452 9.1 has
/// identifier and port to go by; small and capital letters of a name are a third).
fn in_same_letters(query: &Message, answer: &Message) -> bool {
    let mut both = query.queries.iter().zip(&answer.queries);
    both.all(|(asked, answered)| asked.name().eq_case(answered.name()))
}

/// Reads `octets` where they are an answer to `query`: same identifier, same question. One that
/// can't read EDNS may say so without the question.
pub(super) fn answer_to(query: &Message, octets: &[u8]) -> Option<Message> {
    let id = query.metadata.id.to_be_bytes();
    // Before the parser sees it: a header, our identifier, and one question or none.
    if octets.len() < 12 || octets[..2] != id || !matches!(octets[4..6], [0, 0 | 1]) {
        return None;
    }
    let message = Message::from_vec(octets).ok()?;
    let misread = || {
        let code = message.metadata.response_code;
        query.edns.is_some() && matches!(code, ResponseCode::FormErr | ResponseCode::NotImp)
    };
    let is_same = match message.queries.first() {
        Some(asked) => query.queries.first() == Some(asked),
        None => misread(),
    };
    (message.metadata.message_type == MessageType::Response && is_same).then_some(message)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::{
        op::{OpCode, Query},
        rr::{Name, RecordType},
    };

    use super::*;

    #[test]
    fn questions_over_tls_have_whole_blocks_and_answers_are_kept_without() {
        for label in 1..60 {
            let mut query = Message::new(7, MessageType::Query, OpCode::Query);
            let name = Name::from_str(&format!("{}.", "a".repeat(label))).unwrap();
            query.add_query(Query::query(name, RecordType::A));
            query.set_edns(Edns::new());
            let plain = query.to_vec().unwrap();
            let octets = padded(query.clone(), plain.len()).unwrap();
            assert_eq!(octets.len(), 128, "the shortest that holds it");
            let message = Message::from_vec(&octets).unwrap();
            let received = Received { message, octets }.without_padding();
            assert_eq!(received.octets, plain);
            assert_eq!(received.message, query);
        }
    }

    /// An upstream that knows no EDNS: it says so as it does, and answers questions without it.
    async fn without_edns(socket: UdpSocket, code: ResponseCode, bare: bool) {
        let mut octets = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut octets).await.unwrap();
            let query = Message::from_vec(&octets[..length]).unwrap();
            let mut answer = query.clone().into_response();
            // What is older than EDNS does not know AD either.
            assert_eq!(query.metadata.authentic_data, query.edns.is_some());
            if query.edns.is_some() {
                (answer.edns, answer.metadata.response_code) = (None, code);
                if bare {
                    answer.queries.clear();
                }
            }
            socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_upstream_that_is_older_than_edns_is_asked_without() {
        let question =
            Question::plain(Query::query(Name::from_str("example.org.").unwrap(), RecordType::A));
        for address in ["127.0.0.1", "::1"] {
            for (code, bare) in [
                (ResponseCode::FormErr, true),
                (ResponseCode::FormErr, false),
                (ResponseCode::NotImp, true),
            ] {
                let socket = UdpSocket::bind((address, 0)).await.unwrap();
                let upstream = socket.local_addr().unwrap();
                let answering = tokio::spawn(without_edns(socket, code, bare));
                let received = ask(Way::Udp(upstream), &question, &AtomicU64::new(0)).await;
                let message = received.unwrap().message;
                assert_eq!(message.metadata.response_code, ResponseCode::NoError);
                assert_eq!(message.queries, std::slice::from_ref(&question.query));
                answering.abort();
            }
        }
    }

    #[test]
    fn dns_63_only_an_answer_to_the_question_is_one() {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_str("example.org.").unwrap(), RecordType::A));
        let octets = |change: fn(&mut Message)| {
            let mut answer = query.clone();
            answer.metadata.message_type = MessageType::Response;
            change(&mut answer);
            answer.to_vec().unwrap()
        };
        assert!(answer_to(&query, &octets(|_| {})).is_some());
        let other = |name, kind| Query::query(Name::from_ascii(name).unwrap(), kind);
        assert!(answer_to(&query, &octets(|m| m.metadata.id = 8)).is_none());
        assert!(
            answer_to(&query, &octets(|m| m.metadata.message_type = MessageType::Query)).is_none()
        );
        assert!(answer_to(&query, &octets(|m| m.queries.clear())).is_none());
        let bare = |m: &mut Message| {
            m.queries.clear();
            m.metadata.response_code = ResponseCode::FormErr;
        };
        assert!(answer_to(&query, &octets(bare)).is_none(), "it has no EDNS to misread");
        let wrong_type = {
            let mut answer = query.clone().into_response();
            answer.queries = vec![other("example.org.", RecordType::AAAA)];
            answer.to_vec().unwrap()
        };
        assert!(answer_to(&query, &wrong_type).is_none());
        let wrong_name = {
            let mut answer = query.clone().into_response();
            answer.queries = vec![other("example.com.", RecordType::A)];
            answer.to_vec().unwrap()
        };
        assert!(answer_to(&query, &wrong_name).is_none());
        let in_capitals = {
            let mut answer = query.clone().into_response();
            answer.queries = vec![other("EXAMPLE.org.", RecordType::A)];
            answer_to(&query, &answer.to_vec().unwrap()).expect("names have no case")
        };
        assert!(!in_same_letters(&query, &in_capitals));
        assert!(in_same_letters(&query, &answer_to(&query, &octets(|_| {})).unwrap()));
        assert!(answer_to(&query, &octets(|_| {})[..20]).is_none());
        assert!(answer_to(&query, b"").is_none());
    }
}
