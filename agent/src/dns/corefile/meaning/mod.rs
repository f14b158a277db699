//! What a Corefile means for this agent: its server blocks as routes, its directives as settings.

mod cache;
mod forward;
mod hosts;
mod kubernetes;
mod zone;

use std::{net::IpAddr, sync::Arc};

use hickory_proto::rr::Name;

use self::{forward::Forward, kubernetes::Kubernetes, zone::Key};
use super::{
    CorefileError, Surroundings, Warning,
    lexer::Word,
    syntax::{Block, Directive},
};
use crate::dns::{cache::Keeping, config::Config, hosts::Hosts, route::Route, zone::PodNames};

/// What a Corefile has to fit, from the agent's own configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The cluster domain.
    pub domain: Name,
    /// The port on which the agent answers.
    pub port: u16,
    /// The addresses at which it does: who asks there asks us.
    pub addresses: Vec<IpAddr>,
}

/// What a Corefile means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meaning {
    /// How names of pods are answered, where the file says it.
    pub pods: Option<PodNames>,
    /// How long clients may keep names of the cluster, in seconds, where the file says it.
    pub ttl: Option<u32>,
    /// Whether a name of the cluster that does not exist is asked of upstreams.
    pub names_fall_through: bool,
    /// The same of addresses that no Service and no endpoint has.
    pub addresses_fall_through: bool,
    /// What is done with other names.
    pub routes: Vec<Route>,
    /// How many questions to upstreams may be under way, where the file says it.
    pub max_concurrent: Option<usize>,
    /// What is left out.
    pub warnings: Vec<Warning>,
}

impl Meaning {
    /// `config` with what the Corefile says in its place.
    pub fn applied(&self, config: &Config) -> Config {
        let mut config = config.clone();
        config.pod_names = self.pods.unwrap_or(config.pod_names);
        config.ttl = self.ttl.unwrap_or(config.ttl);
        config.names_fall_through = self.names_fall_through;
        config.addresses_fall_through = self.addresses_fall_through;
        config.routes.clone_from(&self.routes);
        if let Some(max) = self.max_concurrent {
            config.forward.max_in_flight = max;
        }
        config
    }
}

/// What these blocks mean.
pub(super) fn of(
    blocks: &[Block],
    served: &Served,
    surroundings: &dyn Surroundings,
) -> Result<Meaning, CorefileError> {
    let mut context = Context {
        served,
        surroundings,
        meaning: Meaning { addresses_fall_through: true, ..Meaning::default() },
    };
    let mut zones: Vec<(Name, &Word)> = Vec::new();
    for block in blocks {
        for key in zone::keys(&block.keys, served)? {
            let Key { zone, word } = key;
            if zones.iter().any(|(other, _)| *other == zone) {
                return Err(word.error(format!("{zone} has a server block already")));
            }
            zones.push((zone, word));
        }
    }
    for block in blocks {
        let zones = zone::keys(&block.keys, served)?.into_iter().map(|key| key.zone).collect();
        context.block(zones, &block.directives)?;
    }
    Ok(context.meaning)
}

struct Context<'a> {
    served: &'a Served,
    surroundings: &'a dyn Surroundings,
    meaning: Meaning,
}

/// What the directives of a block come to.
#[derive(Default)]
struct Chain {
    hosts: Option<Hosts>,
    keeping: Option<Keeping>,
    forwards: Vec<Forward>,
}

