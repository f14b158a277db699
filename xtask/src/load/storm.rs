//! The load of the fault tests: new connections at a steady rate, connections that last, and
//! datagrams, all at once. Any failure, and any answer by a pod that is none of the service's, is
//! counted and the first is told. Runs until its standard input ends.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::check::{connect, request};

/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between datagrams, and between rounds over the lasting connections.
const PING: Duration = Duration::from_millis(10);

/// Options of `load storm`.
#[derive(Args, Debug, Clone)]
pub(super) struct Storm {
    /// The service
    target: SocketAddr,
    /// A pod that may answer (repeatable; any where none is named)
    #[arg(long = "pod")]
    pods: Vec<String>,
    /// New connections a second
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Connections that last
    #[arg(long, default_value_t = 25)]
    lasting: u32,
}

/// What was done, and the first thing that went wrong.
#[derive(Default)]
struct Account {
    connections: AtomicU64,
    requests: AtomicU64,
    datagrams: AtomicU64,
    failures: AtomicU64,
    first: Mutex<Option<String>>,
    over: AtomicBool,
}

impl Account {
    fn note(&self, done: &AtomicU64, what: &str, outcome: Result<()>) {
        let Err(error) = outcome else {
            done.fetch_add(1, Relaxed);
            return;
        };
        self.failures.fetch_add(1, Relaxed);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| format!("{what}: {error:#}"));
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Relaxed)
    }
}

/// Loads the service until standard input ends, and prints the account. Fails where anything did.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(super) fn run(storm: &Storm) -> Result<()> {
    let account = Account::default();
    std::thread::scope(|scope| {
        scope.spawn(|| new_connections(storm, &account));
        scope.spawn(|| lasting_connections(storm, &account));
        scope.spawn(|| datagrams(storm, &account));
        // Whatever ends the input ends the storm.
        let _ended = std::io::stdin().read_to_end(&mut Vec::new());
        account.over.store(true, Relaxed);
    });
    let count = |of: &AtomicU64| of.load(Relaxed);
    let Account { connections, requests, datagrams, failures, first, .. } = &account;
    let (connections, requests, datagrams) =
        (count(connections), count(requests), count(datagrams));
    println!("{connections} connections, {requests} requests, {datagrams} datagrams");
    let first = first.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(
        count(failures) == 0,
        "{} failures, first {}",
        count(failures),
        first.unwrap_or_default()
    );
    let asked = requests > 0 || storm.lasting == 0;
    ensure!(connections > 0 && asked && datagrams > 0, "nothing was done");
    Ok(())
}

/// Whether a pod that may answer did.
fn check(storm: &Storm, answer: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(answer);
    let line = text.lines().find(|line| line.starts_with('{')).context("an answer without JSON")?;
    let said: serde_json::Value = serde_json::from_str(line)?;
    let pod = said["pod"].as_str().unwrap_or_default();
    ensure!(
        storm.pods.is_empty() || storm.pods.iter().any(|may| may == pod),
        "answered by {pod}, which is none of its pods"
    );
    Ok(())
}

fn new_connections(storm: &Storm, account: &Account) {
    let pause = Duration::from_secs(1) / storm.rate.max(1);
    let mut due = Instant::now();
    while account.goes_on() {
        let outcome = connect(storm.target).and_then(|mut stream| {
            check(storm, &request(&mut stream)?)?;
            // A reset frees the port at once.
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            nix::sys::socket::setsockopt(
                &stream.as_fd(),
                nix::sys::socket::sockopt::Linger,
                &linger,
            )?;
            Ok(())
        });
        account.note(&account.connections, "a new connection", outcome);
        // What is late is not made up for.
        due = (due + pause).max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn lasting_connections(storm: &Storm, account: &Account) {
    let mut streams: Vec<TcpStream> = Vec::new();
    while account.goes_on() {
        if streams.len() < storm.lasting as usize {
            match connect(storm.target) {
                Ok(stream) => streams.push(stream),
                Err(error) => account.note(&account.requests, "a first connection", Err(error)),
            }
        }
        streams.retain_mut(|stream| {
            let outcome = request(stream).and_then(|answer| check(storm, &answer));
            let lives = outcome.is_ok();
            account.note(&account.requests, "a lasting connection", outcome);
            lives
        });
        std::thread::sleep(PING);
    }
}

fn datagrams(storm: &Storm, account: &Account) {
    let any: SocketAddr =
        if storm.target.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).and_then(|socket| {
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    });
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => return account.note(&account.datagrams, "a socket", Err(error.into())),
    };
    while account.goes_on() {
        account.note(&account.datagrams, "a datagram", ping(storm, &socket));
        std::thread::sleep(PING);
    }
}

fn ping(storm: &Storm, socket: &UdpSocket) -> Result<()> {
    socket.send_to(b"x", storm.target)?;
    let mut answer = [0; 2048];
    let (length, from) = socket.recv_from(&mut answer)?;
    ensure!(from == storm.target, "asked {}, answered by {from}", storm.target);
    check(storm, &answer[..length])
}
