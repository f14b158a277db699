//! What every store has to do. Each function gets a store that holds nothing.

use std::sync::Arc;

use mizzen_control_plane::store::{Expect, MAX_VALUE, Query, Store, StoreError};

use crate::model::{all, put, remove};

/// A test of each part of the contract, on a store that `$start` makes; beside the store it gives
/// what has to be there as long as that.
macro_rules! every_part {
    ($start:path) => {
        $crate::contract::every_part!(
            $start:
            a_revision_that_was_never_reached_is_refused,
            concurrent_writers_lose_no_increment,
            pages_of_one_revision_are_consistent,
            too_large_a_value_is_refused,
            a_commit_happens_whole_or_not_at_all,
            a_large_range_is_whole,
        );
    };
    ($start:path: $($part:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $part() {
            let (_kept, store) = $start().await;
            $crate::contract::$part(std::sync::Arc::new(store)).await;
        }
    )*};
}
pub(crate) use every_part;

pub(crate) async fn a_revision_that_was_never_reached_is_refused(store: Arc<dyn Store>) {
    let one = store.commit(vec![put("core/things/a", "1", Expect::Any)]).await.unwrap();
    assert!(store.watch("core/things/", one).await.is_ok());
    let refused = store.watch("core/things/", one + 1).await.err();
    let is_ahead = |error: &StoreError| matches!(error, StoreError::Ahead { asked, newest } if (*asked, *newest) == (one + 1, one));
    assert!(refused.as_ref().is_some_and(is_ahead), "{refused:?}");
    assert!(all(&*store, "core/things/", Some(one)).await.is_ok());
    let refused = all(&*store, "core/things/", Some(one + 1)).await.err();
    assert!(refused.as_ref().is_some_and(is_ahead), "{refused:?}");
}

pub(crate) async fn concurrent_writers_lose_no_increment(store: Arc<dyn Store>) {
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        writers.spawn(increments(Arc::clone(&store), 10));
    }
    while writers.join_next().await.transpose().unwrap().is_some() {}
    assert_eq!(all(&*store, "", None).await.unwrap()["core/things/n"].0, "160");
}

/// Adds one to a number, so many times.
async fn increments(store: Arc<dyn Store>, times: u32) {
    for _ in 0..times {
        loop {
            let entry = store.get("core/things/n").await.unwrap();
            let (number, expect) = match &entry {
                Some(entry) => (
                    String::from_utf8_lossy(&entry.value).parse::<u32>().unwrap(),
                    Expect::Modified(entry.modified),
                ),
                None => (0, Expect::Absent),
            };
            let next = put("core/things/n", &(number + 1).to_string(), expect);
            match store.commit(vec![next]).await {
                Ok(_) => break,
                Err(StoreError::Conflict { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
}

pub(crate) async fn pages_of_one_revision_are_consistent(store: Arc<dyn Store>) {
    let mut newest = 0;
    for number in 0..10 {
        let op = put(&format!("core/things/{number}"), "old", Expect::Any);
        newest = store.commit(vec![op]).await.unwrap();
    }
    let query = Query { prefix: "core/things/", after: None, limit: Some(4), at: None };
    let first = store.range(query).await.unwrap();
    assert_eq!((first.entries.len(), first.remaining, first.revision), (4, 6, newest));
    store
        .commit(vec![
            put("core/things/7", "new", Expect::Any),
            remove("core/things/8"),
            put("core/things/55", "new", Expect::Any),
        ])
        .await
        .unwrap();
    let after = first.entries[3].0.clone();
    let rest = Query { after: Some(&after), limit: None, at: Some(first.revision), ..query };
    let rest = store.range(rest).await.unwrap();
    let keys: Vec<&str> =
        rest.entries.iter().map(|(key, _)| key.rsplit('/').next().unwrap()).collect();
    assert_eq!(keys, ["4", "5", "6", "7", "8", "9"]);
    assert!(rest.entries.iter().all(|(_, entry)| entry.value == "old"));
    assert_eq!((rest.revision, rest.remaining), (first.revision, 0));
}

pub(crate) async fn too_large_a_value_is_refused(store: Arc<dyn Store>) {
    let outcome = store.commit(vec![put("a/b/c", &"x".repeat(MAX_VALUE + 1), Expect::Any)]).await;
    assert!(matches!(outcome, Err(StoreError::TooLarge { .. })), "{outcome:?}");
}

pub(crate) async fn a_commit_happens_whole_or_not_at_all(store: Arc<dyn Store>) {
    let one = store.commit(vec![put("core/things/a", "1", Expect::Absent)]).await.unwrap();
    let refused = store
        .commit(vec![
            put("core/things/b", "1", Expect::Absent),
            put("core/things/a", "2", Expect::Modified(one + 7)),
        ])
        .await;
    let Err(StoreError::Conflict { key, current }) = refused else { panic!("{refused:?}") };
    assert_eq!((&*key, current), ("core/things/a", Some(one)));
    let refused = store.commit(vec![put("core/things/c", "1", Expect::Modified(one))]).await;
    let Err(StoreError::Conflict { key, current }) = refused else { panic!("{refused:?}") };
    assert_eq!((&*key, current), ("core/things/c", None));
    let keys: Vec<String> = all(&*store, "", None).await.unwrap().into_keys().collect();
    assert_eq!(keys, ["core/things/a"]);
    assert_eq!(store.revision().await.unwrap(), one);
}

/// More than a store may want to read at once.
pub(crate) async fn a_large_range_is_whole(store: Arc<dyn Store>) {
    for hundred in 0..12 {
        let ops = (0..100).map(|number| {
            put(&format!("core/things/{:04}", hundred * 100 + number), "x", Expect::Absent)
        });
        store.commit(ops.collect()).await.unwrap();
    }
    let read = all(&*store, "core/things/", None).await.unwrap();
    let keys: Vec<String> = read.into_keys().collect();
    let wanted: Vec<String> = (0..1200).map(|number| format!("core/things/{number:04}")).collect();
    assert_eq!(keys, wanted);
    let some = Query { prefix: "core/things/", after: None, limit: Some(700), at: None };
    let some = store.range(some).await.unwrap();
    assert_eq!((some.entries.len(), some.remaining), (700, 500));
}
