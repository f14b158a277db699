//! `cache`: how long answers are kept.

use std::time::Duration;

use super::{CorefileError, Directive, Served, Warning, Word, number, single, unknown, zone};
use crate::dns::cache::{Keeping, Prefetch};

/// The longest and the shortest that CoreDNS keeps an answer where nothing else is said, in seconds.
const MAX_TTL: u64 = 3600;
const MAX_NEGATIVE_TTL: u64 = 1800;
const MIN_TTL: u64 = 5;
/// How long `serve_stale` without a time means.
const STALE: Duration = Duration::from_hours(1);

pub(super) fn read(
    directive: &Directive,
    served: &Served,
) -> Result<(Keeping, Vec<Warning>), CorefileError> {
    let seconds = Duration::from_secs;
    let mut keeping = Keeping {
        ttl: (seconds(MIN_TTL), seconds(MAX_TTL)),
        negative_ttl: (seconds(MIN_TTL), seconds(MAX_NEGATIVE_TTL)),
        ..Keeping::default()
    };
    let mut zones = &directive.arguments[..];
    if let [first, rest @ ..] = zones
        && let Ok(most) = first.text.parse()
    {
        zones = rest;
        keeping.ttl.1 = seconds(u64::min(most, MAX_TTL));
        keeping.negative_ttl.1 = seconds(u64::min(most, MAX_NEGATIVE_TTL));
    }
    if let Some(zone) = zones.first() {
        return Err(zone.error("zones of a cache are not supported; give them a server block"));
    }
    let mut warnings = Vec::new();
    for line in &directive.body {
        match &*line.name.text {
            "success" => capacity(line, &mut keeping.ttl)?,
            "denial" => capacity(line, &mut keeping.negative_ttl)?,
            "prefetch" => keeping.prefetch = prefetch(line)?,
            "serve_stale" => {
                keeping.stale = line.arguments.first().map_or(Ok(STALE), duration)?;
                if line.arguments.iter().skip(1).any(|word| word.text == "immediate") {
                    let what = "serve_stale immediate: upstreams have 1.8 s to answer first".into();
                    warnings.push(Warning { at: line.name.at.clone(), what });
                }
            }
            "servfail" => keeping.failure_ttl = duration(single(line)?)?.min(seconds(300)),
            "disable" => disable(line, served, &mut keeping)?,
            _ => return Err(unknown(line, directive)),
        }
    }
    for (least, most) in [&mut keeping.ttl, &mut keeping.negative_ttl] {
        *least = (*least).min(*most);
    }
    Ok((keeping, warnings))
}

/// `disable success|denial [ZONES]`. Names of the cluster are never kept, so to say it of these
/// says nothing.
fn disable(line: &Directive, served: &Served, keeping: &mut Keeping) -> Result<(), CorefileError> {
    let [what, zones @ ..] = &line.arguments[..] else {
        return Err(line.name.error("disable names success or denial"));
    };
    let ttl = match &*what.text {
        "success" => &mut keeping.ttl,
        "denial" => &mut keeping.negative_ttl,
        _ => return Err(what.error("disable names success or denial")),
    };
    if zones.is_empty() {
        *ttl = Keeping::NOTHING.ttl;
    }
    for (zone, word) in zone::list(zones)?.iter().zip(zones) {
        if !served.domain.zone_of(zone) {
            return Err(word.error("zones of a cache are not supported; give them a server block"));
        }
    }
    Ok(())
}

/// `success` and `denial`: a number of entries, which is not ours to count, and times.
fn capacity(line: &Directive, ttl: &mut (Duration, Duration)) -> Result<(), CorefileError> {
    let [entries, times @ ..] = &line.arguments[..] else {
        return Err(line.name.error(format!("{:?} has a capacity", line.name.text)));
    };
    number(entries, 0, u64::MAX)?;
    if let Some(most) = times.first() {
        ttl.1 = Duration::from_secs(number(most, 0, MAX_TTL)?);
    }
    if let Some(least) = times.get(1) {
        ttl.0 = Duration::from_secs(number(least, 0, MAX_TTL)?);
    }
    Ok(())
}

/// `prefetch AMOUNT [DURATION] [PERCENTAGE%]`.
fn prefetch(line: &Directive) -> Result<Option<Prefetch>, CorefileError> {
    let [hits, rest @ ..] = &line.arguments[..] else {
        return Err(line.name.error("prefetch has a number of requests"));
    };
    let hits = u32::try_from(number(hits, 0, 1 << 30)?).unwrap_or(u32::MAX);
    let mut prefetch = Prefetch { hits, pause: Duration::from_mins(1), percent: 10 };
    for word in rest {
        match word.text.strip_suffix('%') {
            Some(percent) => {
                let percent = Word { text: percent.to_owned(), ..word.clone() };
                prefetch.percent = u8::try_from(number(&percent, 10, 90)?).unwrap_or(10);
            }
            None => prefetch.pause = duration(word)?,
        }
    }
    Ok((hits > 0).then_some(prefetch))
}

/// A duration as Go writes it: numbers with units, such as `1m30s`; 0 needs none.
pub(super) fn duration(word: &Word) -> Result<Duration, CorefileError> {
    let why = || word.error(format!("{:?} is no duration such as 30s, 1m30s or 1h", word.text));
    if word.text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut whole = Duration::ZERO;
    let mut rest = &*word.text;
    while !rest.is_empty() {
        let digits = rest.find(|next: char| !next.is_ascii_digit()).ok_or_else(why)?;
        let (count, behind) = rest.split_at(digits);
        let letters = behind.find(|next: char| next.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let count: u32 = count.parse().map_err(|_| why())?;
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return Err(why()),
        };
        whole = unit.checked_mul(count).and_then(|part| whole.checked_add(part)).ok_or_else(why)?;
        rest = behind;
    }
    // Times far beyond any use would not fit in a clock.
    if word.text.is_empty() || whole > Duration::from_hours(24 * 365) {
        Err(why())
    } else {
        Ok(whole)
    }
}
