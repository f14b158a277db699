//! `bench dns`: the agent's resolver beside unbound and other servers, which answer the same.
//!
//! ```text
//!  questions (pure) ──> peers (configurations) ──> seat: a server at its pair of namespaces
//!        └─────────────────────> check (dig), load (dnsperf) ──> turns ──> Figure
//! ```

pub mod check;
pub mod churn;
pub mod compare;
pub mod conntrack;
pub mod load;
pub mod memory;
pub mod news;
pub mod objects;
pub mod overload;
pub mod packages;
pub mod pair;
pub mod peers;
pub mod questions;
pub mod seat;
pub mod storm;

use anyhow::Result;

use self::{
    packages::Packages,
    peers::Peer,
    seat::{MIZZEN, Seat},
};
use super::{
    Area,
    results::{Options, Results},
    world::{self, World},
};
use crate::{cluster::process, invoke, step::step};

/// The names of the figures.
pub const NAMES: &[&str] = &[
    compare::CPU,
    compare::P99,
    storm::PACKETS,
    storm::THROUGHPUT,
    overload::GOODPUT,
    overload::P99,
    overload::ANSWERED,
    overload::MEMORY,
    conntrack::NAME,
    churn::P50,
    churn::P99,
    memory::NAME,
    news::NEWS,
    news::RESTART,
];

/// Figures that compare servers with a thousand services.
const COMPARED: &[&str] = &[
    compare::CPU,
    compare::P99,
    storm::PACKETS,
    storm::THROUGHPUT,
    overload::GOODPUT,
    overload::P99,
    overload::ANSWERED,
    overload::MEMORY,
    conntrack::NAME,
];
/// Figures of the agent alone, with ten thousand.
const LARGE: &[&str] = &[churn::P50, churn::P99, memory::NAME, news::NEWS];

/// Measures what is wanted on a cluster of its own, and removes it.
pub fn measure(options: &Options) -> Result<Results> {
    let packages = Packages::ensure()?;
    let mut results = Results::of(Area::Dns);
    world::within(&world::layout(options.profile), |layout| {
        let mut world = step("starting the API server", || World::start(layout))?;
        step("services", || world.grow(questions::SERVICES))?;
        let seats = step("starting servers, and whether they say the same", || {
            seat_all(&mut world, &packages, options)
        })?;
        compared(&seats, options, &mut results)?;
        let seats = restarted(seats, options, &mut results)?;
        large(&mut world, seats, options, &mut results)
    })?;
    Ok(results)
}

/// The reference twice, Mizzen, and the others.
fn seat_all(world: &mut World, packages: &Packages, options: &Options) -> Result<Vec<Seat>> {
    let mut seats = Vec::new();
    if options.wants_any(COMPARED.iter().copied()) {
        seats.push(Seat::of_peer(world, packages, Peer::Unbound)?);
        seats.push(Seat::of_peer(world, packages, Peer::Unbound)?);
    } else if options.wants_any([churn::P50, churn::P99]) {
        seats.push(Seat::of_peer(world, packages, Peer::Unbound)?);
    }
    seats.push(Seat::of_mizzen(world, packages)?);
    if options.wants_any([compare::CPU, compare::P99]) {
        for peer in [Peer::Dnsmasq, Peer::Named, Peer::Knot] {
            seats.push(Seat::of_peer(world, packages, peer)?);
        }
    }
    if options.wants_any(COMPARED.iter().copied()) && invoke::in_path(Peer::CoreDns.program()) {
        seats.push(Seat::of_peer(world, packages, Peer::CoreDns)?);
    }
    Ok(seats)
}

fn compared(seats: &[Seat], options: &Options, results: &mut Results) -> Result<()> {
    let rounds = options.rounds;
    if options.wants(compare::CPU) {
        results.take(compare::CPU, || compare::cpu(seats, rounds))?;
    }
    if options.wants(compare::P99) {
        results.take(compare::P99, || compare::latency(seats, rounds))?;
    }
    if options.wants_any([storm::PACKETS, storm::THROUGHPUT]) {
        let forwarding = [Peer::Unbound.label(), MIZZEN, Peer::CoreDns.label()];
        let seats: Vec<Seat> =
            seats.iter().filter(|seat| forwarding.contains(&seat.label)).cloned().collect();
        results.take("search-storm-*", || storm::measure(&seats, rounds))?;
    }
    if options.wants_any(overload::NAMES) {
        let compared = [Peer::Unbound.label(), MIZZEN];
        let seats: Vec<Seat> =
            seats.iter().filter(|seat| compared.contains(&seat.label)).cloned().collect();
        results.take("overload-*", || overload::measure(&seats, rounds))?;
    }
    if options.wants(conntrack::NAME) {
        let compared = [Peer::Unbound.label(), MIZZEN];
        let mut seats: Vec<Seat> =
            seats.iter().filter(|seat| compared.contains(&seat.label)).cloned().collect();
        // The reference stands there twice.
        seats.dedup_by_key(|seat| seat.label);
        results.take(conntrack::NAME, || conntrack::measure(&seats))?;
    }
    Ok(())
}

/// How soon an agent is back; the seats with those that run in the end.
fn restarted(seats: Vec<Seat>, options: &Options, results: &mut Results) -> Result<Vec<Seat>> {
    if !options.wants(news::RESTART) {
        return Ok(seats);
    }
    let mut all = Vec::new();
    for seat in seats {
        if seat.label != MIZZEN {
            all.push(seat);
            continue;
        }
        let mut now = seat.clone();
        results.take(news::RESTART, || {
            let (started, figures) = news::restart(&seat, questions::SERVICES)?;
            now = started;
            Ok(figures)
        })?;
        all.push(now);
    }
    Ok(all)
}

/// Everything that the agent does in a large cluster; of the others the reference stays.
fn large(
    world: &mut World,
    seats: Vec<Seat>,
    options: &Options,
    results: &mut Results,
) -> Result<()> {
    if !options.wants_any(LARGE.iter().copied()) {
        return Ok(());
    }
    let (ours, others): (Vec<Seat>, Vec<Seat>) =
        seats.into_iter().partition(|seat| seat.label == MIZZEN);
    let (reference, others): (Vec<Seat>, Vec<Seat>) =
        others.into_iter().partition(|seat| seat.label == Peer::Unbound.label());
    for other in others.iter().chain(reference.iter().skip(1)) {
        process::end(&other.process)?;
    }
    step("10,000 services with 10 pods each", || memory::grow(world))?;
    for seat in &ours {
        step("waiting for the agent to follow", || memory::follow(seat))?;
        if let Some(reference) = reference.first()
            && options.wants_any([churn::P50, churn::P99])
        {
            results
                .take("*-under-churn", || churn::measure(world, seat, reference, options.rounds))?;
        }
        if options.wants(memory::NAME) {
            results.take(memory::NAME, || memory::measure(seat))?;
        }
        if options.wants(news::NEWS) {
            results.take(news::NEWS, || news::measure(world, seat))?;
        }
    }
    Ok(())
}
