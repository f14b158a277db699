//! A process that does what a test tells it, one line at a time: what it dials depends on its
//! cgroup and network namespace, which belong to a whole process. See `mizzen_tests::actor`.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, Read as _, Write as _},
    mem::MaybeUninit,
    net::{Shutdown, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use mizzen_tests::{
    names::Client,
    rate::Steady,
    storm::{Outcome, Plan, Storm},
};
use nix::{
    sys::prctl::set_dumpable,
    unistd::{Uid, setresuid},
};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// How long anything may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a TCP connection may take: long enough for any in one machine.
const CONNECT: Duration = Duration::from_millis(700);

/// The pause between questions of a load that checks who answers: about a thousand a second.
const STEADY: Duration = Duration::from_micros(500);
/// The pause between questions of a client of DNS.
const LEISURE: Duration = Duration::from_millis(3);

fn main() {
    let mut actor = Actor::default();
    let mut out = io::stdout();
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let said = match actor.obey(&line.split(' ').collect::<Vec<_>>()) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                format!("error {} {error}", libc::ETIMEDOUT)
            }
            Err(error) => format!("error {} {error}", error.raw_os_error().unwrap_or(0)),
        };
        if writeln!(out, "{}", said.trim_end()).and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

#[derive(Default)]
struct Actor {
    sockets: BTreeMap<usize, Socket>,
    opened: usize,
    load: Option<Load>,
    storm: Option<Storm>,
}

impl Actor {
    fn obey(&mut self, words: &[&str]) -> io::Result<String> {
        match words {
            ["open", kind] => {
                self.opened += 1;
                self.sockets.insert(self.opened, open(kind)?);
                Ok(self.opened.to_string())
            }
            ["close", socket] => {
                self.sockets.remove(&parse(socket)?);
                Ok(String::new())
            }
            ["end", socket] => {
                self.socket(socket)?.shutdown(Shutdown::Write).map(|()| String::new())
            }
            ["abort", socket] => {
                self.socket(socket)?.set_linger(Some(Duration::ZERO))?;
                self.sockets.remove(&parse(socket)?);
                Ok(String::new())
            }
            ["bind", socket, to] => {
                let to: SocketAddr = parse(to)?;
                self.socket(socket)?.bind(&to.into()).map(|()| String::new())
            }
            ["connect", socket, to] => connect(self.socket(socket)?, parse(to)?),
            ["begin", socket, to] => begin(self.socket(socket)?, parse(to)?),
            ["disconnect", socket] => disconnect(self.socket(socket)?),
            ["peer", socket] => Ok(name(&self.socket(socket)?.peer_addr()?)),
            ["send", socket, text] => {
                let line = format!("{text}\n");
                self.socket(socket)?.send(line.as_bytes()).map(|_| String::new())
            }
            ["sendto", socket, to, text] => {
                let to: SocketAddr = parse(to)?;
                self.socket(socket)?.send_to(text.as_bytes(), &to.into()).map(|_| String::new())
            }
            ["fastopen", socket, to, text] => {
                let to: SocketAddr = parse(to)?;
                let sent = self.socket(socket)?.send_to_with_flags(
                    text.as_bytes(),
                    &to.into(),
                    libc::MSG_FASTOPEN,
                );
                sent.map(|_| String::new())
            }
            ["peek", socket] => {
                let mut first = [MaybeUninit::uninit()];
                self.socket(socket)?.peek(&mut first).map(|_| String::new())
            }
            ["receive", socket] => receive(self.socket(socket)?),
            ["become", user] => become_user(Uid::from_raw(parse(user)?)).map(|()| String::new()),
            _ => self.go_on_asking(words),
        }
    }

    /// What asks by itself until it is stopped.
    fn go_on_asking(&mut self, words: &[&str]) -> io::Result<String> {
        match words {
            ["load", kind, to] => self.start_load(kind, to, ""),
            ["load", kind, to, name] => self.start_load(kind, to, name),
            ["names", kind, to, name, retries] => {
                let client = Client::new(kind, parse(to)?, name, parse(retries)?);
                self.load = Some(Load::names(client));
                Ok(String::new())
            }
            ["name", kind, to, name, retries] => {
                let client = Client::new(kind, parse(to)?, name, parse(retries)?);
                client.ask(1, &mut None).map(|()| String::new())
            }
            ["rate", to, name, rate, retries] => {
                let client = Steady::new(parse(to)?, name, parse(rate)?, parse(retries)?)?;
                self.load = Some(Load::steady(client));
                Ok(String::new())
            }
            ["storm", to, name, rate, lasting] => self.start_storm(to, name, rate, lasting),
            ["stop"] if self.storm.is_some() => {
                let Outcome { done, failed, first_failure } =
                    self.storm.take().map(Storm::stop).unwrap_or_default();
                Ok(format!("{done} {failed} {first_failure}"))
            }
            ["stop"] => self.load.take().map_or_else(|| Err(usage("no load")), Load::stop),
            _ => Err(usage(&words.join(" "))),
        }
    }

    fn start_load(&mut self, kind: &str, to: &str, name: &str) -> io::Result<String> {
        self.load = Some(Load::start(kind.to_owned(), parse(to)?, name.to_owned()));
        Ok(String::new())
    }

    fn start_storm(
        &mut self,
        to: &str,
        name: &str,
        rate: &str,
        lasting: &str,
    ) -> io::Result<String> {
        let (to, rate, lasting) = (parse(to)?, parse(rate)?, parse(lasting)?);
        self.storm = Some(Storm::start(&Plan { to, name: name.to_owned(), rate, lasting })?);
        Ok(String::new())
    }

