//! `p50-under-churn`, `p99-under-churn`: latency while a thousand endpoints change a second.
//!
//! Changes make work for the API server and for the agent, on the same two CPUs. How much of that is
//! felt by whoever answers tells a server that follows nothing: it answers while the agent follows
//! beside it, on its CPU.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use super::{
    check, compare,
    load::{self, Pace},
    objects,
    pair::{self, At},
    questions,
    seat::Seat,
};
use crate::{
    bench::{Figure, triple, turns, world::World},
    cluster::{
        bulk::{self, Request},
        process, up,
    },
    invoke,
    load::Measured,
};

/// Median latency under churn over the quiet one's.
pub const P50: &str = "p50-under-churn";
/// The latency that one question of a hundred exceeds, the same way.
pub const P99: &str = "p99-under-churn";

const PER_SECOND: f64 = 1_000.0;
/// With less than this the figures are taken and judged by no bar: something else kept the API
/// server from its work.
const PER_SECOND_MIN: f64 = 0.98 * PER_SECOND;
/// How many are sent a second at first, and at most. Senders never make up for what they are late,
/// so more have to be meant than come.
const MEANT: (f64, f64) = (1.15 * PER_SECOND, 1.6 * PER_SECOND);
/// One sends no more than one at a time.
const SENDERS: u32 = 40;
const QUERIES_PER_SECOND: u32 = 5_000;
/// Load begins so long after the changes and ends so long before their end.
const MARGIN: f64 = 0.5;
const SECONDS: f64 = 3.0;

/// Whether endpoints change while a server is asked.
#[derive(Clone, Copy, Debug)]
enum Turn<'a> {
    Quiet(&'a Seat),
    Churn(&'a Seat),
}

/// Both figures, with as many services as there are. `other`: a server that follows nothing.
pub fn measure(world: &World, ours: &Seat, other: &Seat, rounds: u32) -> Result<Vec<Figure>> {
    let api_server = process::running(&world.layout, up::CONTROL_PLANE);
    let api_server = api_server.context("no API server runs")?.pid.to_string();
    give_way(&api_server)?;
    let figures = take(world, ours, other, rounds);
    take_part(&api_server)?;
    figures
}

fn take(world: &World, ours: &Seat, other: &Seat, rounds: u32) -> Result<Vec<Figure>> {
    let data = questions::data(questions::services().map(|(name, _)| name));
    let mut changes = Changes { world, ours, turn: 0, meant: MEANT.0, rates: Vec::new() };
    let turns = [
        Turn::Quiet(ours),
        Turn::Quiet(ours),
        Turn::Churn(ours),
        Turn::Quiet(other),
        Turn::Churn(other),
    ];
    let ask = |seat| load::run(seat, &data, Pace::PerSecond(QUERIES_PER_SECOND), SECONDS);
    let taken = turns::quiet(P99, &turns, rounds, compare::p99_of, |turn| match turn {
        Turn::Quiet(seat) => ask(seat),
        Turn::Churn(seat) => changes.during(|| ask(seat)),
    })?;
    let rate = turns::Summary::of(&changes.rates).value;
    let contender = format!("mizzen at {rate:.0} changes/s / quiet, {} services", world.services);
    let figure = |name: &str, quantity, bound| {
        let noise = taken.noise(quantity).spread;
        let ratio = taken.to_reference(2, quantity);
        let figure = Figure::ratio(name, ratio, contender.clone(), rounds);
        if rate < PER_SECOND_MIN { figure } else { figure.at_most(bound, noise) }
    };
    let mut figures = vec![figure(P50, compare::p50_of, 1.2), figure(P99, compare::p99_of, 2.0)];
    for (name, quantity) in [(P50, compare::p50_of as turns::Quantity), (P99, compare::p99_of)] {
        let contender = format!("{} beside an agent that follows / quiet", other.label);
        figures.push(Figure::ratio(name, taken.ratio(4, 3, quantity), contender, rounds));
    }
    for (at, label) in [
        (0, "mizzen, quiet".to_owned()),
        (2, "mizzen under churn".to_owned()),
        (3, format!("{}, quiet", other.label)),
        (4, format!("{} beside churn", other.label)),
    ] {
        for (name, quantity) in
            [("p50-at-5000", compare::p50_of as turns::Quantity), ("p99-at-5000", compare::p99_of)]
        {
            figures.push(Figure::of(name, taken.plain(at, quantity), "us", &*label, rounds));
        }
    }
    // What is beyond the questions' own cost is that of the changes.
    let cpu = |measured: &Measured| measured.cpu_us * f64::from(QUERIES_PER_SECOND);
    let of_changes = taken.over(|round| (cpu(&round[2]) - cpu(&round[0])) / rate);
    figures.push(Figure::of("cpu-per-change", of_changes, "us", contender.clone(), rounds));
    Ok(figures)
}

/// Changes of endpoints: each turn has one of many services be ready no more, or again.
struct Changes<'a> {
    world: &'a World,
    /// Who follows.
    ours: &'a Seat,
    turn: u32,
    /// How many shall be sent a second, so that as many come as are wanted.
    meant: f64,
    rates: Vec<f64>,
}

