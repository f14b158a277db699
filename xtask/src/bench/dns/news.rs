//! `new-service-p99`: how soon a new Service has its name; `restart-to-names`: how soon an agent that
//! was killed, and whose place nobody takes, has them all again.
//!
//! A watch of our own hears of the Service beside the agent's: from then on the time counts. It ends
//! when a pod that asks without pause, by IPv4 and by IPv6, hears the address.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::{
    pair::{ADDRESS, At},
    questions,
    seat::Seat,
};
use crate::{
    bench::{Figure, catalogue, objects, turns::Summary, world::World},
    cluster::bulk::{self, Pace, Request},
};

/// The time that one of a hundred new Services takes longer.
pub const NEWS: &str = "new-service-p99";
/// From the start of an agent to the first answer.
pub const RESTART: &str = "restart-to-names";

/// How many Services are made, and how many a second.
const COUNT: u32 = 200;
const PER_SECOND: u32 = 20;
/// What they may be, in milliseconds.
const BOUND_MS: f64 = 100.0;
const RESTART_MS: f64 = 200.0;
const RESTARTS: u32 = 9;
/// Between two questions for a name that is not there yet.
const PAUSE: Duration = Duration::from_micros(500);
/// How long anything may take.
const LIMIT: Duration = Duration::from_mins(1);
/// The cluster DNS addresses.
const SERVERS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(ADDRESS), 53),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0xa)), 53),
];

/// The figure, with as many Services as there are.
pub fn measure(world: &mut World, seat: &Seat) -> Result<Vec<Figure>> {
    let first = world.services;
    let names: Vec<String> = (first..first + COUNT).map(questions::name).collect();
    let requests: Vec<Request> = (first..first + COUNT)
        .map(|number| {
            let [service, _slice] = objects::create(&catalogue::service(number, 0));
            service
        })
        .collect();
    let watch = Watch::start(world)?;
    let (heard, resolved) = thread::scope(|scope| -> Result<_> {
        let asking = SERVERS.map(|server| {
            let names = &names;
            scope.spawn(move || seat.pair.within(At::Client, || each(server, names)))
        });
        let hearing = scope.spawn(|| watch.heard(&names));
        bulk::send(&world.api, &world.layout.dir, &requests, Pace::PerSecond(PER_SECOND))?;
        let mut resolved = Vec::new();
        for thread in asking {
            resolved.push(thread.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        let heard = hearing.join().map_err(|_| anyhow!("the watch panicked"))??;
        Ok((heard, resolved))
    })?;
    world.services += COUNT;
    let since = |name: &String, at: &Instant| heard.get(name).map(|from| millis(*at - *from));
    let mut took: Vec<f64> = resolved
        .iter()
        .flat_map(|times| names.iter().zip(times).filter_map(|(name, at)| since(name, at)))
        .collect();
    ensure!(took.len() == 2 * names.len(), "the watch missed some of {COUNT} services");
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    let contender = format!("mizzen, watch event to answer, {first} services");
    let figure = |name: &str, value| Figure::once(name, value, "ms", contender.clone());
    Ok(vec![
        figure(NEWS, at(99)).at_most(BOUND_MS, 0.0),
        figure("new-service-p50", at(50)),
        figure("new-service-max", at(100)),
    ])
}

/// The figure, and the seat with the agent that runs in the end.
pub fn restart(seat: &Seat, services: u32) -> Result<(Seat, Vec<Figure>)> {
    let mut seat = seat.clone();
    let name = [questions::name(services - 1)];
    let mut samples = Vec::new();
    for _restart in 0..RESTARTS {
        let (started, begun) = seat.killed_and_started()?;
        seat = started;
        let at = seat.pair.within(At::Client, || each(SERVERS[0], &name))?;
        samples.push(millis(at[0] - begun));
    }
    let contender = format!("mizzen, killed and started, {services} services");
    let figure = Figure::of(RESTART, Summary::of(&samples), "ms", contender, RESTARTS);
    Ok((seat, vec![figure.at_most(RESTART_MS, 0.0)]))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// When each name had an address, one after the other, asked for without pause.
fn each(server: SocketAddr, names: &[String]) -> Result<Vec<Instant>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut id = 0;
    let until = Instant::now() + LIMIT;
    let resolved = |name: &String| loop {
        id = (id + 1) & 0x7fff;
        if has_address(&socket, id, name) {
            return Ok(Instant::now());
        }
        if Instant::now() > until {
            bail!("{name} is not there at {server}");
        }
        thread::sleep(PAUSE);
    };
    names.iter().map(resolved).collect()
}

/// Whether a question for the name is answered with an address. That nobody answers is none, and an
/// answer that comes late is passed over.
fn has_address(socket: &UdpSocket, id: u16, name: &str) -> bool {
    let mut answer = [0; 512];
    if socket.send(&question(id, name)).is_err() {
        return false;
    }
    loop {
        let Ok(length) = socket.recv(&mut answer) else { return false };
        // The identifier, and beside it no error and an answer (RFC 1035 4.1.1).
        if let [high, low, _, code, _, _, _, count, ..] = answer[..length]
            && [high, low] == id.to_be_bytes()
        {
            return code << 4 == 0 && count > 0;
        }
    }
}

/// A question for A records of the name.
fn question(id: u16, name: &str) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut octets = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        octets.push(u8::try_from(label.len()).unwrap_or_default());
        octets.extend(label.as_bytes());
    }
    octets.extend([0, 0, 1, 0, 1]);
    octets
}

