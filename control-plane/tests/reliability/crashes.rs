//! `kill -9` at any point of many concurrent writes, again and again.
//!
//! Every object has one writer, which knows what it was last answered and what it asked for
//! without an answer. After each kill an object is as the one or as the other says, in every
//! octet; nothing else is possible. Watches go on from the last revision that they saw, and have
//! in the end seen each change of each object once, in order, at the revision that its writer was
//! told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::io::AsyncBufReadExt as _;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::dice::{Dice, share};
use crate::process::{Home, LIMIT};

/// Kills.
const KILLS: u64 = 200;
/// Writes asked for between two kills; the kill comes before any of them.
const WRITES: u64 = 10_000;
/// How many write at a time.
const WRITERS: u64 = 64;
/// Objects of a writer.
const OBJECTS: u64 = 8;
/// How many watch.
const WATCHES: usize = 3;

/// A change of an object: the version that it has since then, none when it was deleted, and the
/// revision, where its writer was told.
type Change = (Option<u64>, Option<u64>);

/// What a request leaves of an object.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Asked {
    /// This version.
    Version(u64),
    /// Nothing.
    Deletion,
}

impl Asked {
    fn version(self) -> Option<u64> {
        match self {
            Self::Version(version) => Some(version),
            Self::Deletion => None,
        }
    }
}

/// What is known of one object.
#[derive(Default)]
struct Known {
    /// The last version that was asked for.
    version: u64,
    /// What there is: version and revision.
    there: Option<(u64, u64)>,
    /// What was asked for without an answer.
    asked: Option<Asked>,
    /// Everything that became of it, in order.
    changes: Vec<Change>,
}

impl Known {
    fn answered(&mut self, version: Option<u64>, revision: Option<u64>) {
        self.asked = None;
        self.there = version.zip(revision);
        self.changes.push((version, revision));
    }

    /// Compares with what there is after a kill, and learns what became of the last request.
    fn settle(&mut self, name: &str, found: Option<(u64, u64)>) {
        let asked = self.asked.take();
        if found == self.there {
            return;
        }
        let happened =
            asked.is_some_and(|asked| asked.version() == found.map(|(version, _)| version));
        assert!(
            happened && found.is_none_or(|found| self.there.is_none_or(|old| old.1 < found.1)),
            "{name}: {found:?} is there, answered was {:?}, asked for was {asked:?}",
            self.there
        );
        self.there = found;
        self.changes.push((found.map(|found| found.0), found.map(|found| found.1)));
    }
}

/// All objects by name.
type Objects = BTreeMap<String, Known>;

