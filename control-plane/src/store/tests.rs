//! The embedded store against damage, and the bounds of its history. What every store has to do is
//! in `tests/stores`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

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
