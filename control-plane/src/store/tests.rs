//! The store against a model, and against damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

type Model = BTreeMap<String, (String, Revision)>;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn put(key: &str, value: &str, expect: Expect) -> Op {
    Op { key: key.into(), expect, action: Action::Put(Bytes::copy_from_slice(value.as_bytes())) }
}

fn remove(key: &str) -> Op {
    Op { key: key.into(), expect: Expect::Any, action: Action::Delete }
}

async fn all(store: &dyn Store, prefix: &str, at: Option<Revision>) -> Result<Model, StoreError> {
    let page = store.range(Query { prefix, after: None, limit: None, at }).await?;
    let pair = |(key, entry): (Key, Entry)| {
        (key.to_string(), (String::from_utf8(entry.value.to_vec()).unwrap(), entry.modified))
    };
    Ok(page.entries.into_iter().map(pair).collect())
}

/// One step of a generated history.
#[derive(Clone, Debug)]
enum Step {
    /// Put with the right condition.
    Put(u8, u8),
    /// Put that demands a revision that was never this key's.
    Stale(u8),
    /// Create.
    Create(u8, u8),
    Delete(u8),
    /// Two keys of two topics at once.
    Both(u8, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..6_u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        1 => (0..6_u8).prop_map(Step::Stale),
        2 => (0..6_u8, any::<u8>()).prop_map(|(key, value)| Step::Create(key, value)),
        2 => (0..6_u8).prop_map(Step::Delete),
        1 => (0..6_u8, any::<u8>()).prop_map(|(key, value)| Step::Both(key, value)),
    ];
    prop::collection::vec(step, 1..60)
}

fn key(number: u8) -> String {
    format!("core/things/ns{}/{number}", number % 2)
}

/// Keys that a commit changes, and what they hold then; `None` if it must be refused.
type Expected = Option<Vec<(String, Option<String>)>>;

/// Does a step on the store and on the model; checks that they agree on the outcome.
async fn step(store: &dyn Store, model: &mut Model, step: &Step) {
    let before = store.revision().await.unwrap();
    let next = before + 1;
    let (ops, expected): (Vec<Op>, Expected) = match step {
        Step::Put(number, value) => {
            let key = key(*number);
            let expect =
                model.get(&key).map_or(Expect::Absent, |(_, modified)| Expect::Modified(*modified));
            (
                vec![put(&key, &value.to_string(), expect)],
                Some(vec![(key, Some(value.to_string()))]),
            )
        }
        Step::Stale(number) => (
            vec![
                put("other/things/x", "x", Expect::Any),
                put(&key(*number), "x", Expect::Modified(next)),
            ],
            None,
        ),
        Step::Create(number, value) => {
            let key = key(*number);
            let expected =
                (!model.contains_key(&key)).then(|| vec![(key.clone(), Some(value.to_string()))]);
            (vec![put(&key, &value.to_string(), Expect::Absent)], expected)
        }
        Step::Delete(number) => {
            let key = key(*number);
            let present = model.contains_key(&key);
            (vec![remove(&key)], Some(if present { vec![(key, None)] } else { vec![] }))
        }
        Step::Both(number, value) => {
            let (one, other) = (key(*number), format!("other/things/{number}"));
            let ops =
                vec![put(&one, &value.to_string(), Expect::Any), put(&other, "both", Expect::Any)];
            (ops, Some(vec![(one, Some(value.to_string())), (other, Some("both".to_owned()))]))
        }
    };
    let outcome = store.commit(ops).await;
    match expected {
        None => {
            assert!(matches!(outcome, Err(StoreError::Conflict { .. })), "{step:?}: {outcome:?}");
        }
        Some(changes) => {
            let revision = if changes.is_empty() { before } else { next };
            assert_eq!(outcome.unwrap(), revision, "{step:?}");
            for (key, value) in changes {
                match value {
                    Some(value) => model.insert(key, (value, revision)),
                    None => model.remove(&key),
                };
            }
        }
    }
    assert_eq!(all(store, "", None).await.unwrap(), *model);
}

