//! Octets of the store that are not as they were written: the server goes on where nothing that
//! was acknowledged can be concerned, else it refuses and says which file, and where.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use mizzen_control_plane::store::{
    Action, Embedded, Expect, Op, Options, Query, Revision, Store as _, StoreError,
};
use serde_json::json;

use crate::dice::Dice;
use crate::process::Home;

/// Bytes of a frame's header; its length is in the octets from the fifth on, little-endian.
const HEADER: usize = 24;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A store with a snapshot and a log after it: 30 commits, ten keys.
fn written() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { snapshot_after: 1_000, ..Options::default() };
    let store = Embedded::open(directory.path(), &options).unwrap();
    runtime().block_on(async {
        for number in 0..30_u32 {
            let key: Arc<str> = format!("core/things/{}", number % 10).into();
            let value = Bytes::from(format!("{{\"number\":{number}}}"));
            store
                .commit(vec![Op { key, expect: Expect::Any, action: Action::Put(value) }])
                .await
                .unwrap();
        }
    });
    directory
}

/// The newest revision and everything in the store.
fn state(directory: &Path) -> Result<(Revision, Vec<(String, Bytes)>), StoreError> {
    let store = Embedded::open(directory, &Options::default())?;
    let query = Query { prefix: "", after: None, limit: None, at: None };
    let page = runtime().block_on(store.range(query))?;
    let entry = |(key, entry): (Arc<str>, _)| {
        let mizzen_control_plane::store::Entry { value, .. } = entry;
        (key.to_string(), value)
    };
    Ok((page.revision, page.entries.into_iter().map(entry).collect()))
}

/// Where the frames of a file begin.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![0];
    loop {
        let start = starts[starts.len() - 1];
        let length = bytes[start + 4..start + 8].try_into().unwrap();
        let next = start + HEADER + usize::try_from(u32::from_le_bytes(length)).unwrap();
        if next >= bytes.len() {
            assert_eq!(next, bytes.len());
            return starts;
        }
        starts.push(next);
    }
}

/// The store's files that have something in them, the last segment of the log last.
fn files(directory: &Path) -> Vec<PathBuf> {
    let named = |extension: &str| {
        let found = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
        let mut found: Vec<PathBuf> =
            found.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
        found.sort();
        found
    };
    let all = named("snapshot").into_iter().chain(named("log"));
    all.filter(|path| fs::metadata(path).unwrap().len() > 0).collect()
}

#[test]
fn a_flipped_bit_anywhere_is_refused_with_file_and_offset_or_costs_the_last_write_alone() {
    let directory = written();
    let (whole, mut dice) = (state(directory.path()).unwrap(), Dice::of(1));
    assert_eq!(whole.0, 30);
    let files = files(directory.path());
    assert!(files[0].extension().unwrap() == "snapshot" && files.len() > 1, "{files:?}");
    let mut cut = 0;
    for (index, path) in files.iter().enumerate() {
        let good = fs::read(path).unwrap();
        let frames = frames(&good);
        let of_last = index + 1 == files.len();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << dice.below(8);
            fs::write(path, &bad).unwrap();
            let start = *frames.iter().rev().find(|start| **start <= at).unwrap();
            let in_last = of_last && start == frames[frames.len() - 1];
            match state(directory.path()) {
                Err(StoreError::Corrupt { path: named, offset, .. }) if !in_last => {
                    assert_eq!((&named, offset), (path, u64::try_from(start).unwrap()), "{at}");
                }
                // Nobody can tell it from one whose writing was cut off.
                Ok((revision, _)) if in_last => {
                    assert_eq!(revision, whole.0 - 1, "{at}");
                    cut += 1;
                }
                other => panic!("octet {at} of {}: {other:?}", path.display()),
            }
        }
        fs::write(path, &good).unwrap();
    }
    assert!(cut > 0);
    assert_eq!(state(directory.path()).unwrap(), whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_end_is_cut_off_and_damage_before_it_is_refused_with_file_and_offset() {
    let home = Home::new();
    let mut server = home.start();
    let api = Api::<ConfigMap>::default_namespaced(home.ready(&mut server).await);
    for name in ["a", "b", "c"] {
        let object = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        api.create(&PostParams::default(), &object).await.unwrap();
    }
    drop(server);
    let log = files(&home.data().join("store")).pop().unwrap();
    let whole = fs::read(&log).unwrap();
    let frames = frames(&whole);
    let [.., before, last] = frames[..] else { panic!("{frames:?}") };

    let mut bad = whole.clone();
    bad[before + HEADER + 9] ^= 4;
    fs::write(&log, &bad).unwrap();
    let mut server = home.start();
    assert_eq!(server.ended(), Some(false));
    let (told, path) = (home.told(), log.display());
    assert!(told.contains(&format!("{path} is damaged at offset {before}")), "{told}");
    // It touched nothing.
    assert_eq!(fs::read(&log).unwrap(), bad);

    fs::write(&log, &whole[..whole.len() - 7]).unwrap();
    let mut server = home.start();
    let api = Api::<ConfigMap>::default_namespaced(home.ready(&mut server).await);
    let told = home.told();
    assert!(told.contains(&format!("offset={last}")) || told.contains(&last.to_string()), "{told}");
    assert!(api.get_opt("b").await.unwrap().is_some());
    assert!(api.get_opt("c").await.unwrap().is_none());
    let object = serde_json::from_value(json!({"metadata": {"name": "d"}})).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
    drop(server);
    let mut server = home.start();
    let api = Api::<ConfigMap>::default_namespaced(home.ready(&mut server).await);
    assert!(api.get_opt("d").await.unwrap().is_some());
}
