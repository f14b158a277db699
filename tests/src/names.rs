//! A client of DNS that asks without pause and counts what is not answered: over UDP from a new
//! socket each time or from one that stays connected, over TCP on a new connection or on one that
//! is kept.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

/// How long an answer may take; glibc waits five seconds before it asks again.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a client that may ask again waits for the first answer.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// The pause before another try: the kernel closes the files of a process that died one by one, a
/// connection perhaps before the listener that it came by.
const BREATH: Duration = Duration::from_millis(50);

/// How it asks.
#[derive(Clone, Debug)]
pub struct Client {
    server: SocketAddr,
    tcp: bool,
    /// Whether it keeps its socket as long as that works.
    keeps: bool,
    /// Whether it asks again by the same, whatever became of the question.
    stays: bool,
    /// How often it asks again where no answer comes, each time by another socket.
    retries: u32,
    question: Vec<u8>,
}

/// A socket that is kept.
#[derive(Debug)]
pub enum Line {
    /// A connected socket of datagrams.
    Udp(UdpSocket),
    /// A connection.
    Tcp(TcpStream),
}

impl Client {
    /// One of the kind `udp`, `udp-kept`, `udp-stays`, `tcp` or `tcp-kept` that asks `server` for the A
    /// records of `name`.
    pub fn new(kind: &str, server: SocketAddr, name: &str, retries: u32) -> Self {
        let question = question(name);
        let (tcp, stays) = (kind.starts_with("tcp"), kind == "udp-stays");
        let keeps = stays || kind.ends_with("kept");
        Self { server, tcp, keeps, stays, retries, question }
    }

    /// Asks once, as a client does that gives up after its retries.
    pub fn ask(&self, id: u16, line: &mut Option<Line>) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match self.attempt(id.wrapping_add(tries), line) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    if !self.stays {
                        *line = None;
                    }
                    if u32::from(tries) == self.retries {
                        return Err(error);
                    }
                    tries += 1;
                    std::thread::sleep(BREATH);
                }
            }
        }
    }

    fn attempt(&self, id: u16, line: &mut Option<Line>) -> io::Result<()> {
        let current = match line.take() {
            Some(line) => line,
            None => self.open()?,
        };
        let mut question = self.question.clone();
        question[..2].copy_from_slice(&id.to_be_bytes());
        let answer = exchange(&current, &question);
        if self.keeps {
            *line = Some(current);
        }
        let answer = answer?;
        if answer.get(..2) == Some(&id.to_be_bytes()[..]) && is_good(&answer) {
            return Ok(());
        }
        Err(io::Error::other(format!("the answer is {:?}", answer.get(..12))))
    }

    fn open(&self) -> io::Result<Line> {
        let patience = if self.retries == 0 { PATIENCE } else { IMPATIENCE };
        if self.tcp {
            let stream = TcpStream::connect_timeout(&self.server, patience)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(patience))?;
            return Ok(Line::Tcp(stream));
        }
        let any: IpAddr = match self.server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(self.server)?;
        socket.set_read_timeout(Some(patience))?;
        Ok(Line::Udp(socket))
    }
}

/// The question for the A records of `name`, with the identifier 0.
pub(crate) fn question(name: &str) -> Vec<u8> {
    let mut question = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        question.push(u8::try_from(label.len()).expect("a label"));
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    question
}

/// Whether an answer has records, and no failure.
pub(crate) fn is_good(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|octet| octet % 16 == 0)
        && answer.get(6..8).is_some_and(|count| count != [0, 0])
}

fn exchange(line: &Line, question: &[u8]) -> io::Result<Vec<u8>> {
    match line {
        Line::Udp(socket) => {
            socket.send(question)?;
            let mut answer = [0; 1500];
            loop {
                let length = socket.recv(&mut answer)?;
                // What comes late is the answer to an earlier question.
                if answer.get(..2) == question.get(..2) {
                    return Ok(answer[..length].to_vec());
                }
            }
        }
        Line::Tcp(stream) => {
            let mut stream = stream;
            let length = u16::try_from(question.len()).map_err(io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes()[..], question].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        }
    }
}
