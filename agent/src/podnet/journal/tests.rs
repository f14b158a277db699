//! Tests of the journal: what it adds up to, whatever happened to the file.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::podnet::ledger::{Ledger, Reservation};

const BOOT: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

fn attachment(index: u8) -> Attachment {
    Attachment { container_id: format!("c{index}"), ifname: "eth0".into() }
}

fn entry(index: u8) -> Entry {
    Entry {
        network: "mizzen".into(),
        pod: Pod::default(),
        netns: NetnsId { dev: 4, ino: index.into() },
        netns_cookie: None,
        addresses: vec![IpAddr::from([10, 244, 1, index])],
        mtu: 1500,
        phase: Phase::Reserved,
        requested: Requested::default(),
        serial: index.into(),
        born: None,
        ifindex: 0,
    }
}

fn attached(index: u8) -> Record {
    Record::Attached { attachment: attachment(index), entry: Box::new(entry(index)) }
}

/// A journal in a folder of its own, with all of `records` in it.
fn written(records: &[Record]) -> (tempfile::TempDir, PathBuf, Replayed) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("podnet.journal");
    let (mut journal, mut state) = Journal::open(&path, BOOT).unwrap();
    for record in records {
        journal.append(record, &state).unwrap();
        state.apply(record.clone());
    }
    (folder, path, state)
}

#[test]
fn what_was_written_is_read_back() {
    let live = Record::Phase { attachment: attachment(2), phase: Phase::Live, born: Some(4_711) };
    let ranges = Record::Ranges { ranges: vec!["10.244.1.0/24".into(), "fd00:244:1::/64".into()] };
    let (_folder, path, state) = written(&[ranges, attached(2), live, attached(3)]);
    let (_, replayed) = Journal::open(&path, BOOT).unwrap();
    assert_eq!(replayed, state);
    assert_eq!(replayed.ranges.len(), 2);
    let live = &replayed.entries[&attachment(2)];
    assert_eq!((live.phase, live.born), (Phase::Live, Some(4_711)));
    assert_eq!(replayed.entries[&attachment(3)].phase, Phase::Reserved);
}

#[test]
fn cni_29_another_boot_begins_with_nothing() {
    let (_folder, path, _) = written(&[attached(2)]);
    let (_, replayed) = Journal::open(&path, "another-boot").unwrap();
    assert_eq!(replayed, Replayed::default());
    // And the old boot's records are gone for good.
    assert_eq!(Journal::open(&path, BOOT).unwrap().1, Replayed::default());
}

#[test]
fn a_torn_last_record_is_dropped_and_the_next_one_is_whole() {
    let (_folder, path, _) = written(&[attached(2), attached(3)]);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
    let (mut journal, state) = Journal::open(&path, BOOT).unwrap();
    assert_eq!(state.entries.keys().collect::<Vec<_>>(), [&attachment(2)]);
    assert_eq!(state.unreadable, 1);
    journal.append(&attached(4), &state).unwrap();
    let (_, replayed) = Journal::open(&path, BOOT).unwrap();
    assert_eq!(replayed.entries.keys().collect::<Vec<_>>(), [&attachment(2), &attachment(4)]);
}

#[test]
fn released_addresses_are_remembered_unless_somebody_has_them() {
    let released = |index| Record::Released { attachment: attachment(index) };
    let mut again = entry(3);
    again.addresses = entry(2).addresses;
    let again = Record::Attached { attachment: attachment(9), entry: Box::new(again) };
    let records = [attached(2), attached(3), released(2), released(3), again];
    let (_folder, path, _) = written(&records);
    let (_, replayed) = Journal::open(&path, BOOT).unwrap();
    assert_eq!(replayed.freed, entry(3).addresses);
}

#[test]
fn cni_22_released_addresses_are_remembered_over_any_number_of_restarts() {
    let released = |index| Record::Released { attachment: attachment(index) };
    let (_folder, path, _) =
        written(&[attached(2), attached(3), released(3), released(2), attached(4)]);
    let expected: Vec<IpAddr> =
        [3, 2].into_iter().flat_map(|index| entry(index).addresses).collect();
    for start in 1..=3 {
        assert_eq!(Journal::open(&path, BOOT).unwrap().1.freed, expected, "start {start}");
    }
    // Whoever has one of them has it.
    let (mut journal, state) = Journal::open(&path, BOOT).unwrap();
    journal.append(&attached(3), &state).unwrap();
    assert_eq!(Journal::open(&path, BOOT).unwrap().1.freed, entry(2).addresses);
}