/// Applies what a watch delivers to a state.
fn follow(state: &mut Model, progress: &Progress, last: &mut Revision) {
    for event in &progress.events {
        assert!(event.revision >= *last, "out of order");
        *last = event.revision;
        let had =
            state.get(&*event.key).map(|(value, modified)| (Bytes::from(value.clone()), *modified));
        let previous = event.previous.as_ref().map(|entry| (entry.value.clone(), entry.modified));
        assert_eq!(previous, had, "the previous state is not what the watch has seen");
        match &event.entry {
            Some(entry) => {
                let value = String::from_utf8(entry.value.to_vec()).unwrap();
                state.insert(event.key.to_string(), (value, entry.modified));
            }
            None => drop(state.remove(&*event.key)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn agrees_with_the_model_at_every_revision(steps in steps()) {
        runtime().block_on(async {
            let store = Embedded::in_memory(&Options::default());
            let mut model = Model::new();
            let mut states = vec![(0, Model::new())];
            for one in &steps {
                step(&store, &mut model, one).await;
                states.push((store.revision().await.unwrap(), model.clone()));
            }
            let things = |state: &Model| -> Model {
                state.iter().filter(|(key, _)| key.starts_with("core/things/")).map(|(key, value)| (key.clone(), value.clone())).collect()
            };
            for (revision, state) in &states {
                let past = all(&store, "core/things/", Some(*revision)).await.unwrap();
                assert_eq!(past, things(state), "state at {revision}");
                // A watch from any revision leads from that state to the newest.
                let mut cursor = store.watch("core/things/", *revision).await.unwrap();
                let (mut followed, mut last) = (things(state), *revision);
                follow(&mut followed, &cursor.take().unwrap(), &mut last);
                assert_eq!(followed, things(&model));
            }
        });
    }

    #[test]
    fn comes_back_as_it_was(steps in steps(), snapshot_after in prop_oneof![Just(200_u64), Just(1 << 20)], history in prop_oneof![Just(4_usize), Just(1000)]) {
        runtime().block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let options = Options { snapshot_after, history_events: history, ..Options::default() };
            let mut model = Model::new();
            let mut revision = 0;
            for part in steps.chunks(7) {
                let store = Embedded::open(directory.path(), &options).unwrap();
                assert_eq!(store.revision().await.unwrap(), revision);
                assert_eq!(all(&store, "", None).await.unwrap(), model);
                for one in part {
                    step(&store, &mut model, one).await;
                }
                revision = store.revision().await.unwrap();
            }
        });
    }
}

/// A directory with `count` single-key commits, and the path of its only segment.
fn written(count: u64) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path(), &Options::default()).unwrap();
    runtime().block_on(async {
        for number in 1..=count {
            let revision = store
                .commit(vec![put("core/things/a", &number.to_string(), Expect::Any)])
                .await
                .unwrap();
            assert_eq!(revision, number);
        }
    });
    let segment = log::segment_path(directory.path(), 1);
    (directory, segment)
}

fn state(directory: &Path) -> Result<(Revision, Model), StoreError> {
    let store = Embedded::open(directory, &Options::default())?;
    runtime().block_on(async { Ok((store.revision().await?, all(&store, "", None).await?)) })
}

#[test]
fn a_torn_last_record_is_cut_off_wherever_it_tore() {
    let (directory, segment) = written(3);
    let whole = fs::read(&segment).unwrap();
    let (_, two) = {
        let (other, path) = written(2);
        (other, fs::read(path).unwrap().len())
    };
    for length in two + 1..whole.len() {
        fs::write(&segment, &whole[..length]).unwrap();
        let (revision, model) = state(directory.path()).unwrap();
        assert_eq!((revision, model["core/things/a"].0.as_str()), (2, "2"), "torn at {length}");
    }
    // The tail may also have the right length, but not its content.
    let mut torn = whole.clone();
    torn[two..].fill(0);
    fs::write(&segment, &torn).unwrap();
    assert_eq!(state(directory.path()).unwrap().0, 2);
    // And what comes next is appended where the good part ended.
    assert_eq!(fs::read(&segment).unwrap().len(), two);
}

