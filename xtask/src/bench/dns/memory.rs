//! `rss-10k-100k`: what the agent holds for ten thousand services with ten endpoints each.

use std::{thread, time::Duration};

use anyhow::Result;

use super::{check, objects, pair, questions, seat::Seat};
use crate::{
    bench::{Figure, turns::Summary, world::World},
    cluster::bulk::{self, Pace, Request},
};

/// Resident memory of the agent with its DNS role alone.
pub const NAME: &str = "rss-10k-100k";
/// How many services there are.
pub const SERVICES: u32 = 10_000;

/// A quarter of what CoreDNS takes: (pods + services) / 1000 + 54 MB.
const BOUND_MB: f64 = 0.25 * (110.0 + 54.0);
const STARTS: u32 = 3;
/// After the lists were read, for memory to be given back.
const SETTLING: Duration = Duration::from_secs(3);

/// Makes the cluster large, pod by pod.
pub fn grow(world: &mut World) -> Result<()> {
    world.grow(SERVICES)?;
    let requests: Vec<Request> = (0..SERVICES)
        .map(|number| objects::replace_endpoints(number, objects::ENDPOINTS))
        .collect();
    bulk::send(&world.api, &world.layout.dir, &requests, Pace::Fast)
}

/// Waits until the agent has followed to all of them.
pub fn follow(seat: &Seat) -> Result<()> {
    let last = questions::name(SERVICES - 1);
    let endpoint =
        format!("10-{}", dashes(objects::endpoint(SERVICES - 1, objects::ENDPOINTS - 1)));
    let names = [last.clone(), format!("{endpoint}.{last}")];
    pair::wait(&seat.pair, "the agent to know all services", || {
        let said = check::ask(seat, "A", names.clone())?;
        let all = said.values().all(|(code, found)| code == "NOERROR" && !found.is_empty());
        Ok(if all { Ok(()) } else { Err(format!("{said:?}")) })
    })
}

fn dashes(address: std::net::Ipv4Addr) -> String {
    let [_, rest @ ..] = address.octets();
    rest.map(|octet| octet.to_string()).join("-")
}

/// The figure, of an agent that starts anew; and what one holds that has followed changes.
pub fn measure(seat: &Seat) -> Result<Vec<Figure>> {
    let followed = resident(seat)?;
    let mut samples = Vec::new();
    let mut seat = seat.clone();
    for _start in 0..STARTS {
        seat = seat.restarted()?;
        follow(&seat)?;
        thread::sleep(SETTLING);
        samples.push(resident(&seat)?);
    }
    let summary = Summary::of(&samples);
    let contender = "mizzen-agent, dns alone";
    Ok(vec![
        Figure::of(NAME, summary, "MB", contender, STARTS).at_most(BOUND_MB, 0.0),
        Figure::once("rss-10k-100k-followed", followed, "MB", "the same after changes"),
        Figure::once("rss-10k-100k-formula", 4.0 * BOUND_MB, "MB", "coredns, by its formula"),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
fn resident(seat: &Seat) -> Result<f64> {
    Ok(seat.process.resident_bytes()? as f64 / 1e6)
}
