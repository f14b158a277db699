//! What a change costs the agent, and how soon it is in the tables; what it costs when nothing
//! changes: `agent-idle-rss`, `agent-idle-cpu`, `calls-per-endpoint-change`, `audit-cpu`, `heal-30k`, `refused-connect-p99`, `watch-to-map-p99`, `watch-to-map-rate`, `cold-fill-10k`, `maps-bytes-10k-x-10`, `agent-rss-10k-x-10`.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use super::{
    Figure, catalogue, contender::Seat, interrupt, maps, mizzen, objects, scrape, sockets,
    triple::Triple, turns::Summary, world::World,
};
use crate::cluster::{
    bulk::{self, Pace, Request},
    cgroup,
    process::Started,
    up,
};

/// The figures that are taken at [`SIZES`].
pub const CALLS: &str = "calls-per-endpoint-change";
/// The figure that is taken at [`LARGEST`].
pub const AUDIT: &str = "audit-cpu";
/// And how soon what is deleted is back there.
pub const HEAL: &str = "heal-30k";
/// And how soon a connection is refused there that nobody serves.
pub const REFUSED: &str = "refused-connect-p99";
/// The figures that are taken at [`LARGE`].
pub const AT_LARGE: &[&str] = &[P99, RATE, "cold-fill-10k", MAPS, RSS];
const P99: &str = "watch-to-map-p99";
const RATE: &str = "watch-to-map-rate";
const MAPS: &str = "maps-bytes-10k-x-10";
const RSS: &str = "agent-rss-10k-x-10";

/// How many services there are for the cost of a change: it must not depend on it.
pub const SIZES: [u32; 3] = [10, 1_000, LARGE];
/// How many there are for the rest.
pub const LARGE: u32 = 10_000;
/// How many there are for what it costs to look after them.
pub const LARGEST: u32 = 30_000;

/// What an agent takes where the cluster has nothing to balance.
pub const IDLE_RSS: &str = "agent-idle-rss";
/// And of a core.
pub const IDLE_CPU: &str = "agent-idle-cpu";
/// A service that nobody calls.
const CHANGED: u32 = 3;
const CHANGES: u32 = 1_000;
/// As many seconds as two reviews of the tables are apart, or a multiple: there are as many of them
/// while changes are made as while none is.
const CHANGES_PER_S: u32 = 100;
/// How long an agent is watched that has nothing to do.
const IDLE: Duration = Duration::from_secs(20);
/// Entries that are deleted, one after the other is back.
const HEALED: usize = 5;
/// How often it is looked whether it is, and for how long.
const HEAL_LOOK: Duration = Duration::from_millis(20);
const HEAL_MAX: Duration = Duration::from_mins(1);
/// Changes in a second for the time from the watch to the tables, and how many there must be for it
/// to count: who sends them comes late now and then.
const STORM_PER_S: u32 = 1_100;
const JUDGED_PER_S: f64 = 1_000.0;
const STORM_SECONDS: u32 = 5;
/// One sends no more than one at a time.
const SENDERS: u32 = 20;
const MB: f64 = 1e6;

