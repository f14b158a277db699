//! A server at its place: started by hand with its own configuration, on one CPU.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result};

use super::{
    check,
    packages::Packages,
    pair::{self, ADDRESS, At, CLIENT, Pair, UPSTREAM_PORT},
    peers::{self, File, Peer},
    questions,
};
use crate::{
    bench::{triple::ip, world::World},
    cluster::{cgroup, process},
};

/// What Mizzen is called in the figures.
pub const MIZZEN: &str = "mizzen";

/// A server that answers.
#[derive(Clone, Debug)]
pub struct Seat {
    /// What it is called in the figures.
    pub label: &'static str,
    /// Where.
    pub pair: Pair,
    /// Its process.
    pub process: process::Started,
}

impl Seat {
    /// Starts another server and waits until it says what it must.
    pub fn of_peer(world: &mut World, packages: &Packages, peer: Peer) -> Result<Self> {
        let pair = place(world, packages)?;
        let server = pair.netns(At::Server);
        ip(&format!("-n {server} addr add {ADDRESS}/32 dev lo"))?;
        let folder = pair.folder()?;
        let kubeconfig = pair.layout.kubeconfig().display().to_string();
        let shown = folder.display().to_string();
        write(&folder, peer.files(&shown, &kubeconfig))?;
        // CoreDNS is in no package of Debian's.
        let (program, mut env) = match peer {
            Peer::CoreDns => (peer.program().into(), Vec::new()),
            _ => (packages.program(peer.program()).display().to_string(), packages.env()),
        };
        env.push(("GOMAXPROCS".into(), "1".into()));
        let argv = std::iter::once(program).chain(peer.arguments(&shown)).collect();
        let process = pair.start(At::Server, peer.label(), argv, env)?;
        Self { label: peer.label(), pair, process }.that_answers()
    }

    /// Starts the agent with its DNS role alone, and waits until it says what it must.
    pub fn of_mizzen(world: &mut World, packages: &Packages) -> Result<Self> {
        let pair = place(world, packages)?;
        let process = start_agent(&pair)?;
        Self { label: MIZZEN, pair, process }.that_answers()
    }

    /// The same place with an agent that starts anew.
    pub fn restarted(&self) -> Result<Self> {
        process::end(&self.process)?;
        Self { process: start_agent(&self.pair)?, ..self.clone() }.that_answers()
    }

    /// The same place with an agent that is started where one was killed, and when that began.
    /// Nobody has looked whether it answers.
    pub fn killed_and_started(&self) -> Result<(Self, Instant)> {
        process::kill_hard(&self.process);
        let begun = Instant::now();
        Ok((Self { process: start_agent(&self.pair)?, ..self.clone() }, begun))
    }

    fn that_answers(self) -> Result<Self> {
        pair::wait(&self.pair, self.label, || {
            if !self.process.alive() {
                let log = process::log_tail(&self.pair.layout, &self.process.name);
                anyhow::bail!("{} ended; its log: {log}", self.label);
            }
            Ok(check::answers(&self).map_err(|error| format!("{error:#}")))
        })?;
        Ok(self)
    }
}

/// The next pair, with an upstream for names outside.
fn place(world: &mut World, packages: &Packages) -> Result<Pair> {
    let host = world.next_host()?;
    let pair = Pair::make(&world.layout, &host)?;
    let folder = pair.folder()?.join("upstream");
    fs::create_dir_all(&folder)?;
    write(&folder, peers::upstream_files(&folder.display().to_string()))?;
    let program = packages.program(Peer::Knot.program()).display().to_string();
    let mut argv = vec![program];
    argv.extend(Peer::Knot.arguments(&folder.display().to_string()));
    pair.start(At::Client, "upstream", argv, packages.env())?;
    Ok(pair)
}

fn write(folder: &Path, files: Vec<File>) -> Result<()> {
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

/// What kubeadm's clusters have, and search paths completed. By a list: the client is no pod that
/// the agent connected, whose namespace it would know.
fn corefile(search: &Path) -> String {
    let search = search.display();
    let domain = questions::DOMAIN;
    let ttl = questions::TTL;
    format!(
        ".:53 {{\n  errors\n  kubernetes {domain} in-addr.arpa ip6.arpa {{\n    pods insecure\n    \
         ttl {ttl}\n    fallthrough in-addr.arpa ip6.arpa\n  }}\n  autopath {search}\n  forward \
         . {CLIENT}:{UPSTREAM_PORT}\n  cache 30\n}}\n"
    )
}

fn start_agent(pair: &Pair) -> Result<process::Started> {
    let (layout, node) = (&pair.layout, &pair.host.name);
    let folder = pair.folder()?;
    let search = folder.join("search");
    let list = format!("search {}\n", questions::SEARCH.join(" "));
    write(&folder, vec![("search", list), ("Corefile", corefile(&search))])?;
    let mut argv = vec![layout.binary("mizzen-agent").display().to_string(), "run".into()];
    argv.extend(["--services=false", "--cni=false", "--node-name", node].map(str::to_owned));
    for (flag, value) in [
        ("--kubeconfig", layout.kubeconfig()),
        ("--corefile", folder.join("Corefile")),
        ("--cgroup-root", cgroup::node_dir(layout, node)?),
        ("--bpffs", layout.bpffs(node)),
        ("--state-dir", layout.state_dir(node)),
        ("--data-dir", layout.data_dir(node)),
        ("--cni-conf-dir", layout.cni_conf_dir(node)),
        ("--cni-bin-dir", layout.cni_bin_dir(node)),
    ] {
        argv.extend([flag.to_owned(), value.display().to_string()]);
    }
    let log = std::env::var("RUST_LOG").unwrap_or("info".into());
    pair.start(At::Server, "dns-agent", argv, vec![("RUST_LOG".into(), log)])
}
