//! Work inside a pod's network namespace.
//!
//! A namespace belongs to a thread. The work is done by a thread that is made for it and ends
//! with it: a pooled thread that came back from a pod with the pod's namespace still on it would
//! poison everything that it does later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::datapath::netns_cookie;

/// Which namespace a descriptor or path means: two that name the same one are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetnsId {
    /// Device of the kernel's namespace file system.
    pub dev: u64,
    /// Inode; the kernel may give it again when the namespace is gone.
    pub ino: u64,
}

impl NetnsId {
    /// The namespace that `file` is open on.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { dev: metadata.dev(), ino: metadata.ino() })
    }
}

/// Where container runtimes keep the namespaces of their pods.
const NAMED: &str = "/run/netns";

/// A namespace that somebody named or lives in; none where neither can be seen from here.
pub fn find(id: NetnsId) -> Option<File> {
    paths().find_map(|path| open(&path, id))
}

/// Where namespaces can be found: those that are named come first.
fn paths() -> impl Iterator<Item = PathBuf> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let named = fs::read_dir(NAMED).into_iter().flatten().flatten();
    let lived_in = processes.map(|process| process.path().join("ns/net"));
    named.map(|entry| entry.path()).chain(lived_in)
}

fn open(path: &Path, id: NetnsId) -> Option<File> {
    let is_it = |metadata: fs::Metadata| metadata.ino() == id.ino && metadata.dev() == id.dev;
    if !fs::metadata(path).is_ok_and(is_it) {
        return None;
    }
    // It may be another's by now.
    File::open(path).ok().filter(|file| NetnsId::of(file).is_ok_and(|found| found == id))
}

/// Those of the namespaces that can be found, by one walk over all that there are.
pub fn find_all(wanted: &BTreeSet<NetnsId>) -> BTreeMap<NetnsId, File> {
    let mut found = BTreeMap::new();
    for path in paths() {
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let id = NetnsId { dev: metadata.dev(), ino: metadata.ino() };
        if wanted.contains(&id) && !found.contains_key(&id) {
            found.extend(open(&path, id).map(|file| (id, file)));
        }
    }
    found
}

/// A namespace that can be found, and is the one with this number.
pub fn find_numbered(id: NetnsId, number: Option<u64>) -> Option<File> {
    find(id).filter(|netns| number.is_some() && cookie(netns) == number)
}

/// The number of a namespace, which no other ever has; `None` from kernels that don't number them.
pub fn cookie(netns: &File) -> Option<u64> {
    inside(netns, netns_cookie).ok()
}

/// Runs `body` in a thread of its own inside `netns`.
pub fn inside<T, E>(
    netns: impl AsFd + Sync,
    body: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E>
where
    T: Send,
    E: From<io::Error> + Send,
{
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("pod-netns".into()).spawn_scoped(scope, || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            body()
        })?;
        thread.join().unwrap_or_else(|_panic| {
            Err(E::from(io::Error::other("the thread in the pod's namespace panicked")))
        })
    })
}
