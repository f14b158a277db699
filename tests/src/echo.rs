//! Servers and clients for packet tests: a server says its name and whom it sees, so that a test
//! knows both who answered and under which address the client arrived.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::netns::Netns;

/// How long a client waits for an answer before it says that there is none.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client waits where a test expects silence.
const IMPATIENCE: Duration = Duration::from_millis(300);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who answered.
    pub name: String,
    /// The client's address as the server sees it.
    pub client: SocketAddr,
    /// Where the answer came from, as the client sees it.
    pub server: SocketAddr,
    /// Length of the answer: of a datagram, at least that of the question.
    pub length: usize,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Both.
pub const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

impl Transport {
    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A server of TCP and UDP. It answers every line and every datagram, and ends with the guard.
#[derive(Debug)]
pub struct Echo {
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Listens inside the namespace.
    pub fn start(netns: &Netns, addr: SocketAddr, name: &str) -> Self {
        let (listener, datagrams) = netns.run(|| {
            (TcpListener::bind(addr).expect("listen"), UdpSocket::bind(addr).expect("bind"))
        });
        let stop = Arc::new(AtomicBool::new(false));
        let streams = listener.try_clone().expect("a second descriptor");
        let (said, stopped) = (name.to_owned(), Arc::clone(&stop));
        let by_stream = std::thread::spawn(move || {
            while let Ok((stream, client)) = streams.accept() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let said = said.clone();
                // Ends when the client closes.
                let _serving = std::thread::spawn(move || serve(&stream, client, &said));
            }
        });
        datagrams.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let (said, stopped) = (name.to_owned(), Arc::clone(&stop));
        let by_datagram = std::thread::spawn(move || {
            let mut buffer = [0; 16_384];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, client)) = datagrams.recv_from(&mut buffer) {
                    let mut answer = format!("{said} {client}\n").into_bytes();
                    answer.resize(answer.len().max(length), b' ');
                    let _gone = datagrams.send_to(&answer, client);
                }
            }
        });
        Self { listener, stop, threads: vec![by_stream, by_datagram] }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _woken = SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

fn serve(stream: &TcpStream, client: SocketAddr, name: &str) {
    let mut lines = BufReader::new(stream).lines();
    while let Some(Ok(_)) = lines.next() {
        // In one segment: the client reads once.
        if (&*stream).write_all(format!("{name} {client}\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// A client's end of a flow, open until it is dropped.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    server: SocketAddr,
    transport: Transport,
}

impl Client {
    /// Dials from inside a namespace; the source port is `port`, or any where that is 0.
    pub fn dial(
        netns: &Netns,
        transport: Transport,
        server: SocketAddr,
        port: u16,
    ) -> io::Result<Self> {
        Self::dial_within(netns, transport, server, port, PATIENCE)
    }

    /// As [`Self::dial`], for where no answer is expected.
    pub fn dial_in_vain(
        netns: &Netns,
        transport: Transport,
        server: SocketAddr,
    ) -> io::Result<Self> {
        Self::dial_within(netns, transport, server, 0, IMPATIENCE)
    }

    fn dial_within(
        netns: &Netns,
        transport: Transport,
        server: SocketAddr,
        port: u16,
        limit: Duration,
    ) -> io::Result<Self> {
        let (kind, protocol) = match transport {
            Transport::Tcp => (Type::STREAM, Protocol::TCP),
            Transport::Udp => (Type::DGRAM, Protocol::UDP),
        };
        let port = if port == 0 && transport == Transport::Udp { fresh_port() } else { port };
        netns.run(|| {
            let socket = Socket::new(Domain::for_address(server), kind, Some(protocol))?;
            socket.set_reuse_address(true)?;
            let any: SocketAddr = match server {
                SocketAddr::V4(_) => ([0; 4], port).into(),
                SocketAddr::V6(_) => ([0_u16; 8], port).into(),
            };
            socket.bind(&SockAddr::from(any))?;
            socket.connect_timeout(&SockAddr::from(server), limit)?;
            socket.set_read_timeout(Some(limit))?;
            Ok(Self { socket, server, transport })
        })
    }

    /// Closes with a reset instead of a FIN.
    pub fn abort(self) {
        self.socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }

    /// The socket's own port.
    pub fn port(&self) -> u16 {
        self.socket.local_addr().ok().and_then(|addr| addr.as_socket()).expect("a port").port()
    }

    /// Asks and waits for the answer. A datagram is sent again, as any client does.
    pub fn ask(&self) -> io::Result<Answer> {
        self.ask_with(2)
    }

    /// As [`Self::ask`], with a question of `length` octets.
    pub fn ask_with(&self, length: usize) -> io::Result<Answer> {
        let mut question = vec![b'?'; length];
        question[length - 1] = b'\n';
        let mut last = io::Error::other("not asked");
        let tries = if self.transport == Transport::Udp { 2 } else { 1 };
        for _ in 0..tries {
            (&self.socket).write_all(&question)?;
            match self.answer() {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn answer(&self) -> io::Result<Answer> {
        let mut buffer = vec![0; 16_384];
        let length = (&self.socket).read(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let line = text.lines().next().unwrap_or_default();
        let (name, client) = line.split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
        let client = client.parse().map_err(io::Error::other)?;
        Ok(Answer { name: name.to_owned(), client, server: self.server, length })
    }
}

/// A source port for a datagram that no datagram had before it. The kernel may give out a port that
/// was closed just now: the packet path would take it for the flow that had it, and be right.
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 32_768;
    FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % FIRST
}

/// Dials, asks once and closes.
pub fn ask(netns: &Netns, transport: Transport, server: SocketAddr) -> io::Result<Answer> {
    Client::dial(netns, transport, server, 0)?.ask()
}

/// As [`ask`], where no answer is expected: what the client learns instead.
pub fn ask_in_vain(netns: &Netns, transport: Transport, server: SocketAddr) -> io::ErrorKind {
    let asked = Client::dial_in_vain(netns, transport, server).and_then(|client| client.ask());
    match asked {
        Ok(answer) => panic!("nobody should have answered: {answer:?}"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut,
        Err(error) => error.kind(),
    }
}
