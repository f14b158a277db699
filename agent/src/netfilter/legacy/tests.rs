//! Tables as the kernel gives them, written by hand from its headers.

use super::{
    layout::{info_request, replacement, table},
    *,
};

const DROP: i32 = -1;
const ACCEPT: i32 = -2;
const RETURN: i32 = -5;

/// Length of an entry without target, and where the fields are that are looked at.
fn head(family: Family) -> (usize, usize, usize) {
    match family {
        Family::Ipv4 => (112, 88, 90),
        Family::Ipv6 => (168, 140, 142),
    }
}

/// An entry of `iptables`, with so many octets of a module.
fn entry(family: Family, module: usize, name: &str, data: &[u8], counted: u8) -> Vec<u8> {
    let (length, target_at, next_at) = head(family);
    let mut octets = vec![0; length + module + 32];
    octets[length - 16] = counted;
    octets[length..length + module].fill(0xaa);
    let at = length + module;
    octets[at + 2..at + 2 + name.len()].copy_from_slice(name.as_bytes());
    octets.extend(data);
    octets.resize(octets.len().next_multiple_of(8), 0);
    let short = |value: usize| u16::try_from(value).unwrap().to_ne_bytes();
    let (size, whole) = (octets.len() - at, octets.len());
    octets[at..at + 2].copy_from_slice(&short(size));
    octets[target_at..target_at + 2].copy_from_slice(&short(at));
    octets[next_at..next_at + 2].copy_from_slice(&short(whole));
    octets
}

