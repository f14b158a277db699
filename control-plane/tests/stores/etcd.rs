//! The store over etcd.

use std::sync::Arc;
use std::time::Duration;

use mizzen_control_plane::store::{Etcd, EtcdOptions, Event, Expect, Store, StoreError, Watch};
use proptest::test_runner::{Config, TestRunner};

use crate::contract;
use crate::model::{agrees_at_every_revision, all, put, steps};
use crate::server::{Door, LIMIT, Server, options_of, start_with_tls};

async fn over_an_etcd() -> (Server, Etcd) {
    let server = Server::start().await;
    let store = server.store().await;
    (server, store)
}

contract::every_part!(over_an_etcd);

#[test]
fn agrees_with_the_model_at_every_revision() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start());
    // One etcd for all: each case begins with nothing below a prefix of its own.
    let cases = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(8) });
    let outcome = runner.run(&steps(), |steps| {
        cases.set(cases.get() + 1);
        let prefix = format!("/case-{}", cases.get());
        runtime.block_on(async {
            let options = EtcdOptions { prefix, ..server.options() };
            agrees_at_every_revision(&Etcd::open(&options).await.unwrap(), &steps).await;
        });
        Ok(())
    });
    outcome.unwrap();
}

/// Takes events of a watch until there are so many.
async fn events(watch: &mut Box<dyn Watch>, count: usize) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    let all = async {
        while events.len() < count {
            watch.changed().await.unwrap();
            events.extend(watch.take().unwrap().events);
        }
    };
    tokio::time::timeout(LIMIT, all).await.expect("all events in time");
    events
}

fn values(events: &[Arc<Event>]) -> Vec<String> {
    let value = |event: &Arc<Event>| {
        event.entry.as_ref().map(|entry| String::from_utf8_lossy(&entry.value).into_owned())
    };
    events.iter().filter_map(value).collect()
}

#[tokio::test]
async fn what_one_writes_the_other_reads_and_sees() {
    let server = Server::start().await;
    let (one, other) = (server.store().await, server.store().await);
    let from = other.revision().await.unwrap();
    let mut watch = other.watch("core/things/", from).await.unwrap();
    let first = one.commit(vec![put("core/things/a", "1", Expect::Absent)]).await.unwrap();
    // A read asks etcd itself: it is never behind.
    let read = other.get("core/things/a").await.unwrap().unwrap();
    assert_eq!((&*read.value, read.created, read.modified), (&b"1"[..], first, first));
    let refused = other.commit(vec![put("core/things/a", "x", Expect::Absent)]).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    other.commit(vec![put("core/things/a", "2", Expect::Modified(first))]).await.unwrap();
    one.commit(vec![put("core/others/a", "x", Expect::Any)]).await.unwrap();
    let seen = events(&mut watch, 2).await;
    assert_eq!(values(&seen), ["1", "2"]);
    assert_eq!(seen[1].previous.as_ref().unwrap().modified, first);
}

