//! A resolver outside the cluster, with names that behave and names that don't.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, SOA},
    },
};
use mizzen_tests::netns::Netns;

/// How long a thread waits before it looks whether it shall end.
const GLANCE: Duration = Duration::from_millis(20);

/// How many addresses `big.example.org` has: more than any datagram holds.
pub(super) const BIG: usize = 200;

/// How long names that begin with "slow" take: not as long as an upstream is given.
const SLOW: Duration = Duration::from_millis(700);
/// A name whose answer is cut, and can't be had whole.
const CUT: &str = "cut.example.org.";

/// A running upstream; ends when dropped.
pub(super) struct Upstream {
    stop: Arc<AtomicBool>,
    /// Whether names that begin with "held" are answered.
    released: Arc<AtomicBool>,
    asked: Arc<Mutex<HashMap<String, usize>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Upstream {
    /// Serves UDP and TCP port 53 at `addresses` inside `netns`.
    pub(super) fn start(netns: &Netns, addresses: &[IpAddr]) -> Self {
        let mut this = Self {
            stop: Arc::default(),
            released: Arc::default(),
            asked: Arc::default(),
            threads: Vec::new(),
        };
        for address in addresses {
            let at = SocketAddr::new(*address, 53);
            let (udp, tcp) = netns.run(|| {
                (UdpSocket::bind(at).expect("udp 53"), TcpListener::bind(at).expect("tcp 53"))
            });
            udp.set_read_timeout(Some(GLANCE)).unwrap();
            tcp.set_nonblocking(true).unwrap();
            let (stop, asked) = (Arc::clone(&this.stop), Arc::clone(&this.asked));
            let released = Arc::clone(&this.released);
            let serve = move || serve_udp(&udp, &stop, &released, &asked);
            this.threads.push(std::thread::spawn(serve));
            let (stop, asked) = (Arc::clone(&this.stop), Arc::clone(&this.asked));
            this.threads.push(std::thread::spawn(move || serve_tcp(&tcp, &stop, &asked)));
        }
        this
    }

    /// Answers what was held back, and all of it from now on.
    pub(super) fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    /// How often that name was asked for, by either transport.
    pub(super) fn times_asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("upstream thread");
        }
    }
}

/// Passes datagrams on to another resolver, and its answers back.
pub(super) struct Relay {
    stop: Arc<AtomicBool>,
    passed: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// From port 53 at `address` inside `netns` to port 53 at `to`.
    pub(super) fn start(netns: &Netns, address: &str, to: &str) -> Self {
        let any = if to.contains(':') { "::" } else { "0.0.0.0" };
        let (front, back) = netns.run(|| {
            let back = UdpSocket::bind((any, 0)).unwrap();
            back.connect((to, 53)).unwrap();
            (UdpSocket::bind((address, 53)).expect("udp 53"), back)
        });
        front.set_read_timeout(Some(GLANCE)).unwrap();
        back.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let (stop, passed) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let thread = {
            let (stop, passed) = (Arc::clone(&stop), Arc::clone(&passed));
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, client)) = front.recv_from(&mut buffer) else { continue };
                    passed.fetch_add(1, Ordering::Relaxed);
                    let _refused = back.send(&buffer[..length]);
                    let Ok(length) = back.recv(&mut buffer) else { continue };
                    let _refused = front.send_to(&buffer[..length], client);
                }
            })
        };
        Self { stop, passed, thread: Some(thread) }
    }

    /// How many questions came by.
    pub(super) fn passed(&self) -> usize {
        self.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

type Asked = Mutex<HashMap<String, usize>>;

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool, released: &AtomicBool, asked: &Asked) {
    let mut buffer = [0; 4096];
    let mut held: Vec<(Message, SocketAddr)> = Vec::new();
    let mut slow: Vec<(Instant, Message, SocketAddr)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        for (_, answer, client) in slow.extract_if(.., |(due, ..)| *due <= Instant::now()) {
            let _refused = socket.send_to(&answer.to_vec().unwrap(), client);
        }
        if released.load(Ordering::Relaxed) {
            for (answer, client) in held.drain(..) {
                // Those who asked in vain have closed their sockets meanwhile.
                let _refused = socket.send_to(&answer.to_vec().unwrap(), client);
            }
        }
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
        let name = count(&query, asked);
        if name.starts_with("silent") {
            continue;
        }
        let mut answer = match &*name {
            // It comes with the release.
            "late.example.org." if released.load(Ordering::Relaxed) => {
                answer_to(&query, "www.example.org.")
            }
            _ => answer_to(&query, &name),
        };
        if name.starts_with("held") {
            held.push((answer, client));
            continue;
        }
        if name.starts_with("slow") {
            slow.push((Instant::now() + SLOW, answer, client));
            continue;
        }
        if name == "liar.example.org." {
            for forged in forgeries(&answer) {
                let _refused = socket.send_to(&forged.to_vec().unwrap(), client);
            }
        }
        if name == "capitals.example.org." {
            answer = in_capitals(answer);
        }
        if name == "big.example.org." {
            answer.answers.clear();
            answer.metadata.truncation = true;
        }
        if name == CUT {
            answer.metadata.truncation = true;
        }
        let _refused = socket.send_to(&answer.to_vec().unwrap(), client);
    }
}

