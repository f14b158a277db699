//! From kube-proxy to Mizzen and back, in each of kube-proxy's modes, on one node of a cluster that
//! works all the while.

mod rules;

use std::{fs, process::Child};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::cluster::{
    exec::{self, Place},
    process, traffic, up,
};

use super::{
    Check, World,
    restart::wait_ready,
    soak::{finish_loads, start_load},
    traffic::hello,
};
use rules::Mode;

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] =
    &[("r11_a_node_goes_to_kube_proxys_rules_and_back_and_loses_nothing", there_and_back)];

/// The node that changes.
const NODE: &str = "node-1";
/// New connections a second of each load, connections that last, and one UDP socket.
const LOAD: [&str; 4] = ["--rate", "100", "--lasting", "10"];

fn there_and_back(world: &World) -> Result<()> {
    for mode in Mode::ALL {
        by(world, mode).with_context(|| format!("kube-proxy in mode {mode:?}"))?;
    }
    Ok(())
}

/// Mizzen leaves for rules of kube-proxy's shape. Under load Mizzen comes again, and the rules go:
/// connections that last, datagrams and new connections go on.
fn by(world: &World, mode: Mode) -> Result<()> {
    let host = world.layout.node_hosts().into_iter().next().context("no node")?;
    mode.load(world)?;
    let bpffs = world.layout.bpffs(NODE).display().to_string();
    let rollback = ["migrate", "rollback", "--bpffs", &bpffs];
    let (report, code) = mizzen(world, &rollback)?;
    ensure!(code == 3 && report["done"] == 0, "with a running agent: {report}");

    let agent = process::running(&world.layout, &up::agent(NODE)).context("no agent runs")?;
    process::end(&agent)?;
    let (report, code) = mizzen(world, &rollback)?;
    ensure!(code == 3 && report["done"] == 0, "without kube-proxy: {report}");
    let kube_proxy = KubeProxy::start(world)?;
    up::wait(&world.layout, "Mizzen to be out of force", || {
        let (report, code) = mizzen(world, &rollback)?;
        Ok(if code == 0 && report["done"] == 2 { Ok(()) } else { Err(report.to_string()) })
    })?;
    drop(kube_proxy);
    let (report, code) = mizzen(world, &["migrate", "apply"])?;
    ensure!(code == 3 && report["done"] == 0, "without an agent: {report}");

    let loads = start_loads(world)?;
    let before = takeovers(world)?;
    let moved = up::start_agent(&world.layout, &host)
        .and_then(|_started| wait_ready(world, NODE))
        .and_then(|()| {
            up::wait(&world.layout, "flows of datagrams to be taken over", || {
                let now = takeovers(world)?;
                Ok(if now > before { Ok(()) } else { Err(format!("{now} times in all")) })
            })?;
            take_over(world, mode)
        });
    finish_loads(loads)?;
    moved?;

    // Nothing of it stays behind.
    capture(world, &["conntrack", "--flush"])?;
    up::wait(&world.layout, "the table that holds connections to go", || {
        let rules = capture(world, &["nft", "list", "tables"])?;
        Ok(if rules.contains("mizzen-nat") { Err(rules) } else { Ok(()) })
    })
}

/// How often an agent of the node said that it took over what kube-proxy's rules led.
fn takeovers(world: &World) -> Result<usize> {
    let log = fs::read_to_string(process::log_file(&world.layout, &up::agent(NODE)))?;
    Ok(log.matches("took over flows of datagrams").count())
}

/// Removes what is kube-proxy's, and asks that it is gone.
fn take_over(world: &World, mode: Mode) -> Result<()> {
    let (report, code) = mizzen(world, &["migrate", "plan"])?;
    ensure!(code == 0 && report["steps"].as_array().is_some_and(|s| s.len() == 2), "{report}");
    let (report, code) = mizzen(world, &["migrate", "apply"])?;
    ensure!(code == 0 && report["done"] == 2, "{report}");
    let (report, code) = mizzen(world, &["migrate", "plan"])?;
    ensure!(code == 0 && report["steps"] == serde_json::json!([]), "once more: {report}");
    let left = mode.left(world)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// From outside by node ports, from the node itself by cluster IPs; each in both families. Returns
/// when every one has been answered.
fn start_loads(world: &World) -> Result<Vec<(String, Child)>> {
    let (ips, port) = hello(world)?;
    let host = world.layout.node_hosts().into_iter().next().context("no node")?;
    let nodes = [host.ipv4.to_string(), host.ipv6.to_string()];
    let outside = nodes.iter().map(|ip| ("client", format!("{}:{port}", traffic::host(ip))));
    let inside = ips.iter().map(|ip| (NODE, format!("{}:80", traffic::host(ip))));
    let mut loads = Vec::new();
    for (from, target) in outside.chain(inside) {
        loads.push(start_load(world, &Place::Host(from.into()), &target, &LOAD)?);
    }
    up::wait(&world.layout, "connections by kube-proxy's rules", || {
        let counted = capture(world, &["conntrack", "--count"])?;
        let count: usize = counted.trim().parse()?;
        Ok(if count >= 200 { Ok(()) } else { Err(format!("{count} connections")) })
    })?;
    Ok(loads)
}

/// A process on the node that bears kube-proxy's name.
struct KubeProxy(Child);

impl KubeProxy {
    fn start(world: &World) -> Result<Self> {
        let program = world.layout.dir.join("kube-proxy");
        fs::copy("/bin/sleep", &program)?;
        let argv = [program.display().to_string(), "600".to_owned()];
        let mut command = exec::command(&world.layout, &Place::Host(NODE.into()), &argv)?;
        Ok(Self(command.spawn()?))
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _gone = (self.0.kill(), self.0.wait());
    }
}

fn capture(world: &World, argv: &[&str]) -> Result<String> {
    exec::capture(&world.layout, &Place::Host(NODE.into()), argv)
}

/// What `mizzen` reports on the node, and its exit code.
fn mizzen(world: &World, words: &[&str]) -> Result<(Value, i32)> {
    let argv: Vec<String> = ["mizzen"]
        .iter()
        .chain(words)
        .chain(&["-o", "json"])
        .map(|&word| word.to_owned())
        .collect();
    let output = exec::command(&world.layout, &Place::Host(NODE.into()), &argv)?.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = serde_json::from_str(&said).with_context(|| {
        format!("{argv:?} printed {said}{}", String::from_utf8_lossy(&output.stderr))
    })?;
    Ok((report, output.status.code().context("mizzen was killed")?))
}