#[tokio::test]
async fn keys_of_other_prefixes_are_nobodys_business() {
    let server = Server::start().await;
    let store = server.store().await;
    let options = EtcdOptions { prefix: "/mizzen2".to_owned(), ..server.options() };
    let foreign = Etcd::open(&options).await.unwrap();
    foreign.commit(vec![put("core/things/a", "x", Expect::Any)]).await.unwrap();
    let mut watch = store.watch("core/things/", store.revision().await.unwrap()).await.unwrap();
    store.commit(vec![put("core/things/b", "y", Expect::Any)]).await.unwrap();
    assert_eq!(values(&events(&mut watch, 1).await), ["y"]);
    let keys: Vec<String> = all(&store, "", None).await.unwrap().into_keys().collect();
    assert_eq!(keys, ["core/things/b"]);
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_when_etcd_comes_back() {
    let mut server = Server::start().await;
    let store = server.store().await;
    let mut watch = store.watch("core/things/", store.revision().await.unwrap()).await.unwrap();
    store.commit(vec![put("core/things/a", "1", Expect::Any)]).await.unwrap();
    server.kill();
    let refused = store.commit(vec![put("core/things/a", "lost", Expect::Any)]).await;
    let Err(error @ StoreError::Away { .. }) = refused else { panic!("{refused:?}") };
    let message = error.to_string();
    assert!(message.contains(&server.client.to_string()), "{message}");
    server.start_again().await;
    let again = server.store().await;
    again.commit(vec![put("core/things/a", "2", Expect::Any)]).await.unwrap();
    let written = async {
        while store.commit(vec![put("core/things/a", "3", Expect::Any)]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, written).await.expect("the store writes again");
    assert_eq!(values(&events(&mut watch, 3).await), ["1", "2", "3"]);
}

#[tokio::test]
async fn who_missed_what_was_compacted_has_to_begin_anew() {
    let server = Server::start().await;
    let door = Door::before(server.client).await;
    let (near, far) = (server.store().await, Etcd::open(&options_of(door.address)).await.unwrap());
    let from = far.revision().await.unwrap();
    let mut watch = far.watch("core/things/", from).await.unwrap();
    // The first look of a watch needs no reason.
    watch.changed().await.unwrap();
    assert!(watch.take().unwrap().events.is_empty());
    door.shut();
    for number in 0..5 {
        near.commit(vec![put("core/things/a", &number.to_string(), Expect::Any)]).await.unwrap();
    }
    let newest = near.revision().await.unwrap();
    let mut raw = etcd_client::Client::connect([server.client.to_string()], None).await.unwrap();
    raw.compact(i64::try_from(newest).unwrap(), None).await.unwrap();
    door.open();
    tokio::time::timeout(LIMIT, watch.changed()).await.expect("it is told in time").unwrap();
    let told = watch.take();
    assert!(matches!(told, Err(StoreError::Compacted { .. })), "{told:?}");
    let mut anew = far.watch("core/things/", newest).await.unwrap();
    near.commit(vec![put("core/things/a", "next", Expect::Any)]).await.unwrap();
    assert_eq!(values(&events(&mut anew, 1).await), ["next"]);
    // A state that etcd has given up can't be read either.
    let past = all(&far, "core/things/", Some(from)).await;
    assert!(matches!(past, Err(StoreError::Compacted { .. })), "{past:?}");
}

#[tokio::test]
async fn old_revisions_are_given_up_and_the_newest_stay() {
    let server = Server::start().await;
    let every = Some(Duration::from_millis(20));
    let store =
        Etcd::open(&EtcdOptions { compact_every: every, ..server.options() }).await.unwrap();
    let old = store.commit(vec![put("core/things/a", "1", Expect::Any)]).await.unwrap();
    store.commit(vec![put("core/things/a", "2", Expect::Any)]).await.unwrap();
    let given_up = async {
        while all(&store, "", Some(old)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, given_up).await.expect("compacted in time");
    assert_eq!(all(&store, "", None).await.unwrap()["core/things/a"].0, "2");
}

#[tokio::test]
async fn certificates_open_an_etcd_that_asks_for_them() {
    let (_server, options) = start_with_tls().await;
    let store = Etcd::open(&options).await.unwrap();
    let mut watch = store.watch("core/things/", store.revision().await.unwrap()).await.unwrap();
    store.commit(vec![put("core/things/a", "1", Expect::Any)]).await.unwrap();
    assert_eq!(values(&events(&mut watch, 1).await), ["1"]);
    for options in [
        EtcdOptions { identity: None, ..options.clone() },
        EtcdOptions { ca_file: None, ..options },
    ] {
        let refused = Etcd::open(&options).await.err();
        assert!(matches!(refused, Some(StoreError::Away { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address() {
    let options = EtcdOptions::new(vec!["http://127.0.0.1:1".to_owned()]);
    let error = Etcd::open(&options).await.err().expect("nobody answers at port 1").to_string();
    assert!(error.starts_with("etcd at http://127.0.0.1:1 did not"), "{error}");
    let missing = EtcdOptions {
        endpoints: vec!["https://127.0.0.1:1".to_owned()],
        ca_file: Some("/nowhere/ca.crt".into()),
        ..options
    };
    let error = Etcd::open(&missing).await.err().expect("there is no such file").to_string();
    assert!(error.contains("cannot read /nowhere/ca.crt"), "{error}");
}