impl Changes<'_> {
    /// Runs `load` while endpoints change.
    fn during(&mut self, load: impl FnOnce() -> Result<Measured>) -> Result<Measured> {
        self.turn += 1;
        let ready = self.turn.is_multiple_of(2);
        let seconds = SECONDS + 2.0 * MARGIN;
        let count = whole(PER_SECOND * seconds).min(self.world.services);
        let requests: Vec<Request> =
            (0..count).map(|number| objects::set_ready(number, ready)).collect();
        let (world, meant) = (self.world, whole(self.meant));
        let (measured, failed, took) = thread::scope(|scope| -> Result<_> {
            let sending = scope.spawn(|| send(world, &requests, meant));
            thread::sleep(Duration::from_secs_f64(MARGIN));
            let measured = load();
            let (failed, took) = sending.join().map_err(|_| anyhow!("the sender panicked"))??;
            Ok((measured?, failed, took))
        })?;
        // They count as not sent; the next turn is to find all as this one leaves them.
        bulk::send(&world.api, &world.layout.dir, &failed, bulk::Pace::Fast)?;
        let sent = count.saturating_sub(u32::try_from(failed.len())?);
        let rate = f64::from(sent.max(1)) / took.as_secs_f64();
        self.rates.push(rate);
        self.meant = (self.meant * PER_SECOND / rate).clamp(PER_SECOND, MEANT.1);
        followed(self.ours, count - 1, ready)?;
        Ok(measured)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand")]
fn whole(number: f64) -> u32 {
    number as u32
}

/// Sends changes at their pace, giving way to everything that is measured; those that failed.
fn send(world: &World, requests: &[Request], per_second: u32) -> Result<(Vec<Request>, Duration)> {
    give_way(&nix::unistd::gettid().to_string())?;
    let start = Instant::now();
    let failed = bulk::send_paced(&world.api, &world.layout.dir, requests, per_second, SENDERS)?;
    Ok((failed, start.elapsed()))
}

/// Has a process, or a thread and the children that it will have, run on the client's CPU, and
/// there only when nobody else wants to.
fn give_way(id: &str) -> Result<()> {
    let cpu = triple::other_cpu().to_string();
    // Of a thread of ours these are its own; of another process, those of all its threads.
    let all = if id == nix::unistd::gettid().to_string() { &[][..] } else { &["--all-tasks"] };
    for line in
        [&["taskset", "--pid", "--cpu-list", &cpu, id][..], &["chrt", "--idle", "--pid", "0", id]]
    {
        let args = all.iter().chain(&line[1..]);
        invoke::capture(&mut invoke::command(line[0], args))?;
    }
    Ok(())
}

/// Has a process run as others do again.
fn take_part(id: &str) -> Result<()> {
    let last = thread::available_parallelism().map_or(1, std::num::NonZero::get) - 1;
    let all = format!("0-{last}");
    invoke::capture(&mut invoke::command("taskset", ["-a", "-p", "-c", &all, id]))?;
    invoke::capture(&mut invoke::command("chrt", ["-a", "--other", "-p", "0", id])).map(drop)
}

/// Waits until names say what was changed last: a turn's changes are not another's.
fn followed(seat: &Seat, number: u32, ready: bool) -> Result<()> {
    let address = objects::endpoint(number, 0).to_string();
    pair::wait(&seat.pair, "the last change to be in the names", || {
        let server = format!("@{}", pair::ADDRESS);
        let said = seat.pair.capture(At::Client, &["dig", &server, "+short", "-x", &address])?;
        let there = said.contains(&questions::name(number));
        let reason = || format!("{address} has the names {said:?}");
        Ok(if there == ready { Ok(()) } else { Err(reason()) })
    })?;
    check::answers(seat)
}