/// What a line of the table below stands for.
enum Line {
    Verdict(i32),
    /// To the first entry of the chain of this name.
    To(&'static str),
    /// To what comes behind.
    Next,
    Chain(&'static str),
    /// A target with a name.
    Does(&'static str),
}

/// The table `nat` of these lines: PREROUTING's are the first `first`, of which the last is the
/// policy, and POSTROUTING's the next two.
fn nat(family: Family, lines: &[Line], first: usize) -> (Vec<u8>, Vec<u8>) {
    let module = |nth: usize| if nth % 2 == 1 { 40 } else { 0 };
    let octets = |nth: usize, line: &Line, verdict: i32| match line {
        Line::Chain(name) => {
            let mut named = [0; 32];
            named[..name.len()].copy_from_slice(name.as_bytes());
            entry(family, 0, "ERROR", &named, 0)
        }
        Line::Does(name) => entry(family, module(nth), name, &[7; 24], 3),
        _ => entry(family, module(nth), "", &verdict.to_ne_bytes(), 5),
    };
    let mut offsets = vec![0];
    for (nth, line) in lines.iter().enumerate() {
        offsets.push(offsets[nth] + octets(nth, line, 0).len());
    }
    let named = |wanted: &str| {
        let is = |line: &Line| matches!(line, Line::Chain(name) if *name == wanted);
        offsets[lines.iter().position(is).unwrap() + 1]
    };
    let number = |value: usize| u32::try_from(value).unwrap().to_ne_bytes();
    let mut entries = vec![0; 40];
    for (nth, line) in lines.iter().enumerate() {
        let verdict = match line {
            Line::Verdict(verdict) => *verdict,
            Line::To(name) => i32::try_from(named(name)).unwrap(),
            _ => i32::try_from(offsets[nth + 1]).unwrap(),
        };
        entries.extend(octets(nth, line, verdict));
    }
    let mut info = info_request("nat");
    info[32..36].copy_from_slice(&number(0b1_0001));
    for (hook, ends) in [(0, [0, first - 1]), (4, [first, first + 1])] {
        info[36 + 4 * hook..][..4].copy_from_slice(&number(offsets[ends[0]]));
        info[56 + 4 * hook..][..4].copy_from_slice(&number(offsets[ends[1]]));
    }
    info[76..80].copy_from_slice(&number(lines.len()));
    info[80..84].copy_from_slice(&number(entries.len() - 40));
    (info, entries)
}

/// Somebody else's rules around kube-proxy's.
const LINES: &[Line] = &[
    Line::To("KUBE-SERVICES"),
    Line::To("OTHERS"),
    Line::Next,
    Line::Verdict(ACCEPT),
    Line::Does("MASQUERADE"),
    Line::Verdict(DROP),
    Line::Chain("KUBE-SERVICES"),
    Line::To("KUBE-SVC-ABCDEFGHIJKLMNO1"),
    Line::Verdict(RETURN),
    Line::Chain("OTHERS"),
    Line::Does("DNAT"),
    Line::Verdict(RETURN),
    Line::Chain("KUBE-SVC-ABCDEFGHIJKLMNO1"),
    Line::Does("DNAT"),
    Line::Does("DNAT"),
    Line::Verdict(RETURN),
    Line::Chain("EMPTY"),
    Line::Verdict(RETURN),
    Line::Chain("ERROR"),
];

fn parsed(family: Family, lines: &[Line]) -> Table {
    let (info, entries) = nat(family, lines, 4);
    table(family, "nat", &info, &entries).unwrap()
}

/// Chains, each with where its rules lead.
fn shape(table: &Table) -> Vec<(String, Vec<Vec<String>>)> {
    let ruleset = table.ruleset();
    let rules = |chain: &Chain| {
        let of_chain = ruleset.rules.iter().filter(|rule| rule.chain == *chain);
        of_chain.map(|rule| rule.leads_to.clone()).collect()
    };
    ruleset.chains.iter().map(|chain| (chain.name.clone(), rules(chain))).collect()
}

/// As the kernel would give it back.
fn given_back(table_now: &Table) -> Table {
    let sent = replacement(table_now);
    let mut info = info_request("nat");
    info[32..36].copy_from_slice(&sent[32..36]);
    info[36..76].copy_from_slice(&sent[44..84]);
    info[76..84].copy_from_slice(&sent[36..44]);
    let entries = [&[0; 40], &sent[96..]].concat();
    table(table_now.family, "nat", &info, &entries).unwrap()
}

fn to(name: &str) -> Vec<String> {
    vec![name.to_owned()]
}

#[test]
fn chains_and_where_rules_lead_are_read() {
    for family in Family::ALL {
        let table = parsed(family, LINES);
        let expected = [
            ("PREROUTING".to_owned(), vec![to("KUBE-SERVICES"), to("OTHERS"), vec![]]),
            ("POSTROUTING".to_owned(), vec![vec![]]),
            ("KUBE-SERVICES".to_owned(), vec![to("KUBE-SVC-ABCDEFGHIJKLMNO1")]),
            ("OTHERS".to_owned(), vec![vec![]]),
            ("KUBE-SVC-ABCDEFGHIJKLMNO1".to_owned(), vec![vec![], vec![]]),
            ("EMPTY".to_owned(), vec![]),
        ];
        assert_eq!(shape(&table), expected, "{family:?}");
        let drops: Vec<_> = table.ruleset().bases.iter().map(|base| base.drops).collect();
        assert_eq!(drops, [false, true]);
        assert_eq!(shape(&given_back(&table)), expected, "there and back");
    }
}

#[test]
fn what_is_removed_goes_and_all_else_leads_where_it_did() {
    for family in Family::ALL {
        let table = parsed(family, LINES);
        let ruleset = table.ruleset();
        let is_kubes = |chain: &&Chain| chain.name.starts_with("KUBE-");
        let removal = Removal {
            tables: Vec::new(),
            rules: vec![ruleset.rules[0].clone()],
            chains: ruleset.chains.iter().filter(is_kubes).cloned().collect(),
        };
        let Change { before, after } = table.without(&removal).unwrap();
        assert_eq!(before, table);
        let expected = [
            ("PREROUTING".to_owned(), vec![to("OTHERS"), vec![]]),
            ("POSTROUTING".to_owned(), vec![vec![]]),
            ("OTHERS".to_owned(), vec![vec![]]),
            ("EMPTY".to_owned(), vec![]),
        ];
        assert_eq!(shape(&after), expected, "{family:?}");
        let back = given_back(&after);
        assert_eq!(shape(&back), expected, "{family:?}");
        assert_eq!(back.hooks, after.hooks);
        let drops: Vec<_> = back.ruleset().bases.iter().map(|base| base.drops).collect();
        assert_eq!(drops, [false, true], "policies stay");
        assert!(after.without(&removal_of_nothing()).is_none());
    }
}

fn removal_of_nothing() -> Removal {
    let chain = |table: &str, family| Chain {
        family,
        table: table.to_owned(),
        name: "KUBE-SERVICES".to_owned(),
    };
    let chains = vec![chain("filter", Family::Ipv4), chain("nat", Family::Ipv6)];
    Removal { chains, ..Removal::default() }
}

/// Of another table, of another family, and what rules that stay lead to.
#[test]
fn what_is_none_of_a_tables_own_changes_nothing() {
    let table = parsed(Family::Ipv4, LINES);
    assert_eq!(table.without(&removal_of_nothing()), None);
    let chains = table.ruleset().chains.into_iter().filter(|chain| chain.name == "OTHERS");
    let removal = Removal { chains: chains.collect(), ..Removal::default() };
    assert_eq!(table.without(&removal), None, "PREROUTING leads there");
}

#[test]
fn what_was_counted_goes_with_its_rule() {
    let table = parsed(Family::Ipv4, LINES);
    let first = table.ruleset().rules[0].clone();
    let removal = Removal { rules: vec![first], ..Removal::default() };
    let after = table.without(&removal).unwrap().after;
    let counted: Vec<u8> =
        (0..LINES.len()).flat_map(|nth| [u8::try_from(nth).unwrap(); 16]).collect();
    let said = layout::counters(&after, &counted);
    let places: Vec<u8> = said[40..].chunks(16).map(|counters| counters[0]).collect();
    assert_eq!(places, (1..u8::try_from(LINES.len()).unwrap()).collect::<Vec<_>>());
    assert_eq!(said[32..36], u32::try_from(LINES.len() - 1).unwrap().to_ne_bytes());
}

#[test]
fn octets_that_are_no_table_are_refused() {
    let (info, entries) = nat(Family::Ipv4, LINES, 4);
    let read = |info: &[u8], entries: &[u8]| table(Family::Ipv4, "nat", info, entries);
    for length in [0, 39, 41, 40 + 60, entries.len() - 1, entries.len() - 40] {
        assert!(read(&info, &entries[..length]).is_err(), "{length}");
    }
    let mut short = entries.clone();
    short[40 + 90..40 + 92].fill(0);
    assert!(read(&info, &short).is_err(), "an entry without length would never end");
    let mut astray = entries;
    astray[40 + 112 + 32..40 + 112 + 36].copy_from_slice(&9_i32.to_ne_bytes());
    assert!(read(&info, &astray).is_err(), "a verdict between entries");
    let mut hook = info;
    hook[36] = 8;
    assert!(read(&hook, &nat(Family::Ipv4, LINES, 4).1).is_err(), "a chain between entries");
}
