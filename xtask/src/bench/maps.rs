//! The maps that an agent uses, with the memory that the kernel charges for each.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::triple::Triple;
use crate::{cluster::process::Started, invoke};

/// A map, as `bpftool` lists it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Map {
    id: u64,
    /// What it is made of.
    #[serde(rename = "type", default)]
    made_of: String,
    /// Its name; the kernel keeps 15 letters.
    #[serde(default)]
    pub name: String,
    /// Bytes of kernel memory.
    #[serde(rename = "bytes_memlock", default)]
    pub bytes: f64,
}

/// What a map's size depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// How many services and endpoints there are.
    Services,
    /// How much traffic there is, or how many pods the node has.
    Traffic,
    /// Counters.
    Counters,
}

impl Map {
    /// What its size depends on, by its name.
    pub fn kind(&self) -> Kind {
        const TRAFFIC: &[&str] =
            &["FLOW", "AFFINITY", "SOCKET", "FRAGMENT", "POD", "ENDPOINTS", "NODE", "RATE", "ICMP"];
        let is = |part: &&str| self.name.contains(*part);
        if ["COUNT", "STATS"].iter().any(is) {
            Kind::Counters
        } else if TRAFFIC.iter().any(is) {
            Kind::Traffic
        } else {
            Kind::Services
        }
    }
}

/// A key, an octet a word, as `bpftool` writes and reads them.
pub type Key = Vec<String>;

impl Map {
    /// The keys of a hash.
    pub fn keys(&self) -> Result<Vec<Key>> {
        #[derive(Deserialize)]
        struct Entry {
            key: Key,
        }
        let list = invoke::capture(&mut self.command("dump", &[]))?;
        let entries: Vec<Entry> =
            serde_json::from_str(&list).context("bpftool printed no list of entries")?;
        Ok(entries.into_iter().map(|entry| entry.key).collect())
    }

    /// Deletes an entry.
    pub fn delete(&self, key: &Key) -> Result<()> {
        invoke::capture(&mut self.command("delete", key)).map(drop)
    }

    /// Whether there is an entry.
    pub fn holds(&self, key: &Key) -> Result<bool> {
        Ok(invoke::output(&mut self.command("lookup", key))?.status.success())
    }

    fn command(&self, verb: &str, key: &[String]) -> Command {
        let id = self.id.to_string();
        let mut command = invoke::command("bpftool", ["--json", "map", verb, "id", &id]);
        if !key.is_empty() {
            command.arg("key").args(key);
        }
        command
    }
}

/// The hash of that name which the agent holds.
pub fn hash_of_agent(agent: &Started, triple: &Triple, name: &str) -> Result<Map> {
    let maps = of_agent(agent, triple)?;
    let found = maps.into_iter().find(|map| map.name == name && map.made_of == "hash");
    found.with_context(|| format!("the agent holds no hash {name}"))
}

/// The maps that the agent holds or has pinned, largest first.
pub fn of_agent(agent: &Started, triple: &Triple) -> Result<Vec<Map>> {
    let mut ids = BTreeSet::new();
    for text in descriptors(agent)? {
        ids.extend(field(&text, "map_id"));
    }
    for entry in fs::read_dir(triple.layout.bpffs(&triple.host.name))?.flatten() {
        let path = entry.path().display().to_string();
        let show = ["--json", "map", "show", "pinned", &path];
        let shown = invoke::output(&mut invoke::command("bpftool", show))?;
        // Folders, and pins of links, are none.
        if let Ok(map) = serde_json::from_slice::<Map>(&shown.stdout) {
            ids.insert(map.id);
        }
    }
    let list = invoke::capture(&mut invoke::command("bpftool", ["--json", "map", "show"]))?;
    let all: Vec<Map> = serde_json::from_str(&list).context("bpftool printed no list of maps")?;
    let mut maps: Vec<Map> = all.into_iter().filter(|map| ids.contains(&map.id)).collect();
    maps.sort_by(|a, b| b.bytes.total_cmp(&a.bytes));
    Ok(maps)
}

/// What the kernel tells of each open file of a process.
pub fn descriptors(process: &Started) -> Result<Vec<String>> {
    let dir = format!("/proc/{}/fdinfo", process.pid);
    let entries = fs::read_dir(&dir).with_context(|| format!("can't read {dir}"))?;
    // A file may be closed meanwhile.
    Ok(entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect())
}

/// A number of such a text.
pub fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_sorted_by_what_they_grow_with() {
        let kind = |name: &str| Map { name: name.into(), ..Map::default() }.kind();
        assert_eq!(kind("FRONTENDS"), Kind::Services);
        assert_eq!(kind("BACKENDS4"), Kind::Services);
        assert_eq!(kind("FLOWS"), Kind::Traffic);
        assert_eq!(kind("COUNTERS"), Kind::Counters);
        assert_eq!(field("pos:\t0\nmap_id:\t17\n", "map_id"), Some(17));
    }
}