impl Context<'_> {
    fn block(&mut self, zones: Vec<Name>, directives: &[Directive]) -> Result<(), CorefileError> {
        let mut chain = Chain::default();
        for directive in directives {
            self.directive(&zones, directive, &mut chain)?;
        }
        let hosts = chain.hosts.map(Arc::new);
        let keeping = chain.keeping.unwrap_or(cache::NOTHING);
        for zone in zones {
            let mut has_own = false;
            for forward in &chain.forwards {
                let Some(from) = forward.within(&zone) else { continue };
                if forward.upstreams.is_empty() && self.is_ours(&zone) {
                    // It led to cluster DNS, which is here; what is left is any shorter zone's.
                    has_own = true;
                    continue;
                }
                has_own |= from == zone;
                self.meaning.routes.push(Route {
                    zone: from,
                    hosts: hosts.clone(),
                    keeping,
                    ..forward.route()
                });
            }
            if !has_own && (hosts.is_some() || !self.is_ours(&zone)) {
                let hosts = hosts.clone();
                self.meaning.routes.push(Route { zone, hosts, keeping, ..Route::default() });
            }
        }
        Ok(())
    }

    /// Whether a zone is one that is answered from the index.
    fn is_ours(&self, zone: &Name) -> bool {
        self.served.domain.zone_of(zone) || zone::is_reverse(zone)
    }

    fn directive(
        &mut self,
        zones: &[Name],
        directive: &Directive,
        chain: &mut Chain,
    ) -> Result<(), CorefileError> {
        match &*directive.name.text {
            "kubernetes" => {
                let kubernetes = Kubernetes::read(directive, zones, self.served)?;
                self.meaning.pods = Some(kubernetes.pods);
                self.meaning.ttl = Some(kubernetes.ttl);
                self.meaning.names_fall_through = kubernetes.names_fall_through;
                self.meaning.addresses_fall_through = kubernetes.addresses_fall_through;
                self.meaning.warnings.extend(kubernetes.warnings);
            }
            "forward" => {
                let forward = forward::read(directive, self.served, self.surroundings)?;
                self.meaning.warnings.extend(forward.warnings.iter().cloned());
                self.meaning.max_concurrent =
                    forward.max_concurrent.or(self.meaning.max_concurrent);
                chain.forwards.push(forward);
            }
            "cache" => {
                let (keeping, warnings) = cache::read(directive, self.served)?;
                chain.keeping = Some(keeping);
                self.meaning.warnings.extend(warnings);
            }
            "hosts" => chain.hosts = Some(hosts::read(directive, zones, self.surroundings)?),
            // What this agent does by itself, and can't be told to leave.
            "errors" | "loop" | "reload" | "any" | "cancel" | "minimal" | "metadata" => {}
            "loadbalance" if directive.arguments.iter().all(|word| word.text == "round_robin") => {}
            other => {
                let what =
                    left_out(other).ok_or_else(|| directive.name.error(unsupported(other)))?;
                self.warn(&directive.name, format!("{other}: {what}"));
            }
        }
        Ok(())
    }

    fn warn(&mut self, word: &Word, what: String) {
        self.meaning.warnings.push(Warning { at: word.at.clone(), what });
    }
}

fn unsupported(directive: &str) -> String {
    format!(
        "{directive:?} is not supported; supported are kubernetes, forward, cache, hosts, import, \
         errors, loop, reload and loadbalance"
    )
}

/// What can be left out without another answer to any question, and what there is instead.
fn left_out(directive: &str) -> Option<&'static str> {
    Some(match directive {
        "health" | "ready" => "not served; the agent's own are /livez and /readyz",
        "prometheus" => "served by the agent's own metrics address instead",
        "bind" => "the agent answers at clusterDns and nodeLocalDns instead",
        "autopath" => "not done; clients go through their search list by themselves",
        "bufsize" => "answers by UDP have 1232 octets at most in any case",
        "log" | "dnstap" | "trace" | "debug" | "pprof" | "multisocket" | "shed" | "root"
        | "nsid" => "not done",
        _ => return None,
    })
}

/// The only argument of a directive.
fn single(directive: &Directive) -> Result<&Word, CorefileError> {
    match &directive.arguments[..] {
        [word] => Ok(word),
        _ => Err(directive.name.error(format!("{:?} has one argument", directive.name.text))),
    }
}

/// A number within bounds.
fn number(word: &Word, least: u64, most: u64) -> Result<u64, CorefileError> {
    let number = word.text.parse().ok().filter(|number| (least..=most).contains(number));
    let why = || format!("{:?} is no number from {least} to {most}", word.text);
    number.ok_or_else(|| word.error(why()))
}

/// An unknown line inside a directive's braces.
fn unknown(line: &Directive, of: &Directive) -> CorefileError {
    let why = format!("{:?} is not supported in {:?}", line.name.text, of.name.text);
    line.name.error(why)
}
