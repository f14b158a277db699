//! `kubernetes`: the cluster's own names.

use std::collections::BTreeSet;

use hickory_proto::rr::Name;

use super::{Block, CorefileError, Directive, Served, Warning, number, single, unknown, zone};
use crate::{
    dns::{
        meaning::{CONTRADICTION, Kubernetes, Saying, ServerBlock, contradiction, is_reverse},
        notation,
        zone::{PodNames, Trees, naming::Naming},
    },
    model::labels::Selector,
};

/// `kubernetes [ZONE...] { … }`.
pub(super) fn read(
    directive: &Directive,
    block: &[Name],
    served: &Served,
) -> Result<(Kubernetes, Vec<Warning>), CorefileError> {
    let zones = zones(directive, block, served)?;
    let mut this = Kubernetes {
        // As CoreDNS has it where the directive says nothing.
        pods: PodNames::Disabled,
        ttl: 5,
        names_fall_through: false,
        addresses_fall_through: Trees::BOTH,
        zones: Vec::new(),
        through: Vec::new(),
        naming: Naming::default(),
        written: written(directive),
    };
    let mut warnings = Vec::new();
    let mut through = Vec::new();
    for line in &directive.body {
        match &*line.name.text {
            "pods" => this.pods = pods(line)?,
            "ttl" => {
                this.ttl = u32::try_from(number(single(line)?, 0, 3600)?).unwrap_or(this.ttl);
            }
            "namespaces" if !line.arguments.is_empty() => {
                let names = line.arguments.iter().map(|word| word.text.as_str().into());
                this.naming.namespaces.extend(names);
            }
            "labels" if !line.arguments.is_empty() => this.naming.labels = selector(line)?,
            "namespace_labels" if !line.arguments.is_empty() => {
                this.naming.namespace_labels = Some(selector(line)?);
            }
            "endpoint_pod_names" if line.arguments.is_empty() => {
                this.naming.endpoint_pod_names = true;
            }
            "noendpoints" if line.arguments.is_empty() => this.naming.no_endpoints = true,
            "ignore" if single(line)?.text == "empty_service" => {
                this.naming.ignore_empty_services = true;
            }
            "fallthrough" if line.arguments.is_empty() => through.clone_from(&zones),
            "fallthrough" => through = zone::list(&line.arguments)?,
            "endpoint"
            | "tls"
            | "kubeconfig"
            | "apiserver_qps"
            | "apiserver_burst"
            | "apiserver_max_inflight"
            | "startup_timeout" => warnings.push(Warning {
                at: line.name.at.clone(),
                what: format!("{}: the agent's own connection is used", line.name.text),
            }),
            _ => return Err(unknown(line, directive)),
        }
    }
    if let Some(why) = this.naming.contradiction() {
        return Err(directive.name.error(why));
    }
    this.names_fall_through = falls_through(&through, &served.domain);
    // Addresses that nobody has are ours to deny where the whole tree is, and is kept.
    let leaves = |tree: &str| -> Result<bool, CorefileError> {
        let tree = notation::zone(tree).map_err(|why| directive.name.error(why))?;
        Ok(!zones.contains(&tree) || falls_through(&through, &tree))
    };
    this.addresses_fall_through = Trees { v4: leaves("in-addr.arpa")?, v6: leaves("ip6.arpa")? };
    (this.zones, this.through) = (zones, through);
    Ok((this, warnings))
}

/// The zones that it names, or else its block's.
fn zones(
    directive: &Directive,
    block: &[Name],
    served: &Served,
) -> Result<Vec<Name>, CorefileError> {
    let mut zones = zone::list(&directive.arguments)?;
    if zones.is_empty() {
        zones = block.to_vec();
    }
    let foreign = zones.iter().find(|zone| !is_reverse(zone) && **zone != served.domain);
    if let Some(zone) = foreign {
        let why = format!(
            "{zone} is not the cluster domain of this agent, {} (clusterDomain)",
            served.domain
        );
        return Err(directive.name.error(why));
    }
    Ok(zones)
}

fn written(directive: &Directive) -> BTreeSet<Saying> {
    let says = |saying: &Saying| line(directive, *saying).is_some();
    Saying::ALL.into_iter().filter(says).collect()
}

/// The first line that says it.
fn line(directive: &Directive, saying: Saying) -> Option<&Directive> {
    directive.body.iter().find(|line| saying.options().contains(&&*line.name.text))
}

/// An error where the directives of blocks, which were read as `all`, don't go together.
pub(super) fn check(
    blocks: &[Block],
    all: &[ServerBlock],
    served: &Served,
) -> Result<(), CorefileError> {
    let Some((place, saying)) = contradiction(all, &served.domain) else { return Ok(()) };
    let directives = blocks.get(place).map_or(&[][..], |block| &block.directives);
    let mut own = directives.iter().filter(|directive| directive.name.text == "kubernetes");
    let line = own.find_map(|directive| line(directive, saying));
    line.map_or(Ok(()), |line| Err(line.name.error(CONTRADICTION)))
}

fn falls_through(zones: &[Name], zone: &Name) -> bool {
    zones.iter().any(|from| from.zone_of(zone))
}

/// A selection by labels, which may have spaces.
fn selector(line: &Directive) -> Result<Selector, CorefileError> {
    let words: Vec<&str> = line.arguments.iter().map(|word| word.text.as_str()).collect();
    notation::selection(&words.join(" ")).map_err(|why| line.name.error(why))
}

fn pods(line: &Directive) -> Result<PodNames, CorefileError> {
    let mode = single(line)?;
    notation::pods(&mode.text).map_err(|why| mode.error(why))
}
