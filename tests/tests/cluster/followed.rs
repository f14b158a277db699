//! What `mizzen flows --follow` tells of a service while its pods are replaced: every connection that
//! was made, once, with a pod of the service behind it, and nothing else.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use xtask::cluster::{
    exec::{self, Place},
    traffic, up,
};

use super::World;

/// Follows the service `default/hello` on a node.
pub(super) struct Followed {
    node: String,
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    reader: Option<JoinHandle<()>>,
    /// What happened until then is not looked at.
    since: Timestamp,
}

/// When an event was.
fn time(event: &Value) -> Option<Timestamp> {
    event["time"].as_str()?.parse().ok()
}

impl Followed {
    /// Begins, and returns when it is known to.
    pub(super) fn start(world: &World, node: &str) -> Result<Self> {
        let place = Place::Host(node.to_owned());
        let argv = ["mizzen", "flows", "--follow", "--service", "default/hello", "-o", "json"];
        let argv = argv.map(str::to_owned);
        let mut child = exec::command(&world.layout, &place, &argv)?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start mizzen")?;
        let said = BufReader::new(child.stdout.take().context("its output")?);
        let lines = Arc::<Mutex<Vec<Value>>>::default();
        let kept = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                let parsed = serde_json::from_str(&line).unwrap_or(Value::String(line));
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(parsed);
            }
        });
        let mut followed = Self {
            node: node.to_owned(),
            child,
            lines,
            reader: Some(reader),
            since: Timestamp::MIN,
        };
        followed.meets_a_connection(world)?;
        followed.since = Timestamp::now();
        Ok(followed)
    }

    fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes connections until one of them is told of: what was before it is told by then.
    fn meets_a_connection(&self, world: &World) -> Result<()> {
        let begun = Timestamp::now();
        let (ips, _) = super::traffic::hello(world)?;
        let url = format!("http://{}/", traffic::host(&ips[0]));
        up::wait(&world.layout, "a connection to be told of", || {
            traffic::get(&world.layout, &Place::Host(self.node.clone()), &url)?;
            let lines = self.lines();
            let told = lines.iter().filter_map(time).any(|at| at > begun);
            Ok(if told { Ok(()) } else { Err(format!("{} lines", lines.len())) })
        })
    }

    /// Ends, when all that has happened was told; the events since it began.
    pub(super) fn finish(mut self, world: &World) -> Result<Vec<Value>> {
        let until = Timestamp::now();
        let met = self.meets_a_connection(world);
        self.child.kill()?;
        self.child.wait()?;
        let lines = self.lines();
        met?;
        if let Some(reader) = self.reader.take() {
            ensure!(reader.join().is_ok(), "the reader panicked");
        }
        let lost = lines.iter().find(|line| line["time"].is_null());
        ensure!(lost.is_none(), "{}: {lost:?}", self.node);
        let of_the_time =
            |event: &Value| time(event).is_some_and(|at| at > self.since && at < until);
        Ok(lines.into_iter().filter(of_the_time).collect())
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // It may have ended.
        let _gone = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// Calls of a service that are not the load's.
const OTHERS: u64 = 5;

/// That a node told of each TCP connection of its sockets to the address that was made, and of next to
/// none beside (whoever else of the node called it), and that all that it told of led to a pod of the
/// service.
pub(super) fn agrees(events: &[Value], dialled: &str, made: u64) -> Result<()> {
    for event in events {
        let pod = event["backendPod"].as_str().unwrap_or_default();
        ensure!(event["verdict"] == "translated", "not as it happened: {event:#}");
        ensure!(pod.starts_with("default/hello-"), "no pod of the service: {event:#}");
        ensure!(event["service"] == "default/hello", "{event:#}");
    }
    let of_sockets = |event: &&Value| {
        event["path"] == "socket" && event["protocol"] == "TCP" && event["destination"] == dialled
    };
    let told: Vec<&Value> = events.iter().filter(of_sockets).collect();
    ensure!(
        (made..=made + OTHERS).contains(&(told.len() as u64)),
        "{made} connections to {dialled} were made, {} were told of",
        told.len()
    );
    let pods: std::collections::BTreeSet<_> =
        told.iter().filter_map(|event| event["backendPod"].as_str()).collect();
    // Two of two nodes before, and two after each time that they were replaced.
    ensure!(pods.len() > 2, "pods were replaced, and all went to {pods:?}");
    ensure!(told.iter().all(|event| event["source"].as_str().is_some_and(|it| it.contains(':'))));
    Ok(())
}

/// That flows of clients outside were told of, as whom the pods saw them.
pub(super) fn tells_of_packets(events: &[Value], dialled: &str) -> Result<()> {
    let of_packets = |event: &&Value| {
        event["path"] == "packet"
            && event["destination"] == dialled
            && event["masqueraded"].as_str().is_some_and(|seen| !seen.is_empty())
    };
    ensure!(events.iter().filter(of_packets).count() > 10, "few flows to {dialled} were told of");
    Ok(())
}