/// Text that an object's name and version tell; one in 64 is long.
fn filler(name: &str, version: u64) -> String {
    let seed = name.bytes().fold(version, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
    let length = if seed % 64 == 0 { 20_000 } else { 16 + seed % 600 };
    let letter = |at: u64| char::from(b'a' + u8::try_from((seed + at * 7) % 26).unwrap());
    (0..length).map(letter).collect()
}

fn object(name: &str, version: u64) -> Value {
    json!({"metadata": {"name": name}, "data": {"v": version.to_string(), "text": filler(name, version)}})
}

/// Name, version and revision of an object that is whole.
fn read(object: &ConfigMap) -> Option<(String, u64, u64)> {
    let name = object.name_any();
    let data = object.data.as_ref()?;
    let version = data.get("v")?.parse().unwrap();
    assert_eq!(data["text"], filler(&name, version), "{name} is torn");
    Some((name, version, object.resource_version().unwrap().parse().unwrap()))
}

/// One request: creates an object, changes it in one of two ways, or deletes it.
async fn write(
    api: &Api<ConfigMap>,
    name: &str,
    known: (Option<(u64, u64)>, u64),
    dice: &mut Dice,
    ask: impl FnOnce(Asked),
) -> Result<(Option<u64>, Option<u64>), kube::Error> {
    let (there, version) = known;
    let revision = |object: ConfigMap| object.resource_version().unwrap().parse().ok();
    let Some((_, at)) = there else {
        ask(Asked::Version(version));
        let object = serde_json::from_value(object(name, version)).unwrap();
        let made = api.create(&PostParams::default(), &object).await?;
        return Ok((Some(version), revision(made)));
    };
    let mut new = object(name, version);
    new["metadata"]["resourceVersion"] = at.to_string().into();
    match dice.below(8) {
        0 => {
            ask(Asked::Deletion);
            let seen = Preconditions { resource_version: Some(at.to_string()), uid: None };
            let options = DeleteParams {
                preconditions: Some(seen),
                propagation_policy: Some(PropagationPolicy::Background),
                ..DeleteParams::default()
            };
            let _ = api.delete(name, &options).await?;
            Ok((None, None))
        }
        1..=3 => {
            ask(Asked::Version(version));
            let change = Patch::Merge(new);
            Ok((Some(version), revision(api.patch(name, &PatchParams::default(), &change).await?)))
        }
        _ => {
            ask(Asked::Version(version));
            let object = serde_json::from_value(new).unwrap();
            let replaced = api.replace(name, &PostParams::default(), &object).await?;
            Ok((Some(version), revision(replaced)))
        }
    }
}

/// Writes one object after another, until the server is gone or enough was asked for.
async fn keep_writing(
    client: Client,
    writer: u64,
    objects: Arc<Mutex<Objects>>,
    left: Arc<AtomicU64>,
    mut dice: Dice,
) {
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let take = |left: u64| left.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
        let name = format!("w{writer}-{}", dice.below(OBJECTS));
        let known = {
            let mut objects = objects.lock().unwrap();
            let known = objects.entry(name.clone()).or_default();
            known.version += 1;
            (known.there, known.version)
        };
        let ask = |asked| {
            objects.lock().unwrap().get_mut(&name).unwrap().asked = Some(asked);
        };
        match write(&api, &name, known, &mut dice, ask).await {
            Ok((version, revision)) => {
                objects.lock().unwrap().get_mut(&name).unwrap().answered(version, revision);
            }
            // Nobody else writes it: what was answered is what there is.
            Err(kube::Error::Api(status)) if status.code < 500 => panic!("{name}: {status}"),
            Err(_) => return,
        }
    }
}

/// What a watch has seen.
struct Seen {
    /// The last revision.
    at: u64,
    /// Changes by object.
    changes: BTreeMap<String, Vec<(Option<u64>, u64)>>,
}

/// Follows the objects from server to server; ends when it has seen one of the name `end`.
async fn follow(mut clients: watch::Receiver<Option<Client>>, start: u64) -> Seen {
    let mut seen = Seen { at: start, changes: BTreeMap::new() };
    loop {
        let client = clients.borrow_and_update().clone();
        if let Some(client) = client
            && follow_one(&client, &mut seen).await
        {
            return seen;
        }
        // The same server may have refused for the moment.
        let _ = tokio::time::timeout(Duration::from_millis(50), clients.changed()).await;
    }
}

/// Follows one server; whether it is the end.
async fn follow_one(client: &Client, seen: &mut Seen) -> bool {
    let path =
        format!("/api/v1/namespaces/default/configmaps?watch=true&resourceVersion={}", seen.at);
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let Ok(body) = client.request_stream(request).await else { return false };
    let mut lines = body.lines().map_ok(|line| serde_json::from_str::<Value>(&line));
    // A line that the kill cut off is no event.
    while let Some(Ok(Ok(event))) = lines.next().await {
        let object: ConfigMap = match event["type"].as_str() {
            Some("ERROR") => panic!("a watch from {} is told {}", seen.at, event["object"]),
            _ => serde_json::from_value(event["object"].clone()).unwrap(),
        };
        let Some((name, version, revision)) = read(&object) else {
            if object.name_any() == "end" {
                return true;
            }
            continue;
        };
        assert!(revision > seen.at, "{name} at {revision} after {}", seen.at);
        seen.at = revision;
        let there = (event["type"] != "DELETED").then_some(version);
        let changes = seen.changes.entry(name).or_default();
        let kind = match (changes.last().is_some_and(|last| last.0.is_some()), there) {
            (false, Some(_)) => "ADDED",
            (true, Some(_)) => "MODIFIED",
            (_, None) => "DELETED",
        };
        assert_eq!(event["type"], kind, "after {changes:?}");
        changes.push((there, revision));
    }
    false
}

