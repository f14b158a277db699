//! The commands of the README and the guides, as they stand there, in this cluster: `up` and `down` are
//! how it comes and goes, and `test` is what runs this. What is said on a node is said on the first
//! one; there too what `kubectl` has said in a pod of the agent's, which is no pod here. Files that the
//! reader has are of ours: kube-proxy's configuration as kubeadm writes it, and the manifest's.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use xtask::{
    checkout,
    cluster::exec::{self, Place},
    console, deploy, invoke,
};

use super::{Check, World};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] =
    &[("the_commands_of_the_readme_and_the_guides_do_what_they_are_shown_for", as_shown)];

/// What the pages call the cluster of `up`, which this one is beside.
const KUBECONFIG: &str = "target/cluster/admin.kubeconfig";
const SUBNETS: [&str; 2] = ["172.30.0.", "fd00:30::"];
/// What says something in a pod of the agent's.
const IN_A_POD: &str = "kubectl --namespace kube-system exec daemonset/mizzen-agent -- ";
/// Files that pages call theirs.
const KUBE_PROXYS: &str = "config.conf";
const KUBEADMS: &str = "agent/src/config/kube_proxy/fixtures/kubeadm.yaml";
const AGENTS: &str = "/etc/mizzen/agent.yaml";

fn as_shown(world: &World) -> Result<()> {
    let manifest = deploy::agent_objects().into_iter().find(|it| it["kind"] == "ConfigMap");
    let manifest = manifest.context("no ConfigMap")?;
    let text = manifest["data"]["agent.yaml"].as_str().context("no configuration in it")?;
    // As the page has it filled in.
    let text = text.replace("apiServer: []", "apiServer: [\"https://192.0.2.1:6443\"]");
    let file = world.layout.dir.join("shown.yaml");
    fs::write(&file, text)?;
    let shown = run_pages(world);
    fs::remove_file(&file)?;
    shown
}

fn run_pages(world: &World) -> Result<()> {
    for page in console::PAGES {
        let text = fs::read_to_string(checkout().join(page))?;
        let commands = console::commands(&text);
        ensure!(!commands.is_empty(), "{page} shows no commands");
        for (line, shown) in commands {
            run(world, &shown).with_context(|| format!("{page}:{line}: $ {shown}"))?;
        }
    }
    Ok(())
}

fn run(world: &World, shown: &str) -> Result<()> {
    let node = &world.layout.node_hosts()[0];
    let ours = [node.ipv4.to_string(), node.ipv6.to_string()];
    let mut here = shown.to_owned();
    for (subnet, ours) in SUBNETS.into_iter().zip(&ours) {
        let cut = ours.rfind(['.', ':']).context("an address")?;
        here = here.replace(subnet, &ours[..=cut]);
    }
    let here = here.strip_prefix(IN_A_POD).unwrap_or(&here);
    let file = |word: &str| match word {
        KUBE_PROXYS => KUBEADMS.to_owned(),
        AGENTS => world.layout.dir.join("shown.yaml").display().to_string(),
        other => other.to_owned(),
    };
    let words: Vec<String> = here.split_whitespace().map(file).collect();
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command = match &texts[..] {
        ["cargo", "xtask", "up" | "down" | "test", ..] => return Ok(()),
        ["cargo", "xtask", "exec", place, "--", ..] => {
            let Ok(place) = place.parse::<Place>();
            exec::command(&world.layout, &place, &words[5..])?
        }
        ["mizzen" | "mizzen-agent", ..] => {
            exec::command(&world.layout, &Place::Host(node.name.clone()), &words)?
        }
        ["kubectl", "--kubeconfig", KUBECONFIG, ..] => {
            if !invoke::in_path("kubectl") {
                println!("    this machine has no kubectl for: {shown}");
                return Ok(());
            }
            let mut kubectl = invoke::command("kubectl", &words[3..]);
            kubectl.arg("--kubeconfig").arg(world.layout.kubeconfig());
            kubectl
        }
        _ => bail!("nobody knows how to run that here"),
    };
    command.current_dir(checkout());
    let said = invoke::capture(&mut command)?;
    ensure!(!said.trim().is_empty(), "it says nothing");
    Ok(())
}
