//! `search-storm-packets`, `search-storm-throughput`: names outside, as pods ask for them: with
//! every domain of their search path first.

use anyhow::{Result, ensure};

use super::{
    check,
    load::{self, Pace},
    questions,
    seat::{MIZZEN, Seat},
};
use crate::{
    bench::{Figure, turns},
    load::Measured,
};

/// Packets for each name that is found.
pub const PACKETS: &str = "search-storm-packets";
/// Names that are found in a second.
pub const THROUGHPUT: &str = "search-storm-throughput";

const SECONDS: f64 = 1.5;

/// What a client asks of a server until it has found every name.
#[derive(Debug)]
struct Storm<'a> {
    seat: &'a Seat,
    questions: Vec<String>,
}

/// Both figures. The reference stands first, twice.
pub fn measure(seats: &[Seat], rounds: u32) -> Result<Vec<Figure>> {
    let storms: Vec<Storm<'_>> = seats.iter().map(storm).collect::<Result<_>>()?;
    let taken = turns::quiet(THROUGHPUT, &storms, rounds, rate_of, |storm| {
        // The upstream's answers are kept for some time, and then are asked for anew.
        load::run(storm.seat, &storm.data(), Pace::Once, 0.0)?;
        storm.run(Pace::Saturating)
    })?;
    let packets: Vec<f64> = storms.iter().map(Storm::packets).collect::<Result<_>>()?;
    let noise = taken.noise(rate_of).spread;
    let reference = storms[turns::REFERENCE].seat.label;
    let mut figures = Vec::new();
    for (at, storm) in storms.iter().enumerate().skip(turns::REFERENCE + 2) {
        let (label, ours) = (storm.seat.label, storm.seat.label == MIZZEN);
        let contender = format!("{label} / {reference}");
        let fewer = packets[at] / packets[turns::REFERENCE];
        let packets = Figure::once(PACKETS, fewer, "ratio", contender.clone());
        let ratio = taken.to_reference(at, rate_of);
        let rate = Figure::ratio(THROUGHPUT, ratio, contender, rounds);
        figures.push(if ours { packets.at_most(0.333, 0.0) } else { packets });
        figures.push(if ours { rate.at_least(3.0, noise) } else { rate });
    }
    let contender = format!("{reference} / {reference}");
    let noise = taken.noise(rate_of);
    figures.push(Figure::ratio(format!("{THROUGHPUT}-aa"), noise, contender, rounds));
    for (at, storm) in storms.iter().enumerate().filter(|(at, _)| *at != turns::REFERENCE + 1) {
        let label = storm.seat.label;
        figures.push(Figure::once("search-storm-packets-per-name", packets[at], "packets", label));
        let rate = taken.plain(at, rate_of);
        figures.push(Figure::of("search-storm-names", rate, "1/s", label, rounds));
        let cpu = taken.plain(at, |measured| measured.cpu_us);
        figures.push(Figure::of("search-storm-cpu-per-name", cpu, "us", label, rounds));
    }
    Ok(figures)
}

fn rate_of(measured: &Measured) -> f64 {
    measured.rate
}

/// Walks the search path of every name as a client does.
fn storm(seat: &Seat) -> Result<Storm<'_>> {
    let all = (0..questions::FOREIGN).map(questions::foreign);
    let paths: Vec<Vec<String>> = all.map(|name| questions::search_path(&name)).collect();
    let said = check::ask(seat, "A", paths.iter().flatten().cloned())?;
    let address = questions::FOREIGN_ADDRESS.to_string();
    let mut asked = Vec::new();
    for path in paths {
        let hit = path.iter().position(|name| {
            said.get(name).is_some_and(|(code, found)| code == "NOERROR" && !found.is_empty())
        });
        let hit = hit.filter(|at| said[&path[*at]].1.contains(&address));
        ensure!(hit.is_some(), "{} finds no address by the path {path:?}", seat.label);
        asked.extend(path.into_iter().take(hit.unwrap_or(0) + 1));
    }
    Ok(Storm { seat, questions: asked })
}

impl Storm<'_> {
    fn data(&self) -> String {
        questions::data(self.questions.iter().cloned())
    }

    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    fn questions_per_name(&self) -> f64 {
        self.questions.len() as f64 / f64::from(questions::FOREIGN)
    }

    /// In names instead of questions.
    fn run(&self, pace: Pace) -> Result<Measured> {
        let each = self.questions_per_name();
        let measured = load::run(self.seat, &self.data(), pace, SECONDS)?;
        let (rate, cpu_us) = (measured.rate / each, measured.cpu_us * each);
        Ok(Measured { rate, cpu_us, ..measured })
    }

    /// Packets of one time all names, counted at the link.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    fn packets(&self) -> Result<f64> {
        self.run(Pace::Once)?;
        let before = self.seat.pair.packets()?;
        self.run(Pace::Once)?;
        let packets = self.seat.pair.packets()? - before;
        Ok(packets as f64 / f64::from(questions::FOREIGN))
    }
}