/// Adds an endpoint to a service and takes it away again, many times.
pub fn calls(world: &World, seat: &Seat) -> Result<Vec<Figure>> {
    let size = world.services;
    let (few, many) = (catalogue::ENDPOINTS, catalogue::ENDPOINTS + 1);
    let requests: Vec<Request> = (0..CHANGES)
        .map(|n| if n % 2 == 0 { many } else { few })
        .map(|endpoints| objects::replace_endpoints(&catalogue::service(CHANGED, endpoints)))
        .collect();
    let length = Duration::from_secs(1) * (CHANGES / CHANGES_PER_S);
    let idle = cpu_of(&seat.triple, || {
        std::thread::sleep(length);
        Ok(())
    })?;
    let before = mizzen::metrics(&seat.triple)?;
    let busy = cpu_of(&seat.triple, || {
        let folder = &world.layout.dir;
        bulk::send(&world.api, folder, &requests, Pace::PerSecond(CHANGES_PER_S))
    })?;
    let after = settled(&seat.triple)?;
    let changes = f64::from(CHANGES);
    let per_change =
        |name: &str| -> Result<f64> { Ok((after.get(name)? - before.get(name)?) / changes) };
    let contender = format!("mizzen-agent, {size} services");
    let figure = |name: &str, value: f64, unit| {
        Figure::once(format!("{CALLS}{name}"), value, unit, contender.clone())
    };
    let mut figures = vec![
        figure("", per_change("mizzen_map_calls_total")?, "calls").at_most(4.0, 0.0),
        figure("-flips", per_change("mizzen_map_set_flips_total")?, "flips").at_most(1.0, 0.0),
        figure("-writes", per_change("mizzen_map_writes_total")?, "elements"),
        figure("-cpu", (busy - idle).max(0.0) / changes, "us").at_most(100.0, 0.0),
    ];
    if let Ok(bytes) = per_change("mizzen_map_bytes_written_total") {
        let bound = f64::from(8 * many + 128);
        figures.push(figure("-bytes", bytes, "bytes").at_most(bound, 0.0));
    }
    Ok(figures)
}

/// What an agent takes of a core while nothing changes: it compares all its tables every few
/// seconds.
pub fn audit(world: &World, seat: &Seat) -> Result<Vec<Figure>> {
    let percent = cpu_at_rest(seat)?;
    let contender = format!("mizzen-agent, {} services", world.services);
    Ok(vec![Figure::once(AUDIT, percent, "% of a core", contender).at_most(1.0, 0.0)])
}

/// How long an address of a service is missing that somebody deleted: the longest of a few.
pub fn heal(world: &World, seat: &Seat) -> Result<Vec<Figure>> {
    settled(&seat.triple)?;
    let table = maps::hash_of_agent(&mizzen::running(&seat.triple)?, &seat.triple, "FRONTENDS")?;
    let keys = table.keys()?;
    let step = (keys.len() / HEALED).max(1);
    let mut longest = Duration::ZERO;
    for key in keys.iter().step_by(step).take(HEALED) {
        interrupt::check()?;
        table.delete(key)?;
        let deleted = Instant::now();
        while !table.holds(key)? {
            interrupt::check()?;
            ensure!(deleted.elapsed() < HEAL_MAX, "a deleted entry was not back in {HEAL_MAX:?}");
            std::thread::sleep(HEAL_LOOK);
        }
        longest = longest.max(deleted.elapsed());
    }
    let contender = format!("mizzen-agent, {} services, the longest of {HEALED}", world.services);
    Ok(vec![Figure::once(HEAL, longest.as_secs_f64(), "s", contender).at_most(10.0, 0.0)])
}

/// How long `connect()` takes to a service without endpoints.
pub fn refused(world: &World, seat: &Seat) -> Result<Vec<Figure>> {
    const MILLIS: u64 = 1_000;
    let have = |endpoints: u32| {
        let change = objects::replace_endpoints(&catalogue::service(CHANGED, endpoints));
        bulk::send(&world.api, &world.layout.dir, &[change], Pace::Fast)?;
        settled(&seat.triple)
    };
    have(0)?;
    let measured = sockets::load(&seat.by_number(CHANGED), "refused", MILLIS);
    have(catalogue::ENDPOINTS)?;
    let measured = measured?;
    let contender = format!("mizzen, {} connections", measured.operations);
    Ok(vec![Figure::once(REFUSED, measured.p99_us / 1e3, "ms", contender).at_most(50.0, 0.0)])
}

/// What an agent takes in a cluster that has no service but its API server's.
pub fn idle(seat: &Seat) -> Result<Vec<Figure>> {
    let percent = cpu_at_rest(seat)?;
    #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
    let resident = resident_at_rest(&mizzen::running(&seat.triple)?, seat)? as f64 / MB;
    let contender = "mizzen-agent, no services";
    Ok(vec![
        Figure::once(IDLE_RSS, resident, "MB", contender).at_most(25.0, 0.0),
        Figure::once(IDLE_CPU, percent, "% of a core", contender).at_most(0.1, 0.0),
    ])
}

