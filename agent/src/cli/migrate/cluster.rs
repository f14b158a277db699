//! `mizzen migrate --kubeconfig FILE`: a whole cluster, by its API server alone.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use kube::Client;
use serde::Serialize;

use super::{
    super::{
        inspect::{Format, Outcome},
        signals::Signals,
    },
    print, text,
};
use crate::{
    kube::{
        client::ApiServers,
        migration::{
            carry_out::{Event, go, release},
            core_dns::CoreDns,
            direction::{Run, Stand},
            look::{Dns, NodeSeen, Proxy, Seen},
            plan::{Next, Step, Wait, Way, next, progress, steps},
        },
    },
    migrate::plan::Obstacle,
    model::node::KubeProxy,
};

/// Characters of the bar.
const BAR: usize = 24;
/// The width of a terminal's line.
const LINE: usize = 78;

/// Which cluster, and how much of it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Cluster {
    /// A whole cluster: the kubeconfig of somebody who may change Nodes and kube-proxy's DaemonSet
    #[arg(long, global = true, value_name = "FILE", help_heading = "A whole cluster")]
    kubeconfig: Option<PathBuf>,
    /// A whole cluster: that of the pod in which this runs, by its service account
    #[arg(
        long = "in-cluster",
        global = true,
        conflicts_with = "kubeconfig",
        help_heading = "A whole cluster"
    )]
    of_this_pod: bool,
    /// Of a cluster only this node (repeatable); the others stay as they are
    #[arg(long, global = true, value_name = "NAME", help_heading = "A whole cluster")]
    node: Vec<String>,
    /// Of a cluster also CoreDNS: scaled to no pods when every node's agent answers names, or back
    #[arg(long, global = true, conflicts_with = "node", help_heading = "A whole cluster")]
    dns: bool,
    /// Of a cluster, how many seconds anything may take that is waited for
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 300,
          value_parser = clap::value_parser!(u64).range(1..=86_400), help_heading = "A whole cluster")]
    timeout: u64,
    /// Of a cluster, whether or not another run goes the other way: that one ends
    #[arg(long, global = true, help_heading = "A whole cluster")]
    turn_round: bool,
}

/// What is printed with `-o json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    /// What is there, at the end.
    #[serde(flatten)]
    seen: &'a Seen,
    /// What was done, and is left to be done.
    steps: Vec<String>,
    /// How many of the steps were done.
    done: usize,
    /// What did not come in time.
    waits: Option<&'a Wait>,
    /// Nodes that are not ready, and were left as they are.
    not_ready: &'a [String],
    /// What is in the way.
    obstacles: &'a [Obstacle],
    /// What else is to be known.
    notes: Vec<String>,
}

impl Cluster {
    /// Whether a cluster is meant, and not this node.
    pub(super) fn is_meant(&self) -> bool {
        self.kubeconfig.is_some() || self.of_this_pod
    }

