//! `overload-goodput`, `overload-p99`, `overload-answered`, `overload-rss`: five times as many
//! questions as can be answered.
//!
//! No client on one CPU asks that much, so the server gets a tenth of its CPU.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    compare,
    load::{self, Pace},
    questions,
    seat::Seat,
};
use crate::{
    bench::{
        Figure,
        turns::{self, Summary},
    },
    cluster::{cgroup, process},
    load::Measured,
};

/// Answers in a second, over those at as much load as there is room for.
pub const GOODPUT: &str = "overload-goodput";
/// The latency that one answer of a hundred exceeds.
pub const P99: &str = "overload-p99";
/// Which part of the questions is answered at all.
pub const ANSWERED: &str = "overload-answered";
/// How far the server's resident memory rises meanwhile.
pub const MEMORY: &str = "overload-rss";

/// All of them.
pub const NAMES: [&str; 4] = [GOODPUT, P99, ANSWERED, MEMORY];

const TIMES: f64 = 5.0;
const SECONDS: f64 = 2.0;
/// Of each period a server runs so long, in microseconds.
const QUOTA_US: u32 = 1_000;
const PERIOD_US: u32 = 10_000;

/// What a flood came to beside its answers; of every attempt.
#[derive(Debug, Default)]
struct Floods {
    answered: Vec<f64>,
    risen_mb: Vec<f64>,
}

/// All figures, of the servers that stand first: the reference twice, and Mizzen.
pub fn measure(seats: &[Seat], rounds: u32) -> Result<Vec<Figure>> {
    let data = questions::data(questions::services().map(|(name, _)| name));
    let mut floods: BTreeMap<String, Floods> = BTreeMap::new();
    let taken = turns::quiet(GOODPUT, seats, rounds, goodput_of, |seat| {
        let _leash = Leash::on(&seat.process)?;
        let capacity = load::run(seat, &data, Pace::Saturating, SECONDS)?.rate;
        let memory = Watermark::set(&seat.process)?;
        let pace = Pace::Flood(whole(TIMES * capacity));
        let (flood, answered) = load::ask(seat, &data, pace, SECONDS)?;
        let floods = floods.entry(seat.pair.host.name.clone()).or_default();
        floods.answered.push(answered);
        floods.risen_mb.push(memory.risen_mb()?);
        Ok(Measured { rate: flood.rate / capacity, ..flood })
    })?;
    let mut figures = Vec::new();
    for (at, seat) in seats.iter().enumerate().filter(|(at, _)| *at != turns::REFERENCE + 1) {
        let (goodput, p99) = (taken.plain(at, goodput_of), taken.plain(at, compare::p99_of));
        figures.push(Figure::of(GOODPUT, goodput, "ratio", seat.label, rounds));
        figures.push(Figure::of(P99, p99, "us", seat.label, rounds));
        let Some(floods) = floods.get(&seat.pair.host.name) else { continue };
        let (answered, risen) = (Summary::of(&floods.answered), Summary::of(&floods.risen_mb));
        figures.push(Figure::of(ANSWERED, answered, "ratio", seat.label, rounds));
        figures.push(Figure::of(MEMORY, risen, "MB", seat.label, rounds));
    }
    let contender = format!("{0} / {0}", seats[turns::REFERENCE].label);
    let noise = taken.noise(goodput_of);
    figures.push(Figure::ratio(format!("{GOODPUT}-aa"), noise, contender, rounds));
    Ok(figures)
}

fn goodput_of(measured: &Measured) -> f64 {
    measured.rate
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some ten thousand")]
fn whole(number: f64) -> u32 {
    number as u32
}

/// What a process's resident memory was, and how far it rose since.
struct Watermark {
    pid: i32,
    before: u64,
}

impl Watermark {
    /// Has the kernel forget what it was at most (proc(5), `clear_refs`).
    fn set(process: &process::Started) -> Result<Self> {
        let pid = process.pid;
        write(Path::new(&format!("/proc/{pid}/clear_refs")), "5")?;
        Ok(Self { pid, before: process.resident_bytes()? })
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
    fn risen_mb(&self) -> Result<f64> {
        let most = process::status_bytes(self.pid, "VmHWM")?;
        Ok(most.saturating_sub(self.before) as f64 / 1e6)
    }
}

/// A process that gets little of its CPU, until this is dropped.
struct Leash {
    folder: PathBuf,
    /// Where the process belongs.
    home: PathBuf,
    pid: i32,
}

impl Leash {
    fn on(process: &process::Started) -> Result<Self> {
        // A controller of its own (cgroup v1), else one of cgroup2.
        let apart = Path::new("/sys/fs/cgroup/cpu");
        let name = format!("mizzen-bench-{}", process.pid);
        let (parent, home, limits) = if apart.join("cpu.cfs_quota_us").exists() {
            let limits = vec![
                ("cpu.cfs_period_us", PERIOD_US.to_string()),
                ("cpu.cfs_quota_us", QUOTA_US.to_string()),
            ];
            (apart.to_owned(), apart.to_owned(), limits)
        } else {
            let root = cgroup::mount_point()?;
            write(&root.join("cgroup.subtree_control"), "+cpu")?;
            let own = fs::read_to_string(format!("/proc/{}/cgroup", process.pid))?;
            let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
            let home = root.join(own);
            (root, home, vec![("cpu.max", format!("{QUOTA_US} {PERIOD_US}"))])
        };
        let leash = Self { folder: parent.join(name), home, pid: process.pid };
        cgroup::make(&leash.folder)?;
        for (file, limit) in limits {
            write(&leash.folder.join(file), &limit)?;
        }
        write(&leash.folder.join("cgroup.procs"), &leash.pid.to_string())?;
        Ok(leash)
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        // The process may have ended; an empty folder is all that is left then.
        let _gone = write(&self.home.join("cgroup.procs"), &self.pid.to_string());
        let _left = fs::remove_dir(&self.folder);
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("can't write {text} to {}", path.display()))
}
