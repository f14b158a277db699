//! The network namespaces of this node's processes: the node's own, and those of whatever runs
//! below its cgroup, whoever connected it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
};

use crate::podnet::netns::NetnsId;

/// Namespaces that are looked into; a node has some hundred.
const NAMESPACES_MAX: usize = 4096;
/// Folders of cgroups that are looked into.
const CGROUPS_MAX: usize = 65_536;

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    /// A descriptor of it.
    pub file: File,
    /// The processes in it.
    pub processes: Vec<u32>,
}

/// The namespace of the node, and each other that a process below `cgroup` is
/// in. Processes that come or go meanwhile are seen or not; those of another PID namespace, which
/// the kernel does not name here, are not.
pub fn below(cgroup: &Path, node: &File) -> Vec<Namespace> {
    let mut found = BTreeMap::new();
    if let (Ok(id), Ok(file)) = (NetnsId::of(node), node.try_clone()) {
        found.insert((id.dev, id.ino), Namespace { file, processes: Vec::new() });
    }
    let mut folders = vec![cgroup.to_owned()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        seen += 1;
        if seen > CGROUPS_MAX || found.len() >= NAMESPACES_MAX {
            tracing::warn!(cgroups = seen, namespaces = found.len(), "not all were looked into");
            break;
        }
        // A cgroup that is gone has no processes.
        let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        let processes = processes.lines().filter_map(|process| process.parse().ok());
        for process in processes.filter(|process| *process != 0) {
            add_namespace(process, &mut found);
        }
        let inside = fs::read_dir(&folder).into_iter().flatten().flatten();
        let inside = inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(inside.map(|entry| entry.path()));
    }
    found.into_values().collect()
}

/// Enters a process, and its namespace where it is a new one.
fn add_namespace(process: u32, found: &mut BTreeMap<(u64, u64), Namespace>) {
    use std::os::unix::fs::MetadataExt as _;
    let path = format!("/proc/{process}/ns/net");
    let Ok(metadata) = fs::metadata(&path) else { return };
    if let Some(namespace) = found.get_mut(&(metadata.dev(), metadata.ino())) {
        namespace.processes.push(process);
        return;
    }
    // The process may have moved in between: what counts is what was opened.
    if let Ok(file) = File::open(&path)
        && let Ok(id) = NetnsId::of(&file)
    {
        found.insert((id.dev, id.ino), Namespace { file, processes: vec![process] });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_namespace_is_there_without_any_process() {
        let folder = tempfile::tempdir().unwrap();
        let node = File::open("/proc/thread-self/ns/net").unwrap();
        let own = NetnsId::of(&node).unwrap();
        let found = below(&folder.path().join("gone"), &node);
        let ids: Vec<_> = found.iter().map(|n| NetnsId::of(&n.file).unwrap()).collect();
        assert_eq!(ids, [own]);

        // A process of the same namespace adds none, and one that is gone is passed over.
        fs::create_dir(folder.path().join("pod")).unwrap();
        let processes = format!("{}\n0\n4194304\n", std::process::id());
        fs::write(folder.path().join("pod/cgroup.procs"), processes).unwrap();
        let found = below(folder.path(), &node);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].processes, [std::process::id()]);
    }
}