    /// Goes the way, or says how it would be gone.
    pub(super) fn execute(&self, way: Way, act: bool, format: Format) -> anyhow::Result<Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        runtime.block_on(self.migrate(way, act, format))
    }

    async fn migrate(&self, way: Way, act: bool, format: Format) -> anyhow::Result<Outcome> {
        let servers = ApiServers::new(self.kubeconfig.as_deref(), &[]).await?;
        let client = servers.clients()?.pick(0).client;
        let seen = Seen::now(&client, self.dns).await?;
        let is_text = format == Format::Text;
        if is_text {
            print(&heading(&seen, way, &self.node, act));
        }
        let mut did = Vec::new();
        let mut run = Run::new(way, this_process(), self.turn_round);
        let (seen, end) = if act {
            let mut bar = Bar::new(way, &self.node, is_text);
            let outcome = self.lead(&client, &mut run, |event| {
                bar.tell(event);
                if let Event::Did(step) = event {
                    did.push(step.words());
                    if is_text {
                        bar.clear();
                        print(&format!("  done: {}\n", step.words()));
                    }
                }
            });
            let outcome = outcome.await;
            bar.clear();
            if let Some(proxy) = seen.proxy().filter(|_| run.has_begun()) {
                release(&client, proxy, way).await;
            }
            outcome?
        } else {
            let end = planned(&seen, &run, &self.node);
            (seen, end)
        };
        self.end(&seen, &end, way, act, did, format)
    }

    /// Goes the way, until this process is told to stop.
    async fn lead(
        &self,
        client: &Client,
        run: &mut Run,
        tell: impl FnMut(Event<'_>),
    ) -> anyhow::Result<(Seen, Next)> {
        let mut signals = Signals::listen()?;
        let patience = Duration::from_secs(self.timeout);
        tokio::select! {
            outcome = go(client, run, &self.node, self.dns, patience, tell) => Ok(outcome?),
            () = signals.told_to_stop() => anyhow::bail!(
                "told to stop; what was done before stays, and running it again goes on from there"
            ),
        }
    }

    /// Says how it ended.
    fn end(
        &self,
        seen: &Seen,
        end: &Next,
        way: Way,
        act: bool,
        did: Vec<String>,
        format: Format,
    ) -> anyhow::Result<Outcome> {
        let left = steps(seen, way, &self.node);
        let not_ready = if let Next::Left(nodes) = end { &nodes[..] } else { &[] };
        let obstacles = if let Next::Obstructed(obstacles) = end { &obstacles[..] } else { &[] };
        let waits = if let Next::Wait(wait) = end { Some(wait).filter(|_| act) } else { None };
        if format == Format::Json {
            let done = did.len();
            let steps = did.into_iter().chain(left.iter().map(Step::words)).collect();
            let notes = notes(seen, way);
            let report = Report { seen, steps, done, waits, not_ready, obstacles, notes };
            print(&format!("{}\n", serde_json::to_string(&report)?));
        } else {
            print(&ending(seen, end, way, act, left.is_empty()));
        }
        let well = obstacles.is_empty() && waits.is_none() && not_ready.is_empty();
        Ok(if well { Outcome::Ok } else { Outcome::Degraded })
    }
}

/// By what others know this run.
fn this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("process {} on {}", std::process::id(), host.trim())
}

/// What a run that began now would come to.
fn planned(seen: &Seen, run: &Run, only: &[String]) -> Next {
    let next = next(seen, run.way(), only);
    let said = seen.proxy().and_then(|proxy| proxy.direction.as_ref());
    match (next, run.stand(said, seen.now_s)) {
        (Next::Do(_) | Next::Wait(_), Stand::Contested(obstacle)) => {
            Next::Obstructed(vec![obstacle])
        }
        (next, _) => next,
    }
}

/// What is there, and what would be done.
fn heading(seen: &Seen, way: Way, only: &[String], act: bool) -> String {
    let mut lines: Vec<_> = seen.proxies.iter().map(proxy).collect();
    if let Some(dns) = &seen.dns {
        let addresses = dns.addresses.join(", ");
        lines.push(format!("cluster DNS: {addresses}, {} pods that are no agent's", dns.pods));
    }
    let deployments = seen.core_dns.iter().flatten();
    lines.extend(deployments.map(|core_dns| {
        let CoreDns { namespace, name, replicas, .. } = core_dns;
        format!("CoreDNS: Deployment {namespace}/{name}, {replicas} pods")
    }));
    let (done, all) = progress(seen, way, only);
    let end = if way == Way::There { "Mizzen's alone" } else { "kube-proxy's" };
    lines.push(format!("nodes whose services are {end}: {done} of {all}"));
    let left = steps(seen, way, only);
    if !act && !left.is_empty() {
        lines.push("To be done:".to_owned());
        let numbered = left.iter().enumerate();
        lines.extend(numbered.map(|(nth, step)| format!("  {}. {}", nth + 1, step.words())));
    }
    text(lines)
}

fn proxy(proxy: &Proxy) -> String {
    let mode = if proxy.mode.is_empty() { "its default mode" } else { &proxy.mode };
    let map = proxy.config_map.as_deref();
    let map = map.map_or_else(String::new, |map| format!(", configured by ConfigMap {map}"));
    let Proxy { namespace, name, .. } = proxy;
    format!("kube-proxy: DaemonSet {namespace}/{name} in {mode}{map}")
}

