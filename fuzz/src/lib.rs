//! Everything of Mizzen that reads octets of others, each as a function that is given any: it must
//! return, and what it returns must be right as far as that can be told.
//!
//! The test suite calls each with what is kept in `corpus`, and with what chance makes of it, which
//! takes seconds. `cargo xtask fuzz` searches for octets that go ways not gone before (libFuzzer),
//! and keeps them.

mod cache;
mod cluster;
mod cni;
mod config;
mod dns;
mod packet;
mod store;

use std::{io, path::PathBuf};

/// Something that reads octets of others.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Reads them. It panics where it finds something wrong.
    pub run: fn(&[u8]),
    /// Some that are right, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many calls of it a short run makes: what takes longer gets fewer.
    pub calls: u64,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "dns-question", run: dns::question, seeds: dns::questions, calls: 20_000 },
    Target { name: "dns-answer", run: dns::answer, seeds: dns::answers, calls: 20_000 },
    Target { name: "dns-cache", run: cache::history, seeds: cache::histories, calls: 2_000 },
    Target { name: "corefile", run: config::corefile, seeds: config::corefiles, calls: 4_000 },
    Target { name: "agent-config", run: config::agent, seeds: config::agents, calls: 2_000 },
    Target { name: "cni-stdin", run: cni::stdin, seeds: cni::stdins, calls: 20_000 },
    Target { name: "packet", run: packet::packet, seeds: packet::packets, calls: 100_000 },
    Target { name: "store-log", run: store::log, seeds: store::logs, calls: 300 },
];

impl Target {
    /// The one with that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Where octets are kept that went ways of their own.
    pub fn corpus_dir(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name)
    }

    /// The seeds and what is kept, in a fixed order.
    pub fn corpus(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut all = (self.seeds)();
        let folder = self.corpus_dir();
        if !folder.exists() {
            return Ok(all);
        }
        let entries = folder.read_dir()?.collect::<io::Result<Vec<_>>>()?;
        let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            all.push(std::fs::read(path)?);
        }
        Ok(all)
    }
}