/// Percent of a core while nothing changes.
fn cpu_at_rest(seat: &Seat) -> Result<f64> {
    settled(&seat.triple)?;
    let used_us = cpu_of(&seat.triple, || {
        interrupt::check()?;
        std::thread::sleep(IDLE);
        Ok(())
    })?;
    Ok(used_us / 1e4 / IDLE.as_secs_f64())
}

/// Microseconds of CPU time of the agent during something.
fn cpu_of(triple: &Triple, during: impl FnOnce() -> Result<()>) -> Result<f64> {
    let dir = cgroup::node_dir(&triple.layout, &triple.host.name)?.join("agent");
    let usage = || -> Result<f64> {
        let text = std::fs::read_to_string(dir.join("cpu.stat"))?;
        let value = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        value.with_context(|| format!("{} has no cpu.stat with usage", dir.display()))
    };
    let before = usage()?;
    during()?;
    Ok(usage()? - before)
}

/// The metrics when the agent has nothing left to do.
pub fn settled(triple: &Triple) -> Result<scrape::Metrics> {
    let mut last = mizzen::metrics(triple)?;
    up::wait(&triple.layout, "the agent to have followed", || {
        interrupt::check()?;
        std::thread::sleep(Duration::from_millis(200));
        let now = mizzen::metrics(triple)?;
        let writes = |metrics: &scrape::Metrics| metrics.find("mizzen_map_writes_total");
        let quiet = writes(&now) == writes(&last);
        last = now;
        Ok(if quiet { Ok(()) } else { Err("it still writes".to_owned()) })
    })?;
    Ok(last)
}

/// Everything at ten thousand services; afterwards they have ten endpoints each.
pub fn large(
    world: &World,
    seat: &Seat,
    rounds: u32,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if wanted(P99) || wanted(RATE) {
        figures.extend(watch_to_map(world, seat)?);
    }
    if wanted("cold-fill-10k") {
        figures.push(cold_fill(seat, rounds.min(5))?);
    }
    if wanted(MAPS) || wanted(RSS) {
        figures.extend(memory(world, seat)?);
    }
    Ok(figures)
}

/// More than a thousand changes a second, each of another service.
fn watch_to_map(world: &World, seat: &Seat) -> Result<Vec<Figure>> {
    let before = mizzen::metrics(&seat.triple)?;
    let (start, now) = (Instant::now(), SystemTime::now());
    let requests: Vec<Request> = (0..STORM_PER_S * STORM_SECONDS)
        .map(|n| {
            let service = catalogue::service(CHANGED + 1 + n, catalogue::ENDPOINTS + 1);
            let at = now + Duration::from_secs(1) * n / STORM_PER_S;
            objects::replace_endpoints_caused_at(&service, at)
        })
        .collect();
    let failed = bulk::send_paced(&world.api, &world.layout.dir, &requests, STORM_PER_S, SENDERS)?;
    ensure!(failed.is_empty(), "{} of {} changes failed", failed.len(), requests.len());
    let rate = f64::from(STORM_PER_S * STORM_SECONDS) / start.elapsed().as_secs_f64();
    let after = settled(&seat.triple)?;
    let contender = format!("mizzen-agent, {rate:.0} changes/s, 10,000 services");
    let sent = "the API server, 10,000 services";
    let quantile = |histogram: &str, share| {
        let (before, after) = (before.buckets(histogram), after.buckets(histogram));
        scrape::quantile(&before, &after, share)
    };
    let ours = |share| quantile("mizzen_watch_to_map_seconds", share) * 1e3;
    let p99 = Figure::once(P99, ours(0.99), "ms", contender.clone());
    let proxys = quantile("kubeproxy_network_programming_duration_seconds", 0.99);
    Ok(vec![
        Figure::once(RATE, rate, "changes/s", sent).at_least(JUDGED_PER_S, 0.0),
        if rate >= JUDGED_PER_S { p99.at_most(5.0, 0.0) } else { p99 },
        Figure::once("watch-to-map-p50", ours(0.5), "ms", contender.clone()),
        Figure::once("network-programming-p99", proxys, "s", contender),
    ])
}

