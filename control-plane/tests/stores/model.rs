//! A generated history, done on a store and on a model beside it.

use std::collections::BTreeMap;

use bytes::Bytes;
use mizzen_control_plane::store::{
    Action, Entry, Expect, Key, Op, Progress, Query, Revision, Store, StoreError,
};
use proptest::prelude::*;

/// Keys with their values and the revisions that wrote them.
pub(crate) type Model = BTreeMap<String, (String, Revision)>;

pub(crate) fn put(key: &str, value: &str, expect: Expect) -> Op {
    Op { key: key.into(), expect, action: Action::Put(Bytes::copy_from_slice(value.as_bytes())) }
}

pub(crate) fn remove(key: &str) -> Op {
    Op { key: key.into(), expect: Expect::Any, action: Action::Delete }
}

/// All entries of a prefix.
pub(crate) async fn all(
    store: &dyn Store,
    prefix: &str,
    at: Option<Revision>,
) -> Result<Model, StoreError> {
    let page = store.range(Query { prefix, after: None, limit: None, at }).await?;
    let pair = |(key, entry): (Key, Entry)| {
        (key.to_string(), (String::from_utf8(entry.value.to_vec()).unwrap(), entry.modified))
    };
    Ok(page.entries.into_iter().map(pair).collect())
}

/// One step of a generated history.
#[derive(Clone, Debug)]
pub(crate) enum Step {
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

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
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
pub(crate) async fn step(store: &dyn Store, model: &mut Model, step: &Step) {
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
pub(crate) fn follow(state: &mut Model, progress: &Progress, last: &mut Revision) {
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

/// The part of a state that a watch of `core/things/` sees.
fn things(state: &Model) -> Model {
    let wanted = state.iter().filter(|(key, _)| key.starts_with("core/things/"));
    wanted.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Does the steps on a store that holds nothing. Every state that there was can be read, and a
/// watch from it leads to the newest.
pub(crate) async fn agrees_at_every_revision(store: &dyn Store, steps: &[Step]) {
    let mut model = Model::new();
    let mut states = vec![(store.revision().await.unwrap(), Model::new())];
    for one in steps {
        step(store, &mut model, one).await;
        states.push((store.revision().await.unwrap(), model.clone()));
    }
    for (revision, state) in &states {
        let past = all(store, "core/things/", Some(*revision)).await.unwrap();
        assert_eq!(past, things(state), "state at {revision}");
        let mut cursor = store.watch("core/things/", *revision).await.unwrap();
        let (mut followed, mut last) = (things(state), *revision);
        follow(&mut followed, &cursor.take().unwrap(), &mut last);
        assert_eq!(followed, things(&model));
    }
}
