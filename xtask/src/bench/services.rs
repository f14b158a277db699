//! `bench services`: which contenders the wanted figures need, and in what order all is measured.

use anyhow::Result;

use super::{
    Area, Figure,
    catalogue::{RULES_MAX, SIZES},
    conntrack,
    contender::{Bare, Rules, Seat},
    deleted,
    kube_proxy::{KUBE_PROXY, KubeProxy},
    mizzen::{self, Mizzen},
    packet, programs,
    results::{Options, Results},
    scale, sockets, takeover, update, whole,
    world::{self, World},
};
use crate::{
    cluster::{Layout, process},
    image::node::SIZE_MAX,
    invoke,
    product::{self, Profile},
    step::step,
};

/// The names of figures that stand alone.
const SINGLE: &[&str] = &[
    packet::NAME,
    conntrack::NAME,
    update::IDLE_RSS,
    update::IDLE_CPU,
    update::CALLS,
    update::AUDIT,
    update::HEAL,
    update::REFUSED,
    deleted::NAME,
    programs::NS,
];
/// The figure of the container image.
const IMAGE: &str = "image-size";
/// The names of the figures that have nothing in common with others.
const APART: &[&str] = &[takeover::NAME, IMAGE];
/// The names of the figures over the number of services.
const SCALE: &[&str] = &["scale-flatness", "vs-nft-connect-rate", "direct-beside-services"];

/// Every name that `--only` can begin with.
pub fn names() -> Vec<&'static str> {
    let groups = [whole::NAMES, SCALE, update::AT_LARGE, SINGLE, APART];
    groups.into_iter().flatten().copied().chain(sockets::names()).collect()
}

/// Measures what is wanted on clusters of its own, and removes them.
pub fn measure(options: &Options) -> Result<Results> {
    let layout = world::layout(options.profile);
    let mut results = Results::of(Area::Services);
    let apart = |name: &&str| whole::NAMES.contains(name) || APART.contains(name);
    if options.wants_any(names().into_iter().filter(|name| !apart(name))) {
        world::within(&layout, |layout| side_by_side(layout, options, &mut results))?;
    }
    if options.wants_any(whole::NAMES.iter().copied()) {
        results.take("the whole product", || world::within(&layout, whole::measure))?;
    }
    if options.wants(takeover::NAME) {
        results.take(takeover::NAME, || world::within(&layout, takeover::measure))?;
    }
    if options.wants(IMAGE) {
        results.take(IMAGE, || image(options.profile))?;
    }
    Ok(results)
}

/// How large the container image is, compressed as it is stored and sent.
fn image(profile: Profile) -> Result<Vec<Figure>> {
    const MB: f64 = 1e6;
    let octets = |size: u64| f64::from(u32::try_from(size).unwrap_or(u32::MAX));
    let size = octets(product::build_node_image(profile)?.size) / MB;
    let most = octets(SIZE_MAX) / MB;
    Ok(vec![Figure::once(IMAGE, size, "MB", "OCI layout, compressed").at_most(most, 0.0)])
}

/// Everything that contenders compete in.
fn side_by_side(layout: &Layout, options: &Options, results: &mut Results) -> Result<()> {
    let mut world = step("starting the API server", || World::start(layout))?;
    let seats = seat(&mut world, options, results)?;
    let at = |size: u32| -> Vec<Seat> {
        seats.iter().filter(|seat| seat.size == 0 || seat.size == size).cloned().collect()
    };
    let rounds = options.rounds;
    if options.wants_any(sockets::names()) {
        let wanted = |name: &str| options.wants(name);
        results.take("socket-*", || sockets::measure(&at(sockets::SIZE), rounds, wanted))?;
    }
    if options.wants_any(SCALE.iter().copied()) {
        let mut points = Vec::new();
        results.take("connections over the number of services", || {
            let (figures, curve) = scale::measure(&seats, rounds)?;
            points = curve;
            Ok(figures)
        })?;
        results.points = points;
    }
    if options.wants(packet::NAME) {
        results.take(packet::NAME, || packet::measure(&world.layout, &at(packet::SIZE), rounds))?;
    }
    if options.wants(conntrack::NAME) {
        results.take(conntrack::NAME, || conntrack::measure(&at(conntrack::SIZE)))?;
    }
    Ok(())
}

