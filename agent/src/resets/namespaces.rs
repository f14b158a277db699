//! The network namespaces of this node's processes: the node's own, and those of whatever runs
//! below its cgroup, whoever connected it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
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

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The namespaces.
    pub namespaces: Vec<Namespace>,
    /// The processes that this one may not look into.
    pub denied: BTreeSet<u32>,
    /// How many processes are of another PID namespace, so that the kernel does not name them.
    pub unnamed: usize,
}

/// The namespace of the node, and each other that a process below `cgroup` is
/// in. Processes that come or go meanwhile are seen or not; those of another PID namespace, which
/// the kernel does not name here, are counted.
pub fn below(cgroup: &Path, node: &File) -> Found {
    let (mut found, mut denied, mut unnamed) = (BTreeMap::new(), BTreeSet::new(), 0);
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
        for process in processes {
            if process == 0 {
                unnamed += 1;
                continue;
            }
            let added = add_namespace(process, &mut found);
            // One that is gone is in no namespace.
            if added.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
                denied.insert(process);
            }
        }
        let inside = fs::read_dir(&folder).into_iter().flatten().flatten();
        let inside = inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(inside.map(|entry| entry.path()));
    }
    Found { namespaces: found.into_values().collect(), denied, unnamed }
}

/// Enters a process, and its namespace where it is a new one.
fn add_namespace(process: u32, found: &mut BTreeMap<(u64, u64), Namespace>) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let path = format!("/proc/{process}/ns/net");
    let metadata = fs::metadata(&path)?;
    if let Some(namespace) = found.get_mut(&(metadata.dev(), metadata.ino())) {
        namespace.processes.push(process);
        return Ok(());
    }
    // The process may have moved in between: what counts is what was opened.
    let file = File::open(&path)?;
    let id = NetnsId::of(&file)?;
    found.insert((id.dev, id.ino), Namespace { file, processes: vec![process] });
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{process::Command, thread};

    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;

    /// Calls `body` on a thread that may not look into other processes.
    pub(crate) fn without_ptrace<T: Send>(body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let on_thread = scope.spawn(|| {
                let mut sets = capabilities(None).unwrap();
                sets.effective -= CapabilitySet::SYS_PTRACE;
                sets.permitted -= CapabilitySet::SYS_PTRACE;
                set_capabilities(None, sets).unwrap();
                body()
            });
            on_thread.join().unwrap()
        })
    }

    #[test]
    fn the_nodes_own_namespace_is_there_without_any_process() {
        let folder = tempfile::tempdir().unwrap();
        let node = File::open("/proc/thread-self/ns/net").unwrap();
        let own = NetnsId::of(&node).unwrap();
        let found = below(&folder.path().join("gone"), &node).namespaces;
        let ids: Vec<_> = found.iter().map(|n| NetnsId::of(&n.file).unwrap()).collect();
        assert_eq!(ids, [own]);

        // A process of the same namespace adds none, and one that is gone is passed over.
        fs::create_dir(folder.path().join("pod")).unwrap();
        let processes = format!("{}\n0\n4194304\n", std::process::id());
        fs::write(folder.path().join("pod/cgroup.procs"), processes).unwrap();
        let found = below(folder.path(), &node).namespaces;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].processes, [std::process::id()]);
    }
    #[test]
    fn processes_that_may_not_be_looked_into_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let node = File::open("/proc/thread-self/ns/net").unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(folder.path().join("cgroup.procs"), format!("{}\n4194304\n", child.id()))
            .unwrap();
        let found = without_ptrace(|| below(folder.path(), &node));
        let all = below(folder.path(), &node);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.denied, [child.id()].into());
        assert_eq!(found.namespaces.len(), 1, "the node's");
        assert_eq!(all.denied, BTreeSet::new());
    }
}
