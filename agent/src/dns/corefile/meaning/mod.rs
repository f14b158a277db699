//! What a Corefile means for this agent: its directives as server blocks.

mod cache;
mod forward;
mod hosts;
mod kubernetes;
mod pillar;
mod rewrite;
mod steps;
mod template;
mod tls;
mod vitals;
mod zone;

use std::path::Path;

use hickory_proto::rr::{Name, RecordType};

use self::zone::Key;
use super::{
    CorefileError, Surroundings, Warning,
    lexer::Word,
    surroundings::Rooted,
    syntax::{Block, Directive},
};
use crate::dns::{
    meaning::{Served, ServerBlock},
    notation,
};

/// The server blocks that these are, and what of them is left out.
pub(super) fn of(
    blocks: &[Block],
    served: &Served,
    surroundings: &dyn Surroundings,
) -> Result<(Vec<ServerBlock>, Vec<Warning>), CorefileError> {
    let blocks = &pillar::filled(blocks, served);
    let root = Path::new("");
    let mut context = Context { served, surroundings, root, warnings: Vec::new() };
    let mut zones: Vec<(Name, &Word)> = Vec::new();
    for block in blocks {
        let plain = zone::keys(&block.keys, served)?.into_iter().filter(|key| key.tls.is_none());
        for Key { zone, word, .. } in plain {
            if zones.iter().any(|(other, _)| *other == zone) {
                return Err(word.error(format!("{zone} has a server block already")));
            }
            zones.push((zone, word));
        }
    }
    let mut all: Vec<ServerBlock> = Vec::new();
    for block in blocks {
        let (secure, plain): (Vec<_>, Vec<_>) =
            zone::keys(&block.keys, served)?.into_iter().partition(|key| key.tls.is_some());
        let zones: Vec<_> = plain.into_iter().map(|key| key.zone).collect();
        let mut written = ServerBlock { zones, ..ServerBlock::default() };
        context.root = root_of(block);
        for directive in &block.directives {
            context.directive(directive, &mut written)?;
        }
        let rooted = Rooted { inner: surroundings, root: context.root };
        written.tls = tls::listener(block, &secure, &rooted)?;
        if let (Some(first), Some(tls)) = (secure.first(), &written.tls) {
            let others = all.iter().filter_map(|block| block.tls.as_ref());
            if others.into_iter().any(|other| other != tls) {
                let why = "all blocks that are answered over TLS have one port and certificate";
                return Err(first.word.error(why));
            }
            tls::check_zones(block, &secure, blocks, served)?;
        }
        all.push(written);
    }
    kubernetes::check(blocks, &all, served)?;
    Ok((all, context.warnings))
}

struct Context<'a> {
    served: &'a Served,
    surroundings: &'a dyn Surroundings,
    /// Where files of the block are whose path begins with no slash.
    root: &'a Path,
    warnings: Vec<Warning>,
}

/// What `root` says; the last one counts, wherever it stands, as CoreDNS has it.
fn root_of(block: &Block) -> &Path {
    let root = block.directives.iter().rev().find(|directive| directive.name.text == "root");
    let root = root.and_then(|directive| directive.arguments.first());
    Path::new(root.map_or("", |word| &*word.text))
}

/// Whether the block has that directive already, of those that it may have once, as CoreDNS has it.
/// Of `bufsize` the first counts, of the options of `dns64` and `autopath` the last of each, and all
/// others are a list, or say the same twice.
fn has(block: &ServerBlock, directive: &str) -> bool {
    match directive {
        "kubernetes" => block.kubernetes.is_some(),
        "hosts" => block.hosts.is_some(),
        "cache" => block.keeping.is_some(),
        "errors" => block.errors.is_some(),
        _ => false,
    }
}

impl Context<'_> {
    fn directive(
        &mut self,
        directive: &Directive,
        block: &mut ServerBlock,
    ) -> Result<(), CorefileError> {
        if vitals::read(&mut block.told, directive, &mut self.warnings)? {
            return Ok(());
        }
        let served = self.served;
        let surroundings = &Rooted { inner: self.surroundings, root: self.root };
        if has(block, &directive.name.text) {
            let why = format!("the block has {} already; make one of both", directive.name.text);
            return Err(directive.name.error(why));
        }
        match &*directive.name.text {
            "kubernetes" => {
                let (kubernetes, warnings) = kubernetes::read(directive, &block.zones, served)?;
                block.kubernetes = Some(kubernetes);
                self.warnings.extend(warnings);
            }
            "forward" => {
                let (forward, warnings) = forward::read(directive, served, surroundings)?;
                block.forwards.push(forward);
                self.warnings.extend(warnings);
            }
            "cache" => {
                let (keeping, warnings) = cache::read(directive, served)?;
                block.keeping = Some(keeping);
                self.warnings.extend(warnings);
            }
            "hosts" => block.hosts = Some(hosts::read(directive, &block.zones, surroundings)?),
            "template" => {
                let (template, warnings) = template::read(directive, &block.zones)?;
                block.chain.templates.push(template);
                self.warnings.extend(warnings);
            }
            "autopath" => {
                let (autopath, warning) =
                    steps::autopath(directive, &block.zones, served, surroundings)?;
                block.chain.autopath = Some(autopath.behind(block.chain.autopath.take()));
                self.warnings.extend(warning);
            }
            "acl" => block.chain.access.push(steps::access(directive, &block.zones)?),
            "bind" => self.warnings.extend(steps::bind(directive, served)?),
            "bufsize" => {
                let payload = steps::payload(directive)?;
                block.chain.payload.get_or_insert(payload);
            }
            "dns64" => steps::dns64(directive, block.chain.dns64.get_or_insert_default())?,
            "errors" => block.errors = Some(steps::errors(directive)?),
            "log" => block.chain.log.push(steps::log(directive)?),
            "rewrite" => block.chain.rewrites.push(rewrite::read(directive)?),
            // What this agent does by itself, and can't be told to leave; and `tls`, which is read
            // with the keys of the block.
            "loop" | "reload" | "any" | "cancel" | "metadata" | "tls" => {}
            "loadbalance" => block.loadbalance = steps::loadbalance(directive)?,
            "minimal" => block.chain.minimal = true,
            // It is looked for before all others.
            "root" => {
                single(directive)?;
            }
            other => {
                let what =
                    left_out(other).ok_or_else(|| directive.name.error(unsupported(other)))?;
                let (at, what) = (directive.name.at.clone(), format!("{other}: {what}"));
                self.warnings.push(Warning { at, what });
            }
        }
        Ok(())
    }
}

fn unsupported(directive: &str) -> String {
    format!(
        "{directive:?} is not supported; supported are kubernetes, forward, cache, hosts, rewrite, \
         template, autopath, dns64, acl, log, bind, bufsize, tls, health, ready, prometheus, \
         import, root, errors, loop, reload, loadbalance and minimal"
    )
}

/// What can be left out without another answer to any question, and what there is instead.
fn left_out(directive: &str) -> Option<&'static str> {
    Some(match directive {
        "dnstap" | "trace" | "debug" | "pprof" | "multisocket" | "shed" | "nsid" => "not done",
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

/// A type of records, by its name.
fn record_type(word: &Word) -> Result<RecordType, CorefileError> {
    notation::record_type(&word.text).map_err(|why| word.error(why))
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