#[test]
fn damage_before_the_end_is_refused_with_file_and_offset() {
    let (directory, segment) = written(3);
    let whole = fs::read(&segment).unwrap();
    let frame_length = whole.len() / 3;
    for at in [0, 5, frame_length - 1, frame_length + 3] {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        fs::write(&segment, &bad).unwrap();
        let offset = u64::try_from(at / frame_length * frame_length).unwrap();
        match state(directory.path()) {
            Err(StoreError::Corrupt { path, offset: found, .. }) => {
                assert_eq!((path, found), (segment.clone(), offset));
            }
            other => panic!("byte {at}: {other:?}"),
        }
    }
}

#[test]
fn a_missing_segment_is_noticed() {
    let (directory, segment) = written(3);
    fs::rename(&segment, log::segment_path(directory.path(), 4)).unwrap();
    // The content begins with revision 1: fine. But without its first frame there is a gap.
    let moved = log::segment_path(directory.path(), 4);
    let whole = fs::read(&moved).unwrap();
    fs::write(&moved, &whole[whole.len() / 3..]).unwrap();
    assert!(matches!(state(directory.path()), Err(StoreError::Corrupt { offset: 0, .. })));
}

#[test]
fn snapshots_let_old_segments_go() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { snapshot_after: 4096, history_events: 16, ..Options::default() };
    let store = Embedded::open(directory.path(), &options).unwrap();
    runtime().block_on(async {
        for number in 0..400 {
            store
                .commit(vec![put(
                    &format!("core/things/{}", number % 10),
                    &"x".repeat(100),
                    Expect::Any,
                )])
                .await
                .unwrap();
        }
    });
    drop(store);
    let sizes =
        fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    let total: u64 = sizes.sum();
    assert!(total < 20_000, "{total} bytes for 10 keys of 100 bytes");
    assert!(!log::files(directory.path(), "snapshot").unwrap().is_empty());
    let (revision, model) = state(directory.path()).unwrap();
    assert_eq!((revision, model.len()), (400, 10));
}

#[test]
fn a_directory_belongs_to_one_process() {
    let (directory, _) = written(1);
    let first = Embedded::open(directory.path(), &Options::default()).unwrap();
    let second = Embedded::open(directory.path(), &Options::default());
    assert!(matches!(second, Err(StoreError::Locked { .. })));
    drop(first);
    assert!(state(directory.path()).is_ok());
}

#[test]
fn who_falls_behind_is_told_and_nobody_else_notices() {
    runtime().block_on(async {
        let store = Embedded::in_memory(&Options { history_events: 8, ..Options::default() });
        let mut slow = store.watch("core/things/", 0).await.unwrap();
        let mut quick = store.watch("core/things/", 0).await.unwrap();
        let mut elsewhere = store.watch("core/others/", 0).await.unwrap();
        let mut seen = 0;
        for number in 0..20 {
            store
                .commit(vec![put("core/things/a", &number.to_string(), Expect::Any)])
                .await
                .unwrap();
            quick.changed().await.unwrap();
            seen += quick.take().unwrap().events.len();
        }
        assert_eq!(seen, 20);
        assert!(matches!(slow.take(), Err(StoreError::Compacted { asked: 0, oldest: 12 })));
        assert!(matches!(
            store.watch("core/things/", 11).await.err(),
            Some(StoreError::Compacted { .. })
        ));
        assert_eq!(store.watch("core/things/", 12).await.unwrap().take().unwrap().events.len(), 8);
        // A quiet topic has no gap, and says how far it has come.
        let progress = elsewhere.take().unwrap();
        assert_eq!((progress.events.len(), progress.revision), (0, 20));
        assert!(matches!(
            all(&store, "core/things/", Some(3)).await,
            Err(StoreError::Compacted { .. })
        ));
    });
}