fn serve_tcp(listener: &TcpListener, stop: &AtomicBool, asked: &Asked) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => drop(converse(stream, asked)),
            Err(_) => std::thread::sleep(GLANCE),
        }
    }
}

fn converse(mut stream: TcpStream, asked: &Asked) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut octets = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut octets)?;
    let query = Message::from_vec(&octets).map_err(std::io::Error::other)?;
    let name = count(&query, asked);
    if name == CUT {
        return Ok(());
    }
    let octets = answer_to(&query, &name).to_vec().map_err(std::io::Error::other)?;
    let length = u16::try_from(octets.len()).map_err(std::io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&octets)
}

fn count(query: &Message, asked: &Asked) -> String {
    let name = query.queries[0].name().to_lowercase().to_string();
    *asked.lock().unwrap().entry(name.clone()).or_insert(0) += 1;
    name
}

/// Answers that are none: another identifier, another question, and the question in other letters,
/// all with a wrong address.
fn forgeries(answer: &Message) -> [Message; 3] {
    let mut forged = answer.clone();
    for record in &mut forged.answers {
        record.data = RData::A(A(Ipv4Addr::new(6, 6, 6, 6)));
    }
    let mut other_id = forged.clone();
    other_id.metadata.id ^= 1;
    let mut other_name = forged.clone();
    other_name.queries[0].set_name(Name::from_ascii("other.example.org.").unwrap());
    [other_id, other_name, in_capitals(forged)]
}

/// The answer with its question in capital letters.
fn in_capitals(mut answer: Message) -> Message {
    let name = answer.queries[0].name().to_string().to_uppercase();
    answer.queries[0].set_name(Name::from_ascii(name).unwrap());
    answer
}

pub(super) fn answer_to(query: &Message, name: &str) -> Message {
    let mut answer = query.clone().into_response();
    answer.additionals.clear();
    answer.edns = None;
    answer.metadata.recursion_available = true;
    // It has checked signatures, for those who ask whether it has.
    answer.metadata.authentic_data &= name == "signed.example.org.";
    let owner = query.queries[0].name().clone();
    let kind = query.queries[0].query_type();
    let v4 = |bits| Record::from_rdata(owner.clone(), 300, RData::A(A(Ipv4Addr::from_bits(bits))));
    match (name, kind) {
        (
            "www.example.org."
            | "held.example.org."
            | "ext.interwebs.test."
            | "liar.example.org."
            | "capitals.example.org."
            | "cut.example.org."
            | "signed.example.org."
            | "v4.example.org.",
            RecordType::A,
        ) => {
            answer.add_answer(v4(0xc000_0250));
        }
        (name, RecordType::A) if name.starts_with("any-") => {
            answer.add_answer(v4(0xc000_0250));
        }
        ("www.example.org.", RecordType::AAAA) => {
            let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
            answer.add_answer(Record::from_rdata(owner, 300, RData::AAAA(AAAA(address))));
        }
        ("big.example.org.", RecordType::A) => {
            let count = u32::try_from(BIG).unwrap();
            answer.add_answers((0..count).map(|index| v4(0x0a00_0000 + index)));
        }
        ("circle.example.org.", RecordType::A | RecordType::AAAA) => {
            let names = ["circle", "round"].map(|label| format!("{label}.example.org."));
            let [one, other] = names.map(|name| Name::from_ascii(name).unwrap());
            for (from, to) in [(&one, &other), (&other, &one)] {
                let alias = RData::CNAME(CNAME(to.clone()));
                answer.add_answer(Record::from_rdata(from.clone(), 300, alias));
            }
        }
        // It exists and has no other type.
        ("v4.example.org.", _) => {
            let zone = Name::from_ascii("example.org.").unwrap();
            let soa = RData::SOA(SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 60));
            answer.add_authority(Record::from_rdata(zone, 300, soa));
        }
        ("broken.example.org.", _) => answer.metadata.response_code = ResponseCode::ServFail,
        ("refused.example.org.", _) => answer.metadata.response_code = ResponseCode::Refused,
        ("formerr.example.org.", _) => answer.metadata.response_code = ResponseCode::FormErr,
        ("notimp.example.org.", _) => answer.metadata.response_code = ResponseCode::NotImp,
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let zone = Name::from_ascii("example.org.").unwrap();
            let soa = RData::SOA(SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 60));
            answer.add_authority(Record::from_rdata(zone, 300, soa));
        }
    }
    answer
}
