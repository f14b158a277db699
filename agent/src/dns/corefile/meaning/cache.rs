//! `cache`: how long answers are kept.

use std::time::Duration;

use super::{CorefileError, Directive, Served, Warning, Word, number, single, unknown, zone};
use crate::dns::{
    cache::{Keeping, Prefetch},
    notation::{self, LONGEST_FAILURE, MAX_TTL},
};

/// How long `serve_stale` without a time means.
const STALE: Duration = Duration::from_hours(1);

pub(super) fn read(
    directive: &Directive,
    served: &Served,
) -> Result<(Keeping, Vec<Warning>), CorefileError> {
    let (most, zones) = match &directive.arguments[..] {
        [first, zones @ ..] if first.text.parse::<u64>().is_ok() => {
            (first.text.parse().ok(), zones)
        }
        zones => (None, zones),
    };
    let mut keeping = notation::keeping(most);
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
            "servfail" => keeping.failure_ttl = duration(single(line)?)?.min(LONGEST_FAILURE),
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
    for word in zones {
        let named = zone::list(std::slice::from_ref(word))?;
        if !named.iter().all(|zone| served.domain.zone_of(zone)) {
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

/// A duration as Go writes it.
pub(super) fn duration(word: &Word) -> Result<Duration, CorefileError> {
    notation::duration(&word.text).map_err(|why| word.error(why))
}