#[test]
fn a_revision_that_was_never_reached_is_refused() {
    runtime().block_on(async {
        let store = Embedded::in_memory(&Options::default());
        store.commit(vec![put("core/things/a", "1", Expect::Any)]).await.unwrap();
        assert!(store.watch("core/things/", 1).await.is_ok());
        assert!(matches!(
            store.watch("core/things/", 2).await.err(),
            Some(StoreError::Ahead { asked: 2, newest: 1 })
        ));
        assert!(all(&store, "core/things/", Some(1)).await.is_ok());
        assert!(matches!(
            all(&store, "core/things/", Some(2)).await,
            Err(StoreError::Ahead { asked: 2, newest: 1 })
        ));
    });
}

#[test]
fn history_counts_the_values_that_only_deletions_keep() {
    runtime().block_on(async {
        let options = Options { history_bytes: 1000, ..Options::default() };
        let store = Embedded::in_memory(&options);
        let (keys, value) =
            ((0..10).map(|number| format!("core/things/{number}")), "x".repeat(300));
        for key in keys.clone() {
            store.commit(vec![put(&key, &value, Expect::Any)]).await.unwrap();
        }
        for key in keys {
            store.commit(vec![remove(&key)]).await.unwrap();
        }
        // Ten deletions of 300 bytes each are more than is kept.
        assert!(matches!(
            store.watch("core/things/", 10).await.err(),
            Some(StoreError::Compacted { .. })
        ));
        assert_eq!(store.watch("core/things/", 17).await.unwrap().take().unwrap().events.len(), 3);
    });
}

#[test]
fn concurrent_writers_lose_no_increment() {
    let directory = tempfile::tempdir().unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(Embedded::open(directory.path(), &Options::default()).unwrap());
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let store = Arc::clone(&store);
            writers.spawn(async move {
                for _ in 0..10 {
                    loop {
                        let entry = store.get("core/things/n").await.unwrap();
                        let (number, expect) = match &entry {
                            Some(entry) => (
                                String::from_utf8_lossy(&entry.value).parse::<u32>().unwrap(),
                                Expect::Modified(entry.modified),
                            ),
                            None => (0, Expect::Absent),
                        };
                        match store
                            .commit(vec![put("core/things/n", &(number + 1).to_string(), expect)])
                            .await
                        {
                            Ok(_) => break,
                            Err(StoreError::Conflict { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                }
            });
        }
        while writers.join_next().await.transpose().unwrap().is_some() {}
    });
    let (revision, model) = state(directory.path()).unwrap();
    assert_eq!((revision, model["core/things/n"].0.as_str()), (160, "160"));
}

#[test]
fn pages_of_one_revision_are_consistent() {
    runtime().block_on(async {
        let store = Embedded::in_memory(&Options::default());
        for number in 0..10 {
            store
                .commit(vec![put(&format!("core/things/{number}"), "old", Expect::Any)])
                .await
                .unwrap();
        }
        let first = store
            .range(Query { prefix: "core/things/", after: None, limit: Some(4), at: None })
            .await
            .unwrap();
        assert_eq!((first.entries.len(), first.remaining, first.revision), (4, 6, 10));
        store
            .commit(vec![
                put("core/things/7", "new", Expect::Any),
                remove("core/things/8"),
                put("core/things/55", "new", Expect::Any),
            ])
            .await
            .unwrap();
        let after = first.entries[3].0.clone();
        let rest = store
            .range(Query {
                prefix: "core/things/",
                after: Some(&after),
                limit: None,
                at: Some(first.revision),
            })
            .await
            .unwrap();
        let keys: Vec<&str> =
            rest.entries.iter().map(|(key, _)| key.rsplit('/').next().unwrap()).collect();
        assert_eq!(keys, ["4", "5", "6", "7", "8", "9"]);
        assert!(rest.entries.iter().all(|(_, entry)| entry.value == "old"));
    });
}

#[test]
fn too_large_a_value_is_refused() {
    runtime().block_on(async {
        let store = Embedded::in_memory(&Options::default());
        let outcome =
            store.commit(vec![put("a/b/c", &"x".repeat(MAX_VALUE + 1), Expect::Any)]).await;
        assert!(matches!(outcome, Err(StoreError::TooLarge { .. })));
    });
}
