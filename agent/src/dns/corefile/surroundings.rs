//! What a Corefile refers to: other files and variables of the environment.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// How large a file may be, in octets.
const MAX_FILE: u64 = 4 << 20;

/// What is around a Corefile.
pub trait Surroundings {
    /// The text of a file.
    fn read(&self, path: &Path) -> io::Result<String>;
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
        let mut text = String::new();
        let read = std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
        if read as u64 > MAX_FILE {
            return Err(io::Error::other(format!("it is larger than {MAX_FILE} octets")));
        }
        Ok(text)
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