/// What an operator should know besides: of the cluster, and of each node what its agent says.
fn notes(seen: &Seen, way: Way) -> Vec<String> {
    let mut notes: Vec<_> = seen
        .proxies
        .iter()
        .flat_map(|proxy| &proxy.without_effect)
        .map(|field| format!("Mizzen does not follow of kube-proxy's configuration: {field}"))
        .collect();
    notes.extend(seen.dns.as_ref().and_then(|dns| of_core_dns(seen, dns, way)));
    notes.extend(seen.nodes.iter().flat_map(said));
    let connected = seen.nodes.iter().filter(|node| node.connects_pods);
    let connected: Vec<_> = connected.map(|node| node.name.as_str()).collect();
    if way == Way::There && !connected.is_empty() {
        notes.push(format!(
            "Mizzen connects the pods of {}: `rollback` is refused there until another CNI plugin does",
            connected.join(", ")
        ));
    }
    notes
}

/// What is to be known of CoreDNS.
fn of_core_dns(seen: &Seen, dns: &Dns, way: Way) -> Option<String> {
    if seen.core_dns.is_none() {
        let stays = "CoreDNS goes on to run, and answers where no agent does (`dns: false`); where \
                     agents answer, `mizzen migrate apply --dns` scales it to no pods";
        return (dns.pods > 0).then(|| stays.to_owned());
    }
    (way == Way::There && dns.by_core_dns).then(|| {
        "the Service kube-dns leads to CoreDNS's pods: while an agent is away, its node's clients are \
         answered by the other nodes' only where it leads to the agents (`kubectl replace -f \
         deploy/cluster-dns.yaml`)"
            .to_owned()
    })
}

/// What a node's agent did there, or found, where it is done.
fn said(node: &NodeSeen) -> impl Iterator<Item = String> {
    let ends = [KubeProxy::Removed, KubeProxy::Returning];
    let phase = node.phase.filter(|phase| ends.contains(phase));
    let report = node.report.iter().filter(move |it| phase.is_some_and(|phase| it.is_done(phase)));
    report.flat_map(|report| &report.said).map(|said| format!("{}: {said}", node.name))
}

/// What is in the way, and what is to be known.
fn ending(seen: &Seen, end: &Next, way: Way, act: bool, at_end: bool) -> String {
    let mut lines = Vec::new();
    match end {
        Next::Obstructed(obstacles) => {
            let in_the_way = obstacles.iter();
            lines.extend(
                in_the_way.map(|it| format!("in the way: {}\n  -> {}", it.what, it.remedy)),
            );
        }
        Next::Wait(wait) if act => {
            lines.push(format!("did not come in time: {}", waited(wait)));
            lines.push("  -> what was done stays; run it again to go on from here".to_owned());
        }
        Next::Left(nodes) => {
            lines.push(format!("left as they are, since they are not ready: {}", nodes.join(", ")));
            lines.push(
                "  -> run it again when they are (`kubectl get nodes`); until then kube-proxy's \
                 DaemonSet stays restricted by the nodes' labels"
                    .to_owned(),
            );
        }
        Next::Do(_) | Next::Wait(_) | Next::Done => {}
    }
    let well = lines.is_empty();
    lines.extend(notes(seen, way).iter().map(|note| format!("note: {note}")));
    if well {
        match (at_end, act) {
            (true, _) => lines.push("There is nothing left to do.".to_owned()),
            (false, true) => {}
            (false, false) => {
                lines.push("Nothing is in the way: `mizzen migrate apply` does it.".to_owned());
            }
        }
    }
    text(lines)
}

/// Where, for what, and why not yet.
fn waited(wait: &Wait) -> String {
    let at = if wait.node.is_empty() { String::new() } else { format!("{}: ", wait.node) };
    let why =
        if wait.said.is_empty() { String::new() } else { format!(" ({})", wait.said.join("; ")) };
    format!("{at}{}{why}", wait.what)
}

/// How far it is: on a terminal one line that is written again and again, elsewhere a line for each
/// thing that is waited for.
struct Bar<'a> {
    way: Way,
    only: &'a [String],
    shown: bool,
    terminal: bool,
    part: (usize, usize),
    said: String,
}

