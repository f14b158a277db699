//! Many watches, and changes of which some of them hear: from just before the write to the
//! delivery, and what each delivery costs the server.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use etcd_client::WatchOptions;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::sync::mpsc;

use crate::Watches;
use crate::sample::{self, Sample, count};

/// How many watches share a connection.
const PER_CONNECTION: usize = 200;
/// For how long all deliveries may take after the last change.
const LATE: Duration = Duration::from_secs(30);

/// When each change was sent.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<Instant>>>);

impl Sent {
    fn now(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
    }

    /// How long ago a change was sent, by its number at the end of a name.
    fn since(&self, name: &str) -> Option<Duration> {
        let number: usize = name.rsplit('-').next()?.parse().ok()?;
        let sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sent.get(number).map(Instant::elapsed)
    }
}

/// Whether a watch is one of those that hear of changes.
fn group(watcher: usize, matching: usize) -> String {
    if watcher < matching { "heard".to_owned() } else { format!("quiet-{watcher}") }
}

/// Makes the changes at their rate, and collects what is delivered.
async fn drive<F: Future<Output = Result<()>>>(
    options: &Watches,
    sent: Sent,
    mut delivered: mpsc::UnboundedReceiver<Duration>,
    change: impl Fn(usize) -> F,
) -> Result<Sample> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.rate);
    let before = cpu_time(options.pid)?;
    let began = Instant::now();
    let wanted = options.changes * options.matching;
    let collect = async {
        let mut latencies = Vec::with_capacity(wanted);
        while latencies.len() < wanted {
            let next = tokio::time::timeout(LATE, delivered.recv()).await;
            latencies.push(next.context("deliveries are missing")?.context("watches ended")?);
        }
        anyhow::Ok(latencies)
    };
    let work = async {
        for number in 0..options.changes {
            ticks.tick().await;
            sent.now();
            change(number).await?;
        }
        anyhow::Ok(())
    };
    let (latencies, ()) = tokio::try_join!(collect, work)?;
    let took = began.elapsed();
    let spent = cpu_time(options.pid)?.saturating_sub(before);
    let mut sample = Sample::of(wanted, took, latencies);
    sample.cpu_us = spent.as_secs_f64() * 1e6 / count(wanted);
    Ok(sample)
}

/// Watches of ConfigMaps by a label.
pub(crate) async fn api(file: &Path, options: &Watches) -> Result<Sample> {
    let (sent, run_id) = (Sent::default(), std::process::id());
    let (deliver, delivered) = mpsc::unbounded_channel();
    let mut client = sample::client(file).await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let from = maps.list(&kube::api::ListParams::default().limit(1)).await?.metadata;
    let from = from.resource_version.context("a list without version")?;
    for watcher in 0..options.watchers {
        if watcher % PER_CONNECTION == 0 {
            client = sample::client(file).await?;
        }
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let group = format!("group={}-{run_id}", group(watcher, options.matching));
        let params = WatchParams::default().labels(&group).timeout(290);
        let mut stream = Box::pin(maps.watch(&params, &from).await?);
        let (sent, deliver) = (sent.clone(), deliver.clone());
        tokio::spawn(async move {
            while let Some(Ok(event)) = stream.next().await {
                if let WatchEvent::Added(map) = event
                    && let Some(took) = sent.since(&map.name_any())
                {
                    let _ = deliver.send(took);
                }
            }
        });
    }
    drive(options, sent, delivered, |number| {
        let maps = maps.clone();
        async move {
            let map: ConfigMap = serde_json::from_value(json!({
                "metadata": {
                    "name": format!("w-{run_id}-{number}"),
                    "labels": {"group": format!("heard-{run_id}")},
                },
                "data": {"a": "x".repeat(1024)},
            }))?;
            Ok(maps.create(&PostParams::default(), &map).await.map(drop)?)
        }
    })
    .await
}

/// Watches of etcd by a prefix.
pub(crate) async fn etcd(url: &str, options: &Watches) -> Result<Sample> {
    let (sent, run_id) = (Sent::default(), std::process::id());
    let (deliver, delivered) = mpsc::unbounded_channel();
    let mut client = sample::etcd(url).await?;
    let writer = client.kv_client();
    for watcher in 0..options.watchers {
        if watcher % PER_CONNECTION == 0 {
            client = sample::etcd(url).await?;
        }
        let prefix = format!("/{}-{run_id}/", group(watcher, options.matching));
        let watch = WatchOptions::new().with_prefix();
        let mut stream = client.watch_client().watch(prefix, Some(watch)).await?;
        let created = stream.message().await?;
        ensure!(created.is_some_and(|created| created.created()), "etcd refused a watch");
        let (sent, deliver) = (sent.clone(), deliver.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                let keys = message.events().iter().filter_map(|event| event.kv());
                let names = keys.filter_map(|pair| pair.key_str().ok());
                for took in names.filter_map(|name| sent.since(name)) {
                    let _ = deliver.send(took);
                }
            }
        });
    }
    drive(options, sent, delivered, |number| {
        let mut writer = writer.clone();
        async move {
            let key = format!("/heard-{run_id}/w-{number}");
            Ok(writer.put(key, "x".repeat(1024), None).await.map(drop)?)
        }
    })
    .await
}

/// The CPU time that a process has used.
fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
    let (_, fields) = text.rsplit_once(')').context("no such form of /proc/PID/stat")?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
    let per_second = u64::try_from(per_second.context("no clock ticks")?)?;
    Ok(Duration::from_millis(ticks * 1000 / per_second))
}
