//! The octets of a table (`linux/netfilter/x_tables.h`, `linux/netfilter_ipv4/ip_tables.h`,
//! `linux/netfilter_ipv6/ip6_tables.h`), in the machine's byte order. Pure.
//!
//! An entry is what a packet is compared with, more of that from modules, and a target. A target
//! without a name decides or leads to another entry, by its offset; a chain begins with an entry whose
//! target is `ERROR`, and so the table ends.

use super::Table;
use crate::netfilter::Family;

/// `enum nf_inet_hooks`.
pub(super) const HOOKS: usize = 5;
/// The chains that the kernel enters, by hook.
pub(super) const BUILT_IN: [&str; HOOKS] =
    ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Options of both families' sockets; those that set and those that get are numbered apart.
pub(super) const GET_INFO: i32 = 64;
pub(super) const GET_ENTRIES: i32 = 65;

/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// `struct ipt_getinfo`: the name, and numbers of 32 bits.
const INFO: usize = NAME + 4 + 2 * 4 * HOOKS + 8;
const VALID_HOOKS_AT: usize = NAME;
const HOOK_ENTRY_AT: usize = VALID_HOOKS_AT + 4;
const UNDERFLOW_AT: usize = HOOK_ENTRY_AT + 4 * HOOKS;
const COUNT_AT: usize = UNDERFLOW_AT + 4 * HOOKS;
const SIZE_AT: usize = COUNT_AT + 4;
/// `struct ipt_get_entries` without entries, which are aligned to 8.
const ENTRIES: usize = NAME + 8;
/// `struct ipt_replace` without entries; where the number of counters is, which a pointer to them
/// follows.
const REPLACE: usize = 96;
const REPLACE_COUNT_AT: usize = NAME + 4;
const REPLACE_SIZE_AT: usize = NAME + 8;
const REPLACE_HOOK_ENTRY_AT: usize = NAME + 12;
const REPLACE_UNDERFLOW_AT: usize = REPLACE_HOOK_ENTRY_AT + 4 * HOOKS;
/// `struct xt_counters_info` without counters.
const COUNTERS_INFO: usize = NAME + 8;
/// `struct xt_counters`: packets and octets.
const COUNTERS: usize = 16;
/// `struct xt_entry_target` without data, and where its name is, with a length.
const TARGET: usize = 32;
const TARGET_NAME_AT: usize = 2;
const TARGET_NAME: usize = 29;
/// Verdict that drops: `-NF_DROP - 1`.
const DROP: i32 = -1;

/// Where fields of an entry are that come behind what is the family's own.
struct Fields {
    target_offset: usize,
    next_offset: usize,
    come_from: usize,
    counters: usize,
    size: usize,
}

/// `struct ipt_entry` and `struct ip6t_entry`.
const fn fields(family: Family) -> Fields {
    match family {
        Family::Ipv4 => {
            Fields { target_offset: 88, next_offset: 90, come_from: 92, counters: 96, size: 112 }
        }
        Family::Ipv6 => Fields {
            target_offset: 140,
            next_offset: 142,
            come_from: 144,
            counters: 152,
            size: 168,
        },
    }
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its place in the table that was read.
    pub(super) nth: usize,
    /// Its octets, without what was counted.
    pub(super) octets: Vec<u8>,
    pub(super) target: Target,
}

/// What becomes of a packet, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// It goes on at the entry in this place.
    Jump(usize),
    /// It goes on at the next entry.
    Next,
    /// It is dropped.
    Drop,
    /// None comes here: a chain of this name begins, or the table ends.
    Head(String),
    /// Something else.
    Other,
}

fn named(name: &str, length: usize) -> Vec<u8> {
    let mut octets = vec![0; length];
    for (to, from) in octets.iter_mut().take(NAME - 1).zip(name.bytes()) {
        *to = from;
    }
    octets
}

fn word(octets: &[u8], at: usize) -> Option<usize> {
    let word = u32::from_ne_bytes(*octets.get(at..)?.first_chunk()?);
    usize::try_from(word).ok()
}

fn short(octets: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_ne_bytes(*octets.get(at..)?.first_chunk()?)))
}

fn put(octets: &mut [u8], at: usize, value: usize) {
    let value = u32::try_from(value).unwrap_or(u32::MAX).to_ne_bytes();
    octets[at..at + 4].copy_from_slice(&value);
}

/// What asks for a table's numbers, and has room for them.
pub(super) fn info_request(name: &str) -> Vec<u8> {
    named(name, INFO)
}

/// The octets of all entries, in an answer.
pub(super) fn size_in(info: &[u8]) -> usize {
    word(info, SIZE_AT).unwrap_or_default()
}

/// What asks for entries of so many octets, and has room for them.
pub(super) fn entries_request(name: &str, size: usize) -> Vec<u8> {
    let mut octets = named(name, ENTRIES + size);
    put(&mut octets, NAME, size);
    octets
}

