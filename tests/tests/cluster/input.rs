//! Bad input: each a clear message that names the cause and the remedy.

use std::fs;

use anyhow::{Context, Result, ensure};
use xtask::{
    cluster::exec::{self, Place},
    invoke,
};

use super::{Check, World};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("bad_input_an_unknown_field_is_named_with_its_line", unknown_field),
    ("bad_input_an_agent_that_runs_already_is_named", served_socket),
    ("bad_input_a_user_who_is_not_root_is_told_so", not_root),
];

/// How long an agent that ought to refuse may take, in seconds: one that serves would never end.
const REFUSAL_LIMIT: &str = "60";

/// Runs the agent in a node's place; gives what it said and whether it ended well.
fn agent(world: &World, args: &[&str]) -> Result<(bool, String)> {
    let mut argv = ["timeout", REFUSAL_LIMIT].map(str::to_owned).to_vec();
    argv.push(world.layout.binary("mizzen-agent").display().to_string());
    argv.extend(args.iter().map(|&arg| arg.to_owned()));
    let place = Place::Host("node-1".into());
    let output = invoke::output(&mut exec::command(&world.layout, &place, &argv)?)?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

fn unknown_field(world: &World) -> Result<()> {
    let path = world.layout.dir.join("bad.yaml");
    fs::write(
        &path,
        "apiVersion: mizzen.dev/v1alpha1\nkind: AgentConfiguration\nclusterDomian: x\n",
    )?;
    let path = path.to_str().context("a strange path")?;
    let (good, said) = agent(world, &["config", "check", "--config", path])?;
    ensure!(!good, "a file with an unknown field was accepted: {said}");
    ensure!(said.contains("clusterDomian") && said.contains("line 3"), "{said}");
    Ok(())
}

/// Where an agent is served already, one that is of another place does not take over from it.
fn served_socket(world: &World) -> Result<()> {
    let layout = &world.layout;
    let kubeconfig = layout.kubeconfig().display().to_string();
    let state = layout.state_dir("node-1").display().to_string();
    let data = layout.dir.join("second-data").display().to_string();
    let bpffs = layout.bpffs_dir().join("second").display().to_string();
    let places = ["--state-dir", &state, "--data-dir", &data, "--bpffs", &bpffs];
    let roles = ["--services=false", "--cni=false", "--dns=false"];
    let run = ["run", "--node-name", "node-1", "--kubeconfig", &kubeconfig];
    let (good, said) = agent(world, &[&run[..], &places, &roles].concat())?;
    ensure!(!good, "a second agent started on the first one's socket: {said}");
    ensure!(said.contains("another agent runs on this node"), "{said}");
    Ok(())
}

fn not_root(world: &World) -> Result<()> {
    let kubeconfig = world.layout.kubeconfig().display().to_string();
    let binary = world.layout.binary("mizzen-agent").display().to_string();
    let copied = "/tmp/mizzen-agent-as-nobody";
    fs::copy(&binary, copied)?;
    let mut command = invoke::command(
        "setpriv",
        ["--reuid=65534", "--regid=65534", "--clear-groups", "timeout", REFUSAL_LIMIT, copied],
    );
    command.args(["run", "--node-name", "x", "--kubeconfig", &kubeconfig]);
    let output = invoke::output(&mut command);
    fs::remove_file(copied)?;
    let output = output?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(!output.status.success(), "it started without root: {said}");
    ensure!(said.contains("root"), "{said}");
    Ok(())
}