    fn socket(&self, number: &str) -> io::Result<&Socket> {
        self.sockets.get(&parse(number)?).ok_or_else(|| usage(number))
    }
}

fn usage(what: &str) -> io::Error {
    io::Error::other(format!("not understood: {what}"))
}

fn parse<T: std::str::FromStr>(word: &str) -> io::Result<T> {
    word.parse().map_err(|_| usage(word))
}

/// A socket of a kind such as `tcp4`.
fn open(kind: &str) -> io::Result<Socket> {
    let domain = if kind.ends_with('4') { Domain::IPV4 } else { Domain::IPV6 };
    let socket = if kind.starts_with("tcp") {
        Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?
    } else if kind.starts_with("mptcp") {
        Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP))?
    } else {
        Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?
    };
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn connect(socket: &Socket, to: SocketAddr) -> io::Result<String> {
    if socket.r#type()? == Type::STREAM {
        socket.connect_timeout(&to.into(), CONNECT)?;
    } else {
        socket.connect(&to.into())?;
    }
    Ok(String::new())
}

/// `connect()` that waits for nobody: an error that it gives was known without asking the network.
fn begin(socket: &Socket, to: SocketAddr) -> io::Result<String> {
    socket.set_nonblocking(true)?;
    socket.connect(&to.into()).map(|()| String::new())
}

/// `connect()` to an address of no family, which ends a datagram socket's connection.
fn disconnect(socket: &Socket) -> io::Result<String> {
    // SAFETY: all zero is a valid address, of the family AF_UNSPEC.
    let nowhere = unsafe { SockAddr::new(SockAddrStorage::zeroed(), 16) };
    socket.connect(&nowhere).map(|()| String::new())
}

fn name(addr: &SockAddr) -> String {
    addr.as_socket().map_or_else(|| "-".to_owned(), |addr| addr.to_string())
}

/// Where something came from, and what it says.
fn receive(socket: &Socket) -> io::Result<String> {
    let mut buffer = [0; 512];
    let (length, from) = if socket.r#type()? == Type::STREAM {
        let mut stream = socket;
        (stream.read(&mut buffer)?, "-".to_owned())
    } else {
        let (length, from) = UdpSocket::from(socket.try_clone()?).recv_from(&mut buffer)?;
        (length, from.to_string())
    };
    let text = buffer.get(..length).unwrap_or_default();
    Ok(format!("{from} {}", String::from_utf8_lossy(text).trim_end()))
}

/// New connections or datagrams, one after the other, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64, String)>,
}

impl Load {
    fn start(kind: String, to: SocketAddr, answerer: String) -> Self {
        let pause = if answerer.is_empty() { Duration::ZERO } else { STEADY };
        Self::repeat(pause, move || exchange(&kind, to, &answerer))
    }

    /// A client of DNS that asks about three hundred times a second.
    fn names(client: Client) -> Self {
        let (mut id, mut line) = (0_u16, None);
        Self::repeat(LEISURE, move || {
            id = id.wrapping_add(16);
            client.ask(id, &mut line)
        })
    }

    /// As many clients of DNS as ask so often.
    fn steady(client: Steady) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread =
            std::thread::spawn(move || match client.run(|| stopped.load(Ordering::Relaxed)) {
                Ok(counts) => (counts.answered, counts.failed, counts.first_failure),
                Err(error) => (0, 1, error.to_string()),
            });
        Self { stop, thread }
    }

    fn repeat(
        pause: Duration,
        mut exchange: impl FnMut() -> io::Result<()> + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut done, mut failed, mut first) = (0, 0, String::new());
            while !stopped.load(Ordering::Relaxed) {
                match exchange() {
                    Ok(()) => {
                        done += 1;
                        if !pause.is_zero() {
                            std::thread::sleep(pause);
                        }
                    }
                    Err(error) => {
                        failed += 1;
                        if first.is_empty() {
                            first = error.to_string();
                        }
                    }
                }
            }
            (done, failed, first)
        });
        Self { stop, thread }
    }

    fn stop(self) -> io::Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        let (done, failed, first) = self.thread.join().map_err(|_| usage("load"))?;
        Ok(format!("{done} {failed} {first}"))
    }
}

/// Makes the process somebody's who is not root, as one that was started by them.
fn become_user(user: Uid) -> io::Result<()> {
    setresuid(user, user, user)?;
    // Who changes their user may not be looked into by it, for what they knew before.
    Ok(set_dumpable(true)?)
}

/// One question and its answer, which has to come from where the question went, and to begin with
/// the name of who may answer.
fn exchange(kind: &str, to: SocketAddr, answerer: &str) -> io::Result<()> {
    let socket = open(kind)?;
    let (from, answer) = if kind.starts_with("tcp") {
        connect(&socket, to)?;
        // Closes with a reset: no port waits, however many connections there are.
        socket.set_linger(Some(Duration::ZERO))?;
        let received = receive(&socket)?;
        let answer = received.split_once(' ').map_or("", |(_, text)| text).to_owned();
        (name(&socket.peer_addr()?), answer)
    } else {
        socket.send_to(b"?", &to.into())?;
        let received = receive(&socket)?;
        let (from, answer) = received.split_once(' ').unwrap_or((&received, ""));
        (from.to_owned(), answer.to_owned())
    };
    if from == to.to_string() && answer.starts_with(answerer) {
        Ok(())
    } else {
        Err(io::Error::other(format!("asked {to}, answered by {from} with {answer:?}")))
    }
}
