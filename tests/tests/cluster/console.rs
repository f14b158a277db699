//! The commands of the README and the guide, as they stand there, in this cluster: `up` and `down` are
//! how it comes and goes, and `test` is what runs this.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use xtask::{
    checkout,
    cluster::exec::{self, Place},
    console, invoke,
};

use super::{Check, World};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] =
    &[("the_commands_of_the_readme_and_the_guide_do_what_they_are_shown_for", as_shown)];

/// What the pages call the cluster of `up`, which this one is beside.
const KUBECONFIG: &str = "target/cluster/admin.kubeconfig";
const SUBNETS: [&str; 2] = ["172.30.0.", "fd00:30::"];

fn as_shown(world: &World) -> Result<()> {
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
    let words: Vec<String> = here.split_whitespace().map(str::to_owned).collect();
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command = match &texts[..] {
        ["cargo", "xtask", "up" | "down" | "test", ..] => return Ok(()),
        ["cargo", "xtask", "exec", place, "--", ..] => {
            let Ok(place) = place.parse::<Place>();
            exec::command(&world.layout, &place, &words[5..])?
        }
        ["kubectl", "--kubeconfig", KUBECONFIG, ..] => {
            if !invoke::in_path("kubectl") {
                println!("    this machine has no kubectl for: {shown}");
                return Ok(());
            }
            let mut kubectl = invoke::command("kubectl", &words[3..]);
            kubectl.current_dir(checkout()).arg("--kubeconfig").arg(world.layout.kubeconfig());
            kubectl
        }
        _ => bail!("nobody knows how to run that here"),
    };
    let said = invoke::capture(&mut command)?;
    ensure!(!said.trim().is_empty(), "it says nothing");
    Ok(())
}