impl<'a> Bar<'a> {
    fn new(way: Way, only: &'a [String], shown: bool) -> Self {
        let (terminal, said) = (stderr().is_terminal(), String::new());
        Self { way, only, shown, terminal, part: (0, 0), said }
    }

    fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Looked(seen) => self.part = progress(seen, self.way, self.only),
            Event::Waits(wait) if self.shown => {
                let said = waited(wait);
                if self.terminal {
                    write(&format!("\r\x1b[K{}", line(self.part, &said)));
                } else if said != self.said {
                    write(&format!("  waiting for {said}\n"));
                }
                self.said = said;
            }
            Event::Waits(_) | Event::Did(_) => {}
        }
    }

    fn clear(&self) {
        if self.shown && self.terminal {
            write("\r\x1b[K");
        }
    }
}

/// A terminal that is gone is no failure.
fn write(text: &str) {
    let _seen = write!(stderr(), "{text}").and_then(|()| stderr().flush());
}

/// `[########----------------] 2/6  node-3: …`, which fits a line.
fn line((done, all): (usize, usize), what: &str) -> String {
    let filled = (BAR * done).checked_div(all).unwrap_or(0);
    let bar = format!("{}{}", "#".repeat(filled), "-".repeat(BAR - filled));
    format!("[{bar}] {done}/{all}  {what}").chars().take(LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::migration::Report;

    #[test]
    fn the_bar_shows_how_much_is_done_and_fits_a_line() {
        assert_eq!(line((0, 0), "x"), format!("[{}] 0/0  x", "-".repeat(BAR)));
        assert_eq!(line((1, 2), ""), format!("[{}{}] 1/2  ", "#".repeat(12), "-".repeat(12)));
        assert!(line((3, 3), "").starts_with(&format!("[{}]", "#".repeat(BAR))));
        assert_eq!(line((1, 2), &"ä".repeat(100)).chars().count(), LINE);
    }

    #[test]
    fn what_each_agent_says_of_its_node_is_told() {
        let node = |name: &str, phase: KubeProxy, about: KubeProxy| {
            let said = vec![format!("chain {name} stays")];
            let about = about.value().to_owned();
            let report = Report { about, done: true, said, at: 0, connects_pods: None };
            let (name, report) = (name.to_owned(), Some(report));
            let (ready, phase, connects_pods) = (true, Some(phase), false);
            NodeSeen {
                name,
                ready,
                phase,
                report,
                proxy_pods: 0,
                proxy_ready: 0,
                connects_pods,
                names_asked: None,
                names_answer: None,
            }
        };
        let nodes = vec![
            node("a", KubeProxy::Removed, KubeProxy::Removed),
            node("b", KubeProxy::Leaving, KubeProxy::Runs),
            node("c", KubeProxy::Removed, KubeProxy::Leaving),
            node("d", KubeProxy::Returning, KubeProxy::Returning),
        ];
        let (proxies, loose) = (Vec::new(), Vec::new());
        let mut seen = Seen { proxies, loose, nodes, dns: None, core_dns: None, now_s: 0 };
        let expected = ["a: chain a stays", "d: chain d stays"];
        assert_eq!(notes(&seen, Way::There), expected);
        let text = ending(&seen, &Next::Done, Way::There, true, false);
        assert_eq!(text, expected.map(|note| format!("note: {note}\n")).concat());
        seen.nodes[2].connects_pods = true;
        assert!(notes(&seen, Way::There)[2].contains("pods of c: `rollback` is refused"));
        assert_eq!(notes(&seen, Way::Back), expected);
    }

    #[test]
    fn what_is_waited_for_is_said_with_the_reason() {
        let wait = |node: &str, said: &[&str]| Wait {
            node: node.to_owned(),
            what: "a thing".to_owned(),
            said: said.iter().map(|&text| text.to_owned()).collect(),
        };
        assert_eq!(waited(&wait("n", &["a", "b"])), "n: a thing (a; b)");
        assert_eq!(waited(&wait("", &[])), "a thing");
    }
}
