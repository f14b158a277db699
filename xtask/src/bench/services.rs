//! `bench services`: which contenders the wanted figures need, and in what order all is measured.

use anyhow::Result;

use super::{
    Figure,
    catalogue::{RULES_MAX, SIZES},
    contender::{Bare, Rules, Seat},
    mizzen::Mizzen,
    scale::{self, Point},
    sockets, whole,
    world::{self, World},
};
use crate::{cluster::Layout, product::Profile, step::step};

/// The names of the figures over the number of services.
const SCALE: &[&str] = &["scale-flatness", "vs-nft-connect-rate", "direct-beside-services"];

/// What is to be measured, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often contenders take turns.
    pub rounds: u32,
    /// Names of figures, or how they begin; empty: all.
    pub only: Vec<String>,
    /// Which build of the product.
    pub profile: Profile,
}

/// What a run gave.
#[derive(Debug, Default)]
pub struct Results {
    /// The figures.
    pub figures: Vec<Figure>,
    /// Latency of connections over the number of services.
    pub points: Vec<Point>,
}

impl Options {
    /// Whether a figure is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only.as_str()))
    }

    fn wants_any<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> bool {
        names.into_iter().any(|name| self.wants(name))
    }
}

/// Every name that `--only` can begin with.
pub fn names() -> Vec<&'static str> {
    whole::NAMES.iter().chain(SCALE).copied().chain(sockets::names()).collect()
}

/// Measures what is wanted on clusters of its own, and removes them.
pub fn measure(options: &Options) -> Result<Results> {
    let layout = world::layout(options.profile);
    let mut results = Results::default();
    if options.wants_any(whole::NAMES.iter().copied()) {
        results.figures.extend(world::within(&layout, whole::measure)?);
    }
    if options.wants_any(names().into_iter().filter(|name| !whole::NAMES.contains(name))) {
        world::within(&layout, |layout| side_by_side(layout, options, &mut results))?;
    }
    Ok(results)
}

/// Everything that contenders compete in.
fn side_by_side(layout: &Layout, options: &Options, results: &mut Results) -> Result<()> {
    let mut world = step("starting the API server", || World::start(layout))?;
    let seats = step("seating the contenders", || seat(&mut world, options))?;
    let wanted = |name: &str| options.wants(name);
    let at = |size: u32| -> Vec<Seat> {
        seats.iter().filter(|seat| seat.size == 0 || seat.size == size).cloned().collect()
    };
    if options.wants_any(sockets::names()) {
        let figures =
            step("socket-*", || sockets::measure(&at(sockets::SIZE), options.rounds, wanted))?;
        results.figures.extend(figures);
    }
    if options.wants_any(SCALE.iter().copied()) {
        let (figures, points) = step("connections over the number of services", || {
            scale::measure(&seats, options.rounds)
        })?;
        results.figures.extend(figures);
        results.points = points;
    }
    Ok(())
}

/// Brings services and contenders to their places, smallest size first: an agent serves as many
/// services as there are when it is asked.
fn seat(world: &mut World, options: &Options) -> Result<Vec<Seat>> {
    let mut seats = vec![world.seat(&Bare, 0)?, world.seat(&Bare, 0)?];
    let all = options.wants_any(SCALE.iter().copied());
    for size in SIZES.into_iter().filter(|size| all || *size == sockets::SIZE) {
        step(&format!("{size} services"), || {
            world.grow(size)?;
            seats.push(world.seat(&Mizzen { live: false }, size)?);
            if size <= RULES_MAX {
                seats.push(world.seat(&Rules::Nft, size)?);
                seats.push(world.seat(&Rules::Iptables, size)?);
            }
            Ok(())
        })?;
    }
    Ok(seats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_chosen_by_how_they_begin() {
        let options = |only: &[&str]| Options {
            rounds: 1,
            only: only.iter().map(|&name| name.to_owned()).collect(),
            profile: Profile::Release,
        };
        assert!(names().into_iter().all(|name| options(&[]).wants(name)));
        assert!(options(&["socket-"]).wants("socket-rr"));
        assert!(!options(&["socket-rr"]).wants("socket-throughput"));
    }
}