/// Everything that was answered is there, whole, and no revision went back. Returns the newest.
async fn settle(client: &Client, objects: &Mutex<Objects>, newest: u64) -> u64 {
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let list = api.list(&ListParams::default()).await.unwrap();
    let mut found: BTreeMap<String, (u64, u64)> = list
        .items
        .iter()
        .filter_map(read)
        .map(|(name, version, revision)| (name, (version, revision)))
        .collect();
    let mut objects = objects.lock().unwrap();
    let mut told = newest;
    for (name, known) in objects.iter_mut() {
        known.settle(name, found.remove(name));
        told = told.max(known.changes.iter().filter_map(|change| change.1).max().unwrap_or(0));
    }
    assert!(found.is_empty(), "nobody wrote {found:?}");
    let now = list.metadata.resource_version.unwrap().parse().unwrap();
    assert!(now >= told, "revisions went back from {told} to {now}");
    now
}

/// Has a server written to, and kills it at a point that chance names.
async fn round(
    home: &Home,
    clients: &watch::Sender<Option<Client>>,
    objects: &Arc<Mutex<Objects>>,
    newest: u64,
    dice: &mut Dice,
) -> u64 {
    if dice.below(4) == 0 {
        // On the way up, too.
        let server = home.start();
        tokio::time::sleep(Duration::from_millis(dice.below(300))).await;
        drop(server);
    }
    let mut server = home.start();
    let client = home.ready(&mut server).await;
    let newest = settle(&client, objects, newest).await;
    clients.send_replace(Some(client.clone()));
    let writes = share(WRITES);
    let left = Arc::new(AtomicU64::new(writes));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (client, objects, left) = (client.clone(), Arc::clone(objects), Arc::clone(&left));
        writers.spawn(keep_writing(client, writer, objects, left, Dice::of(dice.below(1 << 20))));
    }
    let kill_at = dice.below(writes);
    let deadline = Instant::now() + 3 * LIMIT;
    while left.load(Ordering::Relaxed) > kill_at {
        assert!(Instant::now() < deadline, "writes stand still: {}", home.told());
        tokio::time::sleep(Duration::from_micros(dice.below(2_000))).await;
    }
    drop(server);
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    newest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_kill_9_loses_nothing_tears_nothing_and_watches_go_on() {
    let (home, mut dice) = (Home::new(), Dice::of(0));
    let objects = Arc::<Mutex<Objects>>::default();
    let clients = watch::Sender::new(None);
    let start = {
        let mut server = home.start();
        settle(&home.ready(&mut server).await, &objects, 0).await
    };
    let mut watches = JoinSet::new();
    for _ in 0..WATCHES {
        watches.spawn(follow(clients.subscribe(), start));
    }
    let mut newest = start;
    for _ in 0..share(KILLS) {
        newest = round(&home, &clients, &objects, newest, &mut dice).await;
    }
    let mut server = home.start();
    let client = home.ready(&mut server).await;
    settle(&client, &objects, newest).await;
    clients.send_replace(Some(client.clone()));
    let end = serde_json::from_value(json!({"metadata": {"name": "end"}})).unwrap();
    let api = Api::<ConfigMap>::default_namespaced(client);
    api.create(&PostParams::default(), &end).await.unwrap();

    let objects = std::mem::take(&mut *objects.lock().unwrap());
    let answered: usize = objects.values().map(|known| known.changes.len()).sum();
    let mut ended = 0;
    while let Some(seen) = tokio::time::timeout(LIMIT, watches.join_next()).await.unwrap() {
        let seen = seen.unwrap().changes;
        for (name, known) in &objects {
            let seen = seen.get(name).map_or(&[][..], Vec::as_slice);
            compare(name, &known.changes, seen);
        }
        ended += 1;
    }
    assert_eq!(ended, WATCHES);
    eprintln!("{} kills, {answered} changes, {WATCHES} watches", share(KILLS));
}

/// Each change once and in order, at the revision that was told.
fn compare(name: &str, changes: &[Change], seen: &[(Option<u64>, u64)]) {
    let versions = |change: &Change| change.0;
    let wanted: Vec<_> = changes.iter().map(versions).collect();
    let found: Vec<_> = seen.iter().map(|change| change.0).collect();
    assert_eq!(wanted, found, "{name}: a gap, or a repeat");
    for ((version, told), (_, revision)) in changes.iter().zip(seen) {
        assert!(told.is_none_or(|told| told == *revision), "{name}: {version:?} at {revision}");
    }
}
