//! The load of a busy client, for tests in which nothing may be noticed: new connections at a steady
//! rate, connections that last and are used all the time, and datagrams. Servers are those of
//! [`crate::echo`]; each answer has to come from one whose name begins as it should.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use socket2::SockRef;

/// How long anything may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// Threads that make new connections.
const THREADS: u32 = 2;
/// How often a lasting connection is used, one after the other.
const TURN: Duration = Duration::from_millis(5);
/// How often a datagram is sent.
const PING: Duration = Duration::from_millis(10);

/// What the load is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The service.
    pub to: SocketAddr,
    /// How the names of its servers begin.
    pub name: String,
    /// New connections a second, as far as the machine makes them.
    pub rate: u32,
    /// Connections that last.
    pub lasting: usize,
}

/// The load, while it goes on.
#[derive(Debug)]
pub struct Storm {
    stop: Arc<AtomicBool>,
    threads: Vec<(&'static str, JoinHandle<Outcome>)>,
}

/// What became of one kind of question.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Those that were answered.
    pub done: u64,
    /// Those that were not, or by somebody else.
    pub failed: u64,
    /// Why the first of these failed.
    pub first_failure: String,
}

impl Outcome {
    fn note(&mut self, kind: &str, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => self.done += 1,
            Err(error) => self.fail(format!("{kind}: {error}")),
        }
    }

    fn fail(&mut self, why: String) {
        self.failed += 1;
        if self.first_failure.is_empty() {
            self.first_failure = why;
        }
    }
}

impl Storm {
    /// Begins.
    pub fn start(plan: &Plan) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let lasting: Vec<Lasting> =
            (0..plan.lasting).map(|_| Lasting::open(plan)).collect::<io::Result<_>>()?;
        let ping = Ping::open(plan)?;
        let mut this = Self { stop, threads: Vec::new() };
        let interval = Duration::from_secs(1) * THREADS / plan.rate.max(1);
        for _ in 0..THREADS {
            let plan = plan.clone();
            this.repeat("a new connection", interval, move || connect_once(&plan));
        }
        if !lasting.is_empty() {
            let (mut lasting, mut next) = (lasting, 0);
            this.repeat("a lasting connection", TURN, move || {
                next = (next + 1) % lasting.len();
                lasting[next].ask()
            });
        }
        this.repeat("a datagram", PING, move || ping.ask());
        Ok(this)
    }

    /// Repeats something at a steady rate; what can't be done in time is left out.
    fn repeat(
        &mut self,
        kind: &'static str,
        interval: Duration,
        mut once: impl FnMut() -> io::Result<()> + Send + 'static,
    ) {
        let stop = Arc::clone(&self.stop);
        let thread = std::thread::spawn(move || {
            let (mut outcome, mut due) = (Outcome::default(), Instant::now());
            while !stop.load(Ordering::Relaxed) {
                outcome.note(kind, once());
                due = (due + interval).max(Instant::now());
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            outcome
        });
        self.threads.push((kind, thread));
    }

    /// Ends it; what became of all questions together. A kind of which none was answered failed.
    pub fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Outcome::default();
        for (kind, thread) in self.threads {
            let outcome = thread.join().unwrap_or_default();
            all.done += outcome.done;
            all.failed += outcome.failed;
            if all.first_failure.is_empty() {
                all.first_failure = outcome.first_failure;
            }
            if outcome.done == 0 && outcome.failed == 0 {
                all.fail(format!("{kind}: nothing was asked"));
            }
        }
        all
    }
}

/// Whoever answers has to be one of the service's.
fn check(plan: &Plan, answer: &[u8]) -> io::Result<String> {
    let text = String::from_utf8_lossy(answer);
    let name = text.split(' ').next().unwrap_or_default();
    if name.starts_with(&plan.name) {
        return Ok(name.to_owned());
    }
    Err(io::Error::other(format!("{} was answered by {text:?}", plan.to)))
}

fn dial(plan: &Plan) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&plan.to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    // Closes with a reset: no port waits, however many connections there are.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(stream)
}

fn ask(plan: &Plan, mut stream: &TcpStream) -> io::Result<String> {
    stream.write_all(b"?\n")?;
    let mut answer = [0; 256];
    match stream.read(&mut answer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => check(plan, &answer[..length]),
    }
}

fn connect_once(plan: &Plan) -> io::Result<()> {
    ask(plan, &dial(plan)?).map(drop)
}

/// A connection that lasts; it stays with who answered first.
struct Lasting {
    plan: Plan,
    stream: TcpStream,
    name: String,
}

impl Lasting {
    fn open(plan: &Plan) -> io::Result<Self> {
        let stream = dial(plan)?;
        let name = ask(plan, &stream)?;
        Ok(Self { plan: plan.clone(), stream, name })
    }

    fn ask(&mut self) -> io::Result<()> {
        let name = ask(&self.plan, &self.stream)?;
        if name == self.name {
            return Ok(());
        }
        Err(io::Error::other(format!("{} answered for {}", name, self.name)))
    }
}

/// A datagram socket that stays the same.
struct Ping {
    plan: Plan,
    socket: UdpSocket,
}

impl Ping {
    fn open(plan: &Plan) -> io::Result<Self> {
        let any: IpAddr = match plan.to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { plan: plan.clone(), socket })
    }

    fn ask(&self) -> io::Result<()> {
        self.socket.send_to(b"?", self.plan.to)?;
        let mut answer = [0; 256];
        let (length, from) = self.socket.recv_from(&mut answer)?;
        if from != self.plan.to {
            return Err(io::Error::other(format!("{from} answered for {}", self.plan.to)));
        }
        check(&self.plan, &answer[..length]).map(drop)
    }
}
