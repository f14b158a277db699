//! A client of DNS that asks so many questions a second by UDP, whatever becomes of them, and asks
//! again, from another socket, what was not answered: as many clients together do.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use crate::names;

/// How long a question that may be asked again waits.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// How long the last try waits.
const PATIENCE: Duration = Duration::from_secs(4);
/// How soon what was refused is asked again: not before one that waits would be. The threads of a
/// process that is killed end one after the other, and then its sockets do; on a machine with more
/// work than processors some of them are open for a good part of a second when others are not.
const BREATH: Duration = IMPATIENCE;
/// The pause between two looks.
const TICK: Duration = Duration::from_millis(2);
/// Sockets that are kept for late answers.
const SOCKETS: usize = 8;

/// The client.
#[derive(Debug)]
pub struct Steady {
    server: SocketAddr,
    question: Vec<u8>,
    /// Questions a second.
    rate: u32,
    retries: u32,
    sockets: Vec<(u64, UdpSocket)>,
    opened: u64,
    next: u16,
    open: HashMap<u16, Asked>,
    /// What became of the questions.
    pub counts: Counts,
}

/// What became of the questions.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Answered, at the first try or a later one.
    pub answered: u64,
    /// Asked again.
    pub again: u64,
    /// Not answered.
    pub failed: u64,
    /// Why the first of these was not.
    pub first_failure: String,
}

/// A question that is not answered yet.
#[derive(Clone, Copy, Debug)]
struct Asked {
    until: Instant,
    /// Tries that are left.
    left: u32,
    /// By which socket; none where it has to be asked again.
    by: Option<u64>,
}

impl Steady {
    /// One that asks `server` for the A records of `name`.
    pub fn new(server: SocketAddr, name: &str, rate: u32, retries: u32) -> io::Result<Self> {
        let mut this = Self {
            server,
            question: names::question(name),
            rate,
            retries,
            sockets: Vec::new(),
            opened: 0,
            next: 0,
            open: HashMap::new(),
            counts: Counts::default(),
        };
        this.another_socket()?;
        Ok(this)
    }

    /// Asks until `stop` says so, and then waits for what is under way.
    pub fn run(mut self, mut stop: impl FnMut() -> bool) -> io::Result<Counts> {
        let (start, mut asked) = (Instant::now(), 0);
        loop {
            let stopped = stop();
            let due = start.elapsed().as_micros() * u128::from(self.rate) / 1_000_000;
            while !stopped && asked < due {
                asked += 1;
                self.ask_next()?;
            }
            self.receive()?;
            self.look_at_times()?;
            if stopped && self.open.is_empty() {
                return Ok(self.counts);
            }
            std::thread::sleep(TICK);
        }
    }

    fn another_socket(&mut self) -> io::Result<()> {
        let any: IpAddr = match self.server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(self.server)?;
        socket.set_nonblocking(true)?;
        self.opened += 1;
        self.sockets.push((self.opened, socket));
        if self.sockets.len() > SOCKETS {
            self.sockets.remove(0);
        }
        Ok(())
    }

    fn ask_next(&mut self) -> io::Result<()> {
        self.next = self.next.wrapping_add(1);
        if self.open.contains_key(&self.next) {
            return Err(io::Error::other("more questions are open than there are identifiers"));
        }
        self.ask(self.next, self.retries)
    }

    /// Asks by the newest socket.
    fn ask(&mut self, id: u16, left: u32) -> io::Result<()> {
        let Some((number, socket)) = self.sockets.last() else { return Ok(()) };
        let mut question = self.question.clone();
        question[..2].copy_from_slice(&id.to_be_bytes());
        let patience = if left == 0 { PATIENCE } else { IMPATIENCE };
        let asked = Asked { until: Instant::now() + patience, left, by: Some(*number) };
        self.open.insert(id, asked);
        match socket.send(&question) {
            Ok(_) => Ok(()),
            Err(error) => {
                let number = *number;
                self.refused(number, &error)
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut answer = [0; 1500];
        let mut refusals = Vec::new();
        for (number, socket) in &self.sockets {
            loop {
                match socket.recv(&mut answer) {
                    Ok(length) => {
                        let good = names::is_good(&answer[..length]);
                        let id = u16::from_be_bytes([answer[0], answer[1]]);
                        if self.open.remove(&id).is_some() {
                            if good {
                                self.counts.answered += 1;
                            } else {
                                let said = format!("the answer is {:?}", &answer[..12]);
                                fail(&mut self.counts, &said);
                            }
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        refusals.push((*number, error));
                        break;
                    }
                }
            }
        }
        refusals.iter().try_for_each(|(number, error)| self.refused(*number, error))
    }

    /// What was asked by this socket is asked again soon, by another one.
    fn refused(&mut self, number: u64, error: &io::Error) -> io::Result<()> {
        let (now, counts) = (Instant::now(), &mut self.counts);
        self.open.retain(|_, asked| {
            if asked.by != Some(number) {
                return true;
            }
            if asked.left == 0 {
                fail(counts, &error.to_string());
                return false;
            }
            *asked = Asked { until: now + BREATH, left: asked.left, by: None };
            true
        });
        if self.opened == number { self.another_socket() } else { Ok(()) }
    }

    fn look_at_times(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let over = self.open.iter().filter(|(_, asked)| asked.until <= now);
        let over: Vec<_> = over.map(|(id, asked)| (*id, asked.left)).collect();
        if over.iter().any(|(_, left)| *left > 0) {
            self.another_socket()?;
        }
        for (id, left) in over {
            if left == 0 {
                self.open.remove(&id);
                fail(&mut self.counts, "no answer in time");
            } else {
                self.counts.again += 1;
                self.ask(id, left - 1)?;
            }
        }
        Ok(())
    }
}

fn fail(counts: &mut Counts, why: &str) {
    counts.failed += 1;
    if counts.first_failure.is_empty() {
        why.clone_into(&mut counts.first_failure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that was told of a refusal of its first question, which it may ask so many times again; and
    /// when that was.
    fn refused(retries: u32) -> (Steady, Instant) {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        let mut client = Steady::new(at, "web.default.svc.cluster.local", 1, retries).unwrap();
        client.ask_next().unwrap();
        let now = Instant::now();
        client.refused(1, &io::ErrorKind::ConnectionRefused.into()).unwrap();
        (client, now)
    }

    #[test]
    fn what_is_refused_is_asked_again_no_sooner_than_what_waits() {
        let (mut client, now) = refused(1);
        let asked = client.open[&1];
        assert!(asked.until >= now + IMPATIENCE, "{:?}", asked.until - now);
        assert_eq!((asked.left, asked.by, client.opened), (1, None, 2), "by another socket");
        client.open.get_mut(&1).unwrap().until = Instant::now();
        client.look_at_times().unwrap();
        let again = client.open[&1];
        assert_eq!((again.left, again.by), (0, Some(client.opened)));
        assert_eq!((client.counts.again, client.counts.failed), (1, 0));
    }

    #[test]
    fn what_is_refused_at_the_last_try_has_failed() {
        let (client, _) = refused(0);
        assert!(client.open.is_empty());
        assert_eq!((client.counts.again, client.counts.failed), (0, 1));
        assert!(client.counts.first_failure.contains("refused"), "{:?}", client.counts);
    }
}