/// The table in both answers, or what is wrong with them.
pub(super) fn table(
    family: Family,
    name: &str,
    info: &[u8],
    entries: &[u8],
) -> Result<Table, &'static str> {
    let octets = entries.get(ENTRIES..).ok_or("it is cut off")?;
    let (mut offsets, mut pieces, mut at) = (Vec::new(), Vec::new(), 0);
    while at < octets.len() {
        let fields = fields(family);
        let length = short(&octets[at..], fields.next_offset).ok_or("an entry is cut off")?;
        let piece = octets.get(at..at + length).ok_or("an entry is cut off")?;
        if length < fields.size + TARGET {
            return Err("an entry is too short");
        }
        offsets.push(at);
        pieces.push(piece);
        at += length;
    }
    if Some(pieces.len()) != word(info, COUNT_AT) {
        return Err("it has another number of entries than it says");
    }
    let place = |offset: usize| offsets.binary_search(&offset).ok();
    let mut found = Vec::with_capacity(pieces.len());
    for (nth, piece) in pieces.into_iter().enumerate() {
        let end = offsets[nth] + piece.len();
        let target = target(family, piece, end, place)?;
        found.push(Entry { nth, octets: without_counters(family, piece), target });
    }
    let valid_hooks = word(info, VALID_HOOKS_AT).ok_or("it is cut off")?;
    let mut hooks = [None; HOOKS];
    for (nth, hook) in hooks.iter_mut().enumerate().filter(|(nth, _)| valid_hooks >> nth & 1 == 1) {
        let at = |field: usize| place(word(info, field + 4 * nth)?);
        let ends = at(HOOK_ENTRY_AT).zip(at(UNDERFLOW_AT)).filter(|(first, end)| first <= end);
        *hook = Some(ends.ok_or("a chain of the kernel's begins at no entry")?);
    }
    let valid_hooks = u32::try_from(valid_hooks).unwrap_or_default();
    Ok(Table { family, name: name.to_owned(), valid_hooks, entries: found, hooks })
}

/// What the kernel counts, and what it notes for itself.
fn without_counters(family: Family, piece: &[u8]) -> Vec<u8> {
    let Fields { come_from, counters, .. } = fields(family);
    let mut octets = piece.to_vec();
    octets[come_from..come_from + 4].fill(0);
    octets[counters..counters + COUNTERS].fill(0);
    octets
}

/// The target of the entry that ends at this offset.
fn target(
    family: Family,
    piece: &[u8],
    end: usize,
    place: impl Fn(usize) -> Option<usize>,
) -> Result<Target, &'static str> {
    let octets = target_of(family, piece).ok_or("a target is cut off")?;
    let name = text(octets.get(TARGET_NAME_AT..TARGET_NAME_AT + TARGET_NAME).unwrap_or_default());
    match &*name {
        "ERROR" => Ok(Target::Head(text(&octets[TARGET..]))),
        "" => {
            let verdict = octets.get(TARGET..).and_then(<[u8]>::first_chunk);
            let verdict = i32::from_ne_bytes(*verdict.ok_or("a verdict is cut off")?);
            match usize::try_from(verdict) {
                Ok(to) if to == end => Ok(Target::Next),
                Ok(to) => Ok(Target::Jump(place(to).ok_or("a rule leads to no entry")?)),
                Err(_) if verdict == DROP => Ok(Target::Drop),
                Err(_) => Ok(Target::Other),
            }
        }
        _ => Ok(Target::Other),
    }
}

fn target_of(family: Family, piece: &[u8]) -> Option<&[u8]> {
    piece.get(short(piece, fields(family).target_offset)?..).filter(|octets| octets.len() > TARGET)
}

/// As far as a zero.
fn text(octets: &[u8]) -> String {
    let octets = octets.split(|octet| *octet == 0).next().unwrap_or_default();
    String::from_utf8_lossy(octets).into_owned()
}

/// What puts a table in the place of the one that is there, but for where the kernel is to write what
/// that counted.
pub(super) fn replacement(table: &Table) -> Vec<u8> {
    let mut offsets = Vec::with_capacity(table.entries.len());
    let mut size = 0;
    for entry in &table.entries {
        offsets.push(size);
        size += entry.octets.len();
    }
    let mut octets = named(&table.name, REPLACE);
    put(&mut octets, VALID_HOOKS_AT, table.valid_hooks as usize);
    put(&mut octets, REPLACE_COUNT_AT, table.entries.len());
    put(&mut octets, REPLACE_SIZE_AT, size);
    for (nth, hook) in table.hooks.iter().enumerate() {
        let Some((first, end)) = *hook else { continue };
        put(&mut octets, REPLACE_HOOK_ENTRY_AT + 4 * nth, offsets[first]);
        put(&mut octets, REPLACE_UNDERFLOW_AT + 4 * nth, offsets[end]);
    }
    for (entry, offset) in table.entries.iter().zip(&offsets) {
        let begin = octets.len();
        octets.extend(&entry.octets);
        let verdict = match entry.target {
            Target::Jump(to) => offsets[to],
            Target::Next => offset + entry.octets.len(),
            _ => continue,
        };
        let at = short(&entry.octets, fields(table.family).target_offset).unwrap_or_default();
        put(&mut octets, begin + at + TARGET, verdict);
    }
    octets
}

/// What adds to a table what its entries counted before, of which the kernel said all.
pub(super) fn counters(table: &Table, counted: &[u8]) -> Vec<u8> {
    let mut octets = named(&table.name, COUNTERS_INFO);
    put(&mut octets, NAME, table.entries.len());
    for entry in &table.entries {
        let at = entry.nth * COUNTERS;
        octets.extend(counted.get(at..at + COUNTERS).unwrap_or(&[0; COUNTERS]));
    }
    octets
}
