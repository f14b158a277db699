//! The files beside the configuration as they could last be used, in the data folder: an agent that
//! begins while they are bad goes on with what an earlier one had of them.
//!
//! What holds a private key is not kept; it is read where it is.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    config::Source,
    corefile::{Machine, Surroundings},
};
use crate::data_dir;

/// In the data folder.
pub const FILE: &str = "dns-files.json";
/// Octets of it. What is larger is not kept.
const FILE_MAX: usize = 32 << 20;
/// Stands in files with a private key (RFC 7468).
const PRIVATE_KEY: &str = "PRIVATE KEY-----";

/// What was read of the files, and around them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Texts {
    /// Of which configuration these files are.
    source: String,
    /// Nothing of those that could not be read.
    files: BTreeMap<PathBuf, Option<String>>,
    /// Which files patterns meant.
    patterns: BTreeMap<PathBuf, Vec<PathBuf>>,
    variables: BTreeMap<String, Option<String>>,
}

impl Texts {
    /// Nothing yet of the files that `source` names.
    pub fn of(source: &Source) -> Self {
        Self { source: named(source), ..Self::default() }
    }

    /// Notes what a file says.
    pub fn note_file(&mut self, path: &Path, text: Option<&str>) {
        if !text.is_some_and(|text| text.contains(PRIVATE_KEY)) {
            self.files.insert(path.to_owned(), text.map(str::to_owned));
        }
    }

    /// Whether that file could be read.
    pub fn has(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(Option::is_some)
    }

    /// Notes which files a pattern means.
    pub fn note_pattern(&mut self, pattern: &Path, paths: &[PathBuf]) {
        self.patterns.insert(pattern.to_owned(), paths.to_vec());
    }

    /// Notes a variable of the environment.
    pub fn note_variable(&mut self, name: &str, value: Option<&String>) {
        self.variables.insert(name.to_owned(), value.cloned());
    }

    /// Keeps them in `folder` for agents that begin later.
    pub fn keep(&self, folder: &Path) -> io::Result<()> {
        let path = folder.join(FILE);
        let content = serde_json::to_vec(self)?;
        if content.len() > FILE_MAX {
            return Err(io::Error::other(format!("they have more than {FILE_MAX} octets")));
        }
        if recalled(&path).is_ok_and(|kept| kept.as_ref() == Some(self)) {
            return Ok(());
        }
        data_dir::write(&path, &content)
    }

    /// Those that were kept in `folder` of the files that `source` names; `None` where none were.
    pub fn recall(folder: &Path, source: &Source) -> io::Result<Option<Self>> {
        let kept = recalled(&folder.join(FILE))?;
        Ok(kept.filter(|kept| kept.source == named(source)))
    }
}

fn recalled(path: &Path) -> io::Result<Option<Texts>> {
    let text = data_dir::read(path, FILE_MAX as u64)?;
    text.map(|text| serde_json::from_str(&text).map_err(io::Error::from)).transpose()
}

/// A source in one text: files of another one are none of this one's.
fn named(source: &Source) -> String {
    match source {
        Source::Here => String::new(),
        Source::ResolvConf(path) => format!("resolv.conf {}", path.display()),
        Source::Corefile(path) => format!("Corefile {}", path.display()),
        // As written; what can't be written was never read.
        Source::Blocks(blocks) => serde_json::to_string(blocks).unwrap_or_default(),
    }
}

impl Surroundings for Texts {
    fn read(&self, path: &Path) -> io::Result<String> {
        match self.files.get(path) {
            Some(text) => text.clone().ok_or_else(|| io::ErrorKind::NotFound.into()),
            None => Machine.read(path),
        }
    }

    fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
        self.patterns.get(pattern).cloned().unwrap_or_else(|| Machine.matching(pattern))
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned().unwrap_or_else(|| Machine.variable(name))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn corefile() -> Source {
        Source::Corefile("/etc/coredns/Corefile".into())
    }

    #[test]
    fn what_was_read_is_recalled_for_the_same_files_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let recall = |source: &Source| Texts::recall(folder.path(), source).unwrap();
        assert_eq!(recall(&corefile()), None, "nothing was kept");
        let mut texts = Texts::of(&corefile());
        texts.note_file(Path::new("/etc/coredns/Corefile"), Some(". {\n}\n"));
        texts.note_file(Path::new("/nowhere/hosts"), None);
        texts.note_pattern(Path::new("/etc/coredns/*.server"), &["/etc/coredns/a.server".into()]);
        texts.note_variable("UPSTREAM", Some(&"192.0.2.53".to_owned()));
        texts.keep(folder.path()).unwrap();
        let kept = recall(&corefile()).expect("what was kept");
        assert_eq!(kept, texts);
        assert_eq!(kept.read(Path::new("/etc/coredns/Corefile")).unwrap(), ". {\n}\n");
        assert!(kept.read(Path::new("/nowhere/hosts")).is_err());
        let has = |path: &str| kept.has(Path::new(path));
        assert!(has("/etc/coredns/Corefile") && !has("/nowhere/hosts") && !has("/etc/hosts"));
        assert_eq!(kept.matching(Path::new("/etc/coredns/*.server")).len(), 1);
        assert_eq!(kept.variable("UPSTREAM").as_deref(), Some("192.0.2.53"));
        assert_eq!(recall(&Source::ResolvConf("/etc/resolv.conf".into())), None);
        let mode = std::fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_private_key_is_not_kept_and_what_is_too_large_neither() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key.pem");
        let pem = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
        std::fs::write(&key, pem).unwrap();
        let mut texts = Texts::of(&corefile());
        texts.note_file(&key, Some(pem));
        texts.keep(folder.path()).unwrap();
        let written = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(!written.contains("c2VjcmV0"), "{written}");
        assert_eq!(texts.read(&key).unwrap(), pem, "from where it is");
        texts.note_file(Path::new("/large"), Some(&"a".repeat(FILE_MAX)));
        assert!(texts.keep(folder.path()).is_err());
        assert!(Texts::recall(folder.path(), &corefile()).unwrap().is_some(), "the one before");
    }
}
