//! What a Corefile refers to: other files and variables of the environment.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// How large a file may be, in octets: twice what a table of hosts with as many names as one may
/// have has in thirty octets a line.
const MAX_FILE: u64 = 16 << 20;

/// What is around a Corefile.
pub trait Surroundings {
    /// The text of a file.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// The same of one that need not be there yet: until it is, it says nothing.
    fn read_if_there(&self, path: &Path) -> io::Result<String> {
        match self.read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read,
        }
    }
    /// The files that `pattern` means, in order: a path, whose last part may have `*` in it.
    fn matching(&self, pattern: &Path) -> Vec<PathBuf>;
    /// A variable of the environment.
    fn variable(&self, name: &str) -> Option<String>;
}

/// The machine that we are on.
#[derive(Clone, Copy, Debug)]
pub struct Machine;

impl Surroundings for Machine {
    fn read(&self, path: &Path) -> io::Result<String> {
        let mut octets = Vec::new();
        let read = std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut octets)?;
        if read as u64 > MAX_FILE {
            return Err(io::Error::other(format!("it is larger than {MAX_FILE} octets")));
        }
        // A comment may be in any encoding; where letters count, those of none are no name.
        Ok(String::from_utf8_lossy(&octets).into_owned())
    }

    fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
        let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name()) else {
            return Vec::new();
        };
        let Some(name) = name.to_str().filter(|name| name.contains('*')) else {
            return if pattern.is_file() { vec![pattern.to_owned()] } else { Vec::new() };
        };
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries
            .filter(|entry| entry.file_name().to_str().is_some_and(|entry| fits(name, entry)))
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        paths
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

/// Surroundings in which files without a leading slash are in a folder: what `root` means for the
/// files that a server block names. Without one they are where they are.
pub(super) struct Rooted<'a> {
    pub(super) inner: &'a dyn Surroundings,
    pub(super) root: &'a Path,
}

impl Surroundings for Rooted<'_> {
    fn read(&self, path: &Path) -> io::Result<String> {
        self.inner.read(&self.root.join(path))
    }

    fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
        self.inner.matching(&self.root.join(pattern))
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.inner.variable(name)
    }
}

/// Whether `name` is of the form of `pattern`, in which `*` stands for anything.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, is) in [
            ("*.override", "a.override", true),
            ("*.override", ".override", true),
            ("*.override", "a.server", false),
            ("a*b*c", "axbyc", true),
            ("a*b*c", "axc", false),
            ("aba", "aba", true),
            ("aba", "abaa", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(fits(pattern, name), is, "{pattern} {name}");
        }
    }

    #[test]
    fn a_file_is_read_or_it_is_said_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        assert_eq!(Machine.read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(Machine.read_if_there(&path).unwrap(), "");
        // A list of names to be blocked, with a comment in Latin-1.
        let list = [&b"# caf\xe9\n"[..], &b"0.0.0.0 a.example\n".repeat(300_000)].concat();
        std::fs::write(&path, list).unwrap();
        assert_eq!(Machine.read_if_there(&path).unwrap().lines().count(), 300_001);
        // Of this length and with nothing in it.
        std::fs::File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(Machine.read_if_there(&path).unwrap_err().to_string().contains("larger"));
        assert!(Machine.read_if_there(folder.path()).is_err(), "a folder");
    }

    #[test]
    fn files_of_a_pattern_come_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.server", "a.server", "a.override"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let names = |pattern: &str| {
            let paths = Machine.matching(&folder.path().join(pattern));
            paths.iter().map(|path| Machine.read(path).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(names("*.server"), ["a.server", "b.server"]);
        assert_eq!(names("a.override"), ["a.override"]);
        assert_eq!(names("nothing/*"), [""; 0]);
    }
}
