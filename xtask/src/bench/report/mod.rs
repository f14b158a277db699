//! `docs/benchmarks.md`: a section for each area, with its plots beside the page. A run of one area
//! replaces its section and leaves those of the others.

mod cni;
mod control_plane;
mod dns;
mod services;

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{Area, Figure, results::Results};
use crate::invoke;

const INTRODUCTION: &str = "# Benchmarks

Written by `cargo xtask bench`, a section an area; do not edit.

Ratios of contenders that take turns in one run, never absolute times of one. The reference takes part twice (A/A): the ratio of the two says how noisy the machine was. Where turns are short, a sample of a round is the mean of several. Ratios are taken within a round; a value is the median over the rounds, the spread half of the distance between the quartiles. A ratio passes when it is no further beyond its bound than the half-spread of A/A.
";

/// An area's part of the page.
#[derive(Debug)]
struct Section {
    title: &'static str,
    /// Markdown, without the title.
    text: String,
    /// By the names of their files below `benchmarks/`.
    plots: Vec<(&'static str, String)>,
}

/// Replaces an area's section of the page in a folder, and its plots; names the page.
pub fn write(area: Area, results: &Results, docs: &Path) -> Result<PathBuf> {
    let machine = machine()?;
    let section = match area {
        Area::Services => services::section(results, &machine),
        Area::Cni => cni::section(results, &machine),
        Area::Dns => dns::section(results, &machine),
        Area::ControlPlane => control_plane::section(results, &machine),
    };
    let folder = docs.join("benchmarks");
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    for (name, svg) in &section.plots {
        let path = folder.join(name);
        fs::write(&path, svg).with_context(|| format!("can't write {}", path.display()))?;
    }
    let path = docs.join("benchmarks.md");
    let page = fs::read_to_string(&path).unwrap_or_default();
    fs::write(&path, with_section(&page, &section))
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
}

/// The page with `section` in the place of the one of its title, all in the order of the areas.
fn with_section(page: &str, section: &Section) -> String {
    let mut parts: Vec<(&str, &str)> = page.split("\n## ").skip(1).filter_map(title_of).collect();
    parts.retain(|(title, _)| *title != section.title);
    parts.push((section.title, &section.text));
    let place = |title: &str| Area::ALL.iter().position(|area| area.title() == title);
    parts.sort_by_key(|(title, _)| place(title).unwrap_or(usize::MAX));
    let mut whole = INTRODUCTION.to_owned();
    for (title, text) in parts {
        // Writing to a String can't fail.
        let _ = write!(whole, "\n## {title}\n\n{}\n", text.trim());
    }
    whole
}

/// A part's title and its text.
fn title_of(part: &str) -> Option<(&str, &str)> {
    part.split_once('\n').map(|(title, text)| (title.trim(), text))
}

/// What must be: the figures with a bar.
fn bars(text: &mut String, figures: &[Figure]) -> std::fmt::Result {
    writeln!(text, "### What must be\n")?;
    writeln!(text, "| figure | contender | value | spread | must be | met |")?;
    writeln!(text, "|---|---|---|---|---|---|")?;
    for figure in figures {
        let (Some(bar), Some(met)) = (figure.bar, figure.is_met()) else { continue };
        let (Figure { name, contender, value, unit, .. }, spread) = (figure, figure.spread_text());
        let unit = if *unit == "ratio" { String::new() } else { format!(" {unit}") };
        let met = if met { "yes" } else { "**no**" };
        writeln!(
            text,
            "| `{name}` | {contender} | {value:.3}{unit} | {spread} | {bar}{unit} | {met} |"
        )?;
    }
    Ok(())
}

/// All figures.
fn all(text: &mut String, figures: &[Figure]) -> std::fmt::Result {
    writeln!(text, "\n### All figures\n")?;
    writeln!(text, "| figure | value | unit | spread | contender | rounds |")?;
    writeln!(text, "|---|---|---|---|---|---|")?;
    for figure in figures {
        let Figure { name, value, unit, contender, rounds, .. } = figure;
        let spread = figure.spread_text();
        writeln!(text, "| `{name}` | {value:.3} | {unit} | {spread} | {contender} | {rounds} |")?;
    }
    Ok(())
}

fn machine() -> Result<String> {
    let kernel = invoke::capture(Command::new("uname").arg("-sr"))?;
    let date = invoke::capture(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, name)| name);
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    Ok(format!("{}, {count} x {model}, {}.", kernel.trim(), date.trim()))
}

#[cfg(test)]
mod tests {
    use super::{super::turns::Summary, *};

    #[test]
    fn a_bar_that_is_missed_says_so() {
        let summary = Summary { value: 0.9, spread: 0.01 };
        let figure = Figure::ratio("socket-rr", summary, "mizzen / direct", 7).at_least(0.99, 0.02);
        let mut text = String::new();
        bars(&mut text, &[figure]).expect("text");
        let row = "| `socket-rr` | mizzen / direct | 0.900 | 0.010 | >= 0.99 | **no** |";
        assert!(text.contains(row), "{text}");
        let once = Figure::once("audit-cpu", 0.6, "% of a core", "mizzen").at_most(1.0, 0.0);
        let mut text = String::new();
        bars(&mut text, &[once]).expect("text");
        assert!(text.contains("| 0.600 % of a core | – | <= 1 % of a core | yes |"), "{text}");
    }

    #[test]
    fn a_run_replaces_its_own_section_and_no_other() {
        let section =
            |title, text: &str| Section { title, text: text.to_owned(), plots: Vec::new() };
        let (services, dns) = (Area::Services.title(), Area::Dns.title());
        let page = with_section("", &section(dns, "one\n\n### Below\n\n| a |"));
        let page = with_section(&page, &section(services, "two"));
        let page = with_section(&page, &section(dns, "three\n\n### Below\n"));
        let expected =
            format!("{INTRODUCTION}\n## {services}\n\ntwo\n\n## {dns}\n\nthree\n\n### Below\n");
        assert_eq!(page, expected);
        assert_eq!(with_section(&page, &section(services, "two")), expected);
    }
}
