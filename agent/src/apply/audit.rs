//! Whether the tables still hold what this agent wrote. Each element is compared where it is, with
//! no copy of the whole, so that it can be done every few seconds. Nothing is mended here: what
//! differs calls for a dump and a plan, like any other doubt.

use std::collections::BTreeMap;

use mizzen_ebpf_abi::maps;

use super::maps::{Growing, Maps, MapsError};
use crate::diff::{Known, known::BackendRecord};

/// How many elements differ from what they should be, by map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deviations(BTreeMap<&'static str, u64>);

impl Deviations {
    /// Whether everything is as it should be.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The maps, and how many elements of each differ.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(map, count)| (*map, *count))
    }

    fn add(&mut self, map: &'static str, count: usize) {
        if count > 0 {
            *self.0.entry(map).or_default() += count as u64;
        }
    }
}

/// Compares the tables with what is known of them. What is freed is not looked at: nothing leads
/// to it.
pub fn audit(known: &Known, maps: &mut dyn Maps) -> Result<Deviations, MapsError> {
    let mut found = Deviations::default();
    found.add(maps::FRONTENDS, frontends(known, maps)?);
    let words = known.words().filter(|(set, word)| maps.word(*set) != *word);
    found.add(maps::SETS, words.count());
    let mut held = Vec::new();
    let ranges = known.ranges().filter(|(offset, words)| {
        held.resize(words.len(), 0);
        maps.read_slots(*offset, &mut held);
        held != *words
    });
    found.add(maps::SLOTS, ranges.count());
    for (id, record) in known.backends() {
        let (table, same) = match record {
            BackendRecord::V4(record) => (Growing::Backends4, maps.backend4(id) == record),
            BackendRecord::V6(record) => (Growing::Backends6, maps.backend6(id) == record),
        };
        found.add(table.name(), usize::from(!same));
    }
    found.add(maps::SOURCE_RANGES, source_ranges(known, maps)?);
    node(known, maps, &mut found)?;
    Ok(found)
}

/// How many frontends are missing, altered, or nobody's.
fn frontends(known: &Known, maps: &mut dyn Maps) -> Result<usize, MapsError> {
    let expected = known.frontends();
    let (mut met, mut differing) = (0, 0);
    maps.visit_frontends(&mut |key, value| {
        let held = expected.get(key);
        met += usize::from(held.is_some());
        differing += usize::from(held != Some(value));
    })?;
    Ok(differing + expected.len().saturating_sub(met))
}

/// How many source ranges are missing, or nobody's.
fn source_ranges(known: &Known, maps: &mut dyn Maps) -> Result<usize, MapsError> {
    let expected = known.source_ranges();
    let (mut met, mut strange) = (0, 0);
    maps.visit_source_ranges(&mut |range| {
        *(if expected.contains(range) { &mut met } else { &mut strange }) += 1;
    })?;
    Ok(strange + expected.len().saturating_sub(met))
}

fn node(known: &Known, maps: &mut dyn Maps, found: &mut Deviations) -> Result<(), MapsError> {
    let (expected, held) = (known.node(), maps.node_tables()?);
    found.add(maps::NODE_ADDRS, differences(&expected.addrs, &held.addrs));
    let ranges = differences(&expected.cluster_ranges, &held.cluster_ranges);
    found.add(maps::CLUSTER_RANGES, ranges);
    found.add(maps::NODE_CONFIG, usize::from(expected.config != held.config));
    Ok(())
}

/// How many entries are in one of them alone, or differ.
fn differences<K: Ord, V: PartialEq>(expected: &BTreeMap<K, V>, held: &BTreeMap<K, V>) -> usize {
    let lacking = expected.iter().filter(|(key, value)| held.get(key) != Some(value)).count();
    lacking + held.keys().filter(|key| !expected.contains_key(key)).count()
}
