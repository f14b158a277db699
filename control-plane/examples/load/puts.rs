//! Writes by many at once; and one who reads meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use mizzen_control_plane::store::{Action, Embedded, Expect, Op, Options, Store};
use serde_json::json;
use tokio::task::JoinSet;

use crate::Puts;
use crate::sample::{self, Sample};

/// How many writers share a connection: an HTTP/2 server allows so many requests at a time.
const PER_CONNECTION: usize = 32;

/// What a writer has done: how long each write took.
type Latencies = Vec<Duration>;

/// Has every writer write until the time is over.
async fn run<W, F>(time: Duration, writers: Vec<W>) -> Result<(Duration, Latencies)>
where
    W: Fn(usize) -> F + Send + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let began = Instant::now();
    let mut running = JoinSet::new();
    for write in writers {
        running.spawn(async move {
            let mut latencies = Latencies::new();
            while began.elapsed() < time {
                let start = Instant::now();
                write(latencies.len()).await?;
                latencies.push(start.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    let mut all = Latencies::new();
    while let Some(done) = running.join_next().await {
        all.extend(done??);
    }
    Ok((began.elapsed(), all))
}

/// Reads one after the other until it is told to stop; how long each took.
async fn reads<F: Future<Output = Result<()>>>(
    stop: Arc<AtomicBool>,
    read: impl Fn() -> F,
) -> Result<Latencies> {
    let mut latencies = Latencies::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        read().await?;
        latencies.push(start.elapsed());
    }
    Ok(latencies)
}

/// Commits of the embedded store.
pub(crate) async fn embedded(folder: &Path, options: &Puts) -> Result<Sample> {
    let store: Arc<dyn Store> = Arc::new(Embedded::open(folder, &Options::default())?);
    let value = Bytes::from(vec![b'x'; options.bytes]);
    let writer = |writer: usize| {
        let (store, value) = (Arc::clone(&store), value.clone());
        move |number: usize| {
            let (store, value) = (Arc::clone(&store), value.clone());
            async move {
                let key = format!("core/things/{writer}/{number}").into();
                let op = Op { key, expect: Expect::Any, action: Action::Put(value) };
                Ok(store.commit(vec![op]).await.map(drop)?)
            }
        }
    };
    let writers = (0..options.writers).map(writer).collect();
    let (took, latencies) = run(options.time(), writers).await?;
    Ok(Sample::of(latencies.len(), took, latencies))
}

/// Puts of etcd. With a reader, the latencies are those of its ranges of one key.
pub(crate) async fn etcd(url: &str, options: &Puts, with_reader: bool) -> Result<Sample> {
    let value = vec![b'x'; options.bytes];
    let mut reader = sample::etcd(url).await?;
    reader.put("/things/read", value.clone(), None).await?;
    let mut writers = Vec::new();
    let mut client = sample::etcd(url).await?;
    for writer in 0..options.writers {
        if writer % PER_CONNECTION == 0 {
            client = sample::etcd(url).await?;
        }
        let (client, value) = (client.kv_client(), value.clone());
        writers.push(move |number: usize| {
            let (mut client, value) = (client.clone(), value.clone());
            async move {
                let key = format!("/things/{writer}/{number}");
                Ok(client.put(key, value, None).await.map(drop)?)
            }
        });
    }
    let stop = Arc::new(AtomicBool::new(!with_reader));
    let kv = reader.kv_client();
    let reading = tokio::spawn(reads(Arc::clone(&stop), move || {
        let mut kv = kv.clone();
        async move { Ok(kv.get("/things/read", None).await.map(drop)?) }
    }));
    let (took, latencies) = run(options.time(), writers).await?;
    stop.store(true, Ordering::Relaxed);
    let read = reading.await??;
    Ok(Sample::of(latencies.len(), took, if with_reader { read } else { latencies }))
}

/// Creations of ConfigMaps. The latencies are those of a reader of one.
pub(crate) async fn api(file: &Path, options: &Puts) -> Result<Sample> {
    let maps: Api<ConfigMap> = Api::default_namespaced(sample::client(file).await?);
    // Each run has names of its own.
    let run_id = std::process::id();
    let map = move |name: &str, bytes: usize| {
        let data = "x".repeat(bytes);
        serde_json::from_value::<ConfigMap>(
            json!({"metadata": {"name": name}, "data": {"a": data}}),
        )
    };
    let read = format!("read-{run_id}");
    maps.create(&PostParams::default(), &map(&read, options.bytes)?).await?;
    let mut writers = Vec::new();
    let mut client = sample::client(file).await?;
    for writer in 0..options.writers {
        if writer % PER_CONNECTION == 0 {
            client = sample::client(file).await?;
        }
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let bytes = options.bytes;
        writers.push(move |number: usize| {
            let maps = maps.clone();
            let map = map(&format!("m-{run_id}-{writer}-{number}"), bytes);
            async move { Ok(maps.create(&PostParams::default(), &map?).await.map(drop)?) }
        });
    }
    let stop = Arc::new(AtomicBool::new(false));
    let reading = tokio::spawn(reads(Arc::clone(&stop), move || {
        let (maps, read) = (maps.clone(), read.clone());
        async move { Ok(maps.get(&read).await.map(drop)?) }
    }));
    let (took, created) = run(options.time(), writers).await?;
    stop.store(true, Ordering::Relaxed);
    Ok(Sample::of(created.len(), took, reading.await??))
}