/// Brings services and contenders to their places, smallest size first: an agent serves as many
/// services as there are when it is asked. What one agent does as services come and change is
/// measured on the way.
fn seat(world: &mut World, options: &Options, results: &mut Results) -> Result<Vec<Seat>> {
    let all = options.wants_any(SCALE.iter().copied());
    let compared = all
        || options.wants_any(sockets::names())
        || options.wants(packet::NAME)
        || options.wants(conntrack::NAME);
    let calls = options.wants(update::CALLS);
    let large = options.wants_any(update::AT_LARGE.iter().copied());
    let largest = options.wants_any([update::AUDIT, update::HEAL, update::REFUSED, deleted::NAME]);
    let programs = options.wants(programs::NS);
    let idle = options.wants_any([update::IDLE_RSS, update::IDLE_CPU]);
    let contends = |size: u32| all && SIZES.contains(&size) || compared && size == sockets::SIZE;
    let changes = |size: u32| {
        calls && update::SIZES.contains(&size)
            || large && size == update::LARGE
            || largest && size == update::LARGEST
    };

    let mut seats = vec![world.seat(&Bare, 0)?, world.seat(&Bare, 0)?];
    let mut live = None;
    if calls || large || largest || programs || idle {
        let seat = world.seat(&Mizzen { live: true }, 0)?;
        if idle {
            results.take("an agent with nothing to do", || update::idle(&seat))?;
        }
        live = Some(seat);
    }
    let mut sizes: Vec<u32> = SIZES.into_iter().chain(update::SIZES).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for size in sizes.into_iter().filter(|size| contends(*size) || changes(*size)) {
        step(&format!("{size} services"), || {
            world.grow(size)?;
            if contends(size) {
                seats.extend(contenders(world, size)?);
            }
            Ok(())
        })?;
        if let Some(live) = live.as_ref().filter(|_| changes(size)) {
            let group = format!("changes at {size} services");
            results.take(&group, || of_changes(world, live, options, size))?;
        }
    }
    if let Some(live) = live.filter(|_| programs) {
        results.take(programs::NS, || programs::measure(world, &live, options.rounds))?;
        process::end(&mizzen::running(&live.triple)?)?;
    }
    Ok(seats)
}

/// Those that are compared at a size.
fn contenders(world: &mut World, size: u32) -> Result<Vec<Seat>> {
    let mut seats = vec![world.seat(&Mizzen { live: false }, size)?];
    if size <= RULES_MAX {
        seats.push(world.seat(&Rules::Nft, size)?);
        seats.push(world.seat(&Rules::Iptables, size)?);
        if invoke::in_path(KUBE_PROXY) {
            seats.push(world.seat(&KubeProxy, size)?);
        }
    }
    Ok(seats)
}

fn of_changes(world: &World, live: &Seat, options: &Options, size: u32) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    mizzen::follow(&live.triple, size)?;
    if options.wants(update::CALLS) && update::SIZES.contains(&size) {
        figures.extend(update::calls(world, live)?);
    }
    if options.wants(update::AUDIT) && size == update::LARGEST {
        figures.extend(update::audit(world, live)?);
    }
    if options.wants(update::REFUSED) && size == update::LARGEST {
        figures.extend(update::refused(world, live)?);
    }
    if options.wants(deleted::NAME) && size == update::LARGEST {
        figures.extend(deleted::measure(world, live)?);
    }
    if options.wants(update::HEAL) && size == update::LARGEST {
        figures.extend(update::heal(world, live)?);
    }
    if size == update::LARGE {
        let wanted = |name: &str| options.wants(name);
        figures.extend(update::large(world, live, options.rounds, wanted)?);
    }
    Ok(figures)
}