/// An agent that starts with empty tables: from the last list that it needs to the tables.
fn cold_fill(seat: &Seat, rounds: u32) -> Result<Figure> {
    let mut samples = Vec::new();
    for _round in 0..rounds {
        interrupt::check()?;
        let metrics = start_anew(seat)?;
        samples.push(metrics.get("mizzen_last_plan_duration_microseconds")? / 1e6);
    }
    let contender = "mizzen-agent, 10,000 services x 2 endpoints";
    let figure = Figure::of("cold-fill-10k", Summary::of(&samples), "s", contender, rounds);
    Ok(figure.at_most(0.2, 0.0))
}

/// Starts the agent as on a new machine; its metrics as soon as the tables are filled.
fn start_anew(seat: &Seat) -> Result<scrape::Metrics> {
    mizzen::forget(&seat.triple)?;
    mizzen::start(&seat.triple)?;
    up::wait(&seat.triple.layout, "the tables to be filled", || {
        // It may not listen yet.
        let metrics = mizzen::metrics(&seat.triple).unwrap_or_default();
        let filled = metrics.find("mizzen_services").unwrap_or(0.0) >= f64::from(LARGE);
        Ok(if filled { Ok(metrics) } else { Err("not yet".to_owned()) })
    })
}

/// What an agent holds that has given back what it needed for its lists: when that does not change
/// any more.
fn resident_at_rest(agent: &Started, seat: &Seat) -> Result<u64> {
    const LOOK: Duration = Duration::from_secs(2);
    let mut last = agent.resident_bytes()?;
    up::wait(&seat.triple.layout, "the agent's memory to be at rest", || {
        interrupt::check()?;
        std::thread::sleep(LOOK);
        let before = std::mem::replace(&mut last, agent.resident_bytes()?);
        Ok(if last == before { Ok(()) } else { Err(format!("{last} octets, {before} before")) })
    })?;
    Ok(last)
}

/// Ten endpoints for each service, a new agent, and what both kinds of memory then hold.
fn memory(world: &World, seat: &Seat) -> Result<Vec<Figure>> {
    let requests: Vec<Request> = (1..LARGE)
        .map(|number| catalogue::service(number, 10))
        .map(|service| objects::replace_endpoints(&service))
        .collect();
    bulk::send(&world.api, &world.layout.dir, &requests, Pace::Fast)?;
    start_anew(seat)?;
    settled(&seat.triple)?;
    let agent = mizzen::running(&seat.triple)?;
    #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
    let resident = resident_at_rest(&agent, seat)? as f64 / MB;
    let tables = maps::of_agent(&agent, &seat.triple)?;
    let of = |kind: maps::Kind| -> f64 {
        tables.iter().filter(|table| table.kind() == kind).map(|table| table.bytes).sum::<f64>()
    };
    let mut figures = vec![
        Figure::once(MAPS, of(maps::Kind::Services) / 1e6, "MB", "tables of services")
            .at_most(4.0, 0.0),
        Figure::once("maps-bytes-traffic", of(maps::Kind::Traffic) / 1e6, "MB", "tables of flows"),
        Figure::once("maps-bytes-counters", of(maps::Kind::Counters) / 1e6, "MB", "counters"),
        Figure::once(RSS, resident, "MB", "mizzen-agent").at_most(60.0, 0.0),
    ];
    for table in tables.iter().filter(|table| table.bytes >= 1e5) {
        let name = format!("map-{}", table.name);
        figures.push(Figure::once(name, table.bytes / 1e6, "MB", "at 10,000 services x 10"));
    }
    Ok(figures)
}