/// A watch of Services beside the agent's; ends when it is dropped.
struct Watch {
    child: Child,
}

impl Watch {
    /// Begins with what comes from now on.
    fn start(world: &World) -> Result<Self> {
        let api = &world.api;
        let path = "/api/v1/services?limit=1";
        let version = api.get(path)?["metadata"]["resourceVersion"].clone();
        let version = version.as_str().context("a list without a resourceVersion")?.to_owned();
        let mut curl: Command = api.curl();
        curl.arg("--no-buffer");
        curl.arg(api.url(&format!("/api/v1/services?watch=true&resourceVersion={version}")));
        curl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self { child: curl.spawn().context("can't start curl")? })
    }

    /// When it heard of each of these.
    fn heard(mut self, names: &[String]) -> Result<HashMap<String, Instant>> {
        let output = self.child.stdout.take().context("no output of curl")?;
        let mut heard = HashMap::new();
        for line in BufReader::new(output).lines() {
            let (line, now) = (line?, Instant::now());
            let event: Value = serde_json::from_str(&line)?;
            let metadata = &event["object"]["metadata"];
            let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
            let domain = questions::DOMAIN;
            let name = format!("{}.{}.svc.{domain}", text("name"), text("namespace"));
            if event["type"] == "ADDED" && names.contains(&name) {
                heard.insert(name, now);
            }
            if heard.len() == names.len() {
                return Ok(heard);
            }
        }
        bail!("the watch ended after {} of {} services", heard.len(), names.len());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_what_is_none() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (server, client) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
            client.connect(server.local_addr().unwrap()).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(9))).unwrap();
            server.connect(client.local_addr().unwrap()).unwrap();
            let say = |id: u16, code: u8, count: u8| {
                let [high, low] = id.to_be_bytes();
                server.send(&[high, low, 0x84, 0x80 | code, 0, 1, 0, count]).unwrap();
            };
            for (code, count, expected) in [(0, 1, true), (3, 1, false), (0, 0, false)] {
                // One that is late comes before.
                say(6, 0, 1);
                say(7, code, count);
                assert_eq!(has_address(&client, 7, "a.example"), expected);
            }
        }
        assert_eq!(question(1, "a.bc")[12..], [1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
    }
}