/// The file is written anew while the agent runs, too.
#[test]
fn cni_22_resting_addresses_are_in_a_file_that_was_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("podnet.journal");
    let mut ledger = Ledger::open(&path, BOOT, Vec::new(), Duration::ZERO).unwrap();
    ledger.set_ranges(&["10.244.1.0/29".parse().unwrap()]).unwrap();
    let reservation = Reservation {
        network: "mizzen".into(),
        pod: Pod::default(),
        netns: NetnsId { dev: 4, ino: 1 },
        netns_cookie: None,
        mtu: 1500,
        requested: Requested::default(),
    };
    let length = || fs::metadata(&path).unwrap().len();
    let mut before = length();
    for _ in 0..2 * SLACK {
        ledger.reserve(&attachment(1), reservation.clone(), Duration::ZERO).unwrap();
        let anew = length() < before;
        ledger.release(&attachment(1), Duration::ZERO).unwrap();
        if anew || length() < before {
            let replayed = Replayed::from_lines(&fs::read(&path).unwrap(), BOOT);
            let mut freed = replayed.freed;
            freed.sort_unstable();
            let all = (2..=6).map(|index| IpAddr::from([10, 244, 1, index]));
            assert_eq!(freed, all.collect::<Vec<_>>());
            return;
        }
        before = length();
    }
    panic!("it was not written anew");
}

#[test]
fn the_file_does_not_grow_without_end() {
    let released = Record::Released { attachment: attachment(2) };
    let cycle = [attached(2), released];
    let records: Vec<_> = cycle.iter().cycle().take(4 * SLACK).cloned().collect();
    let (_folder, path, _) = written(&records);
    let lines = fs::read_to_string(&path).unwrap().lines().count();
    assert!(lines <= SLACK + 8, "{lines}");
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let record = prop_oneof![
        (0..8_u8).prop_map(attached),
        (0..8_u8).prop_map(|index| Record::Released { attachment: attachment(index) }),
        (0..8_u8).prop_map(|index| Record::Phase {
            attachment: attachment(index),
            phase: Phase::Leaving,
            born: None,
        }),
    ];
    prop::collection::vec(record, 0..40)
}

proptest! {
    /// Cut anywhere, the file adds up to what some first part of the records adds up to.
    #[test]
    fn cut_anywhere_it_adds_up_to_a_prefix(records in records(), cut in 0.0..1.0_f64) {
        let (_folder, path, _) = written(&records);
        let bytes = fs::read(&path).unwrap();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
            reason = "a place in a short file")]
        let kept = &bytes[..(bytes.len() as f64 * cut) as usize];
        let lines = kept.split(|byte| *byte == b'\n').count() - 1;
        let replayed = Replayed::from_lines(kept, BOOT);
        // The first two lines are the boot and the ranges.
        let mut expected = Replayed::default();
        records.into_iter().take(lines.saturating_sub(2)).for_each(|record| expected.apply(record));
        prop_assert_eq!(replayed.entries, expected.entries);
    }
}

#[test]
fn records_of_an_agent_before_this_one_are_read() {
    let text = format!(
        r#"{{"record":"boot","version":1,"boot":"{BOOT}"}}
{{"record":"attached","attachment":{{"containerID":"c2","ifname":"eth0"}},"entry":{{"network":"mizzen","pod":{{}},"netns":{{"dev":4,"ino":2}},"addresses":["10.244.1.2"],"mtu":1500,"phase":"reserved"}}}}
"#
    );
    let replayed = Replayed::from_lines(text.as_bytes(), BOOT);
    assert_eq!(replayed.unreadable, 0);
    let expected = Entry { serial: 0, ..entry(2) };
    assert_eq!(replayed.entries, [(attachment(2), expected)].into());
}
