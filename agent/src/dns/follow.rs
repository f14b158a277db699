//! The file beside the configuration: read, validated and put in force while the agent runs. A
//! file that can't be used leaves what was in force, of an agent that begins what is
//! [kept] of an earlier one. One that says what it said is read and not
//! understood again: a table of hosts may have a hundred thousand lines.

use std::{
    cell::RefCell,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hickory_proto::rr::Name;
use tokio::task::spawn_blocking;

use super::{
    config::{Config, Source, served_addresses},
    corefile::{self, Corefile, Machine, Surroundings},
    derive::origin,
    kept::{self, Texts},
    meaning::{Meaning, Served},
    native, resolv_conf,
    route::Route,
};

/// What a file came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    /// The configuration with what the file says.
    pub config: Config,
    /// What of the file is left out.
    pub warnings: Vec<String>,
}

/// What was read of the files, to tell whether they still say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    /// What they said, as a number; nothing of those that could not be read.
    files: Vec<(PathBuf, Option<u64>)>,
    /// Which files patterns meant.
    patterns: Vec<(PathBuf, Vec<PathBuf>)>,
}

/// Reads the file that `config` names, if it names one, and keeps what can be used; nothing where
/// that and what it names say what was noted `before`.
pub async fn look(
    config: &Config,
    domain: &Name,
    before: Option<&Arc<Noted>>,
) -> Result<Option<(Followed, Noted)>, String> {
    let (config, domain, before) = (config.clone(), domain.clone(), before.cloned());
    let look = move || {
        if before.as_ref().is_some_and(|before| before.holds(&Machine)) {
            return Ok(None);
        }
        let texts = RefCell::new(Texts::of(&config.source));
        let data_dir = config.data_dir.clone();
        // An agent that begins goes on from what an earlier one read.
        let folder = data_dir.as_deref().filter(|_| before.is_none());
        let kept = folder.and_then(|folder| Texts::recall(folder, &config.source).ok().flatten());
        let before = (before.as_deref(), kept.as_ref());
        let noting = Noting { inner: &Machine, before, noted: RefCell::default(), texts };
        let followed = read(config, domain, &noting)?;
        let Noting { noted, texts, .. } = noting;
        if let Some(Err(error)) = data_dir.map(|folder| texts.borrow().keep(&folder)) {
            tracing::warn!(%error, "what the resolver's files say is not kept (--data-dir)");
        }
        Ok(Some((followed, noted.into_inner())))
    };
    spawn_blocking(look).await.map_err(|error| format!("the file was not read: {error}"))?
}

/// What the file that `config` names said when an agent could last use it; `None` where that is not
/// known.
pub async fn recall(config: &Config, domain: &Name) -> Result<Option<Followed>, String> {
    let (config, domain) = (config.clone(), domain.clone());
    let recall = move || {
        let Some(folder) = config.data_dir.clone() else { return Ok(None) };
        let named = |why: String| format!("{}: {why}", folder.join(kept::FILE).display());
        let texts = Texts::recall(&folder, &config.source);
        let texts = texts.map_err(|error| named(error.to_string()))?;
        texts.map(|texts| read(config, domain, &texts).map_err(named)).transpose()
    };
    spawn_blocking(recall).await.map_err(|error| format!("the file was not read: {error}"))?
}

/// Surroundings, and what was read of them.
struct Noting<'a> {
    inner: &'a dyn Surroundings,
    /// What was read when it could last be used: by this agent, or an earlier one.
    before: (Option<&'a Noted>, Option<&'a Texts>),
    noted: RefCell<Noted>,
    texts: RefCell<Texts>,
}

impl Noting<'_> {
    fn was_there(&self, path: &Path) -> bool {
        let (noted, kept) = self.before;
        noted.is_some_and(|noted| noted.has(path)) || kept.is_some_and(|kept| kept.has(path))
    }
}

impl Surroundings for Noting<'_> {
    fn read(&self, path: &Path) -> io::Result<String> {
        let text = self.inner.read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if self.was_there(path) => {
                io::Error::other("it was there and is gone; put it back, or name it no longer")
            }
            _ => error,
        });
        let said = text.as_ref().ok().map(|text| number(text));
        self.noted.borrow_mut().files.push((path.to_owned(), said));
        self.texts.borrow_mut().note_file(path, text.as_deref().ok());
        text
    }

    fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
        let paths = self.inner.matching(pattern);
        self.noted.borrow_mut().patterns.push((pattern.to_owned(), paths.clone()));
        self.texts.borrow_mut().note_pattern(pattern, &paths);
        paths
    }

    /// The environment of a process does not change.
    fn variable(&self, name: &str) -> Option<String> {
        let value = self.inner.variable(name);
        self.texts.borrow_mut().note_variable(name, value.as_ref());
        value
    }
}

impl Noted {
    /// Whether that file could be read.
    fn has(&self, path: &Path) -> bool {
        self.files.iter().any(|(file, said)| file == path && said.is_some())
    }

    fn holds(&self, surroundings: &dyn Surroundings) -> bool {
        let said = |path: &Path| surroundings.read(path).ok().map(|text| number(&text));
        self.files.iter().all(|(path, before)| said(path) == *before)
            && self.patterns.iter().all(|(all, before)| surroundings.matching(all) == *before)
    }
}

/// A number that another text does not have but by a chance of one in 2^64.
fn number(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// What of the file that `config` names is left out; an error where it can't be used.
pub fn check(config: &Config) -> Result<Vec<String>, String> {
    let domain = origin(&config.cluster_domain).map_err(|error| error.to_string())?;
    read(config.clone(), domain, &Machine).map(|followed| followed.warnings)
}

fn read(
    mut config: Config,
    domain: Name,
    surroundings: &dyn Surroundings,
) -> Result<Followed, String> {
    match config.source.clone() {
        Source::Here => Ok(Followed { config, warnings: Vec::new() }),
        Source::ResolvConf(path) => {
            let servers = resolv_conf::name_servers(&path, |path| surroundings.read(path).ok());
            let servers = servers.ok_or_else(|| format!("{} can't be read", path.display()))?;
            config.routes = vec![Route::to(servers)];
            Ok(Followed { config, warnings: Vec::new() })
        }
        Source::Corefile(path) => {
            let served = served(&config, domain);
            let read = corefile::read(&path, &served, surroundings);
            let Corefile { blocks, warnings } = read.map_err(|error| error.to_string())?;
            let config = Meaning::of(blocks, &served).applied(&config);
            let warnings = warnings.iter().map(ToString::to_string);
            let warnings = warnings.chain(config.excesses()).collect();
            Ok(Followed { config, warnings })
        }
        Source::Blocks(written) => {
            let served = served(&config, domain);
            let (blocks, mut warnings) = native::read(&written, &served, surroundings)?;
            let config = Meaning::of(blocks, &served).applied(&config);
            warnings.extend(config.excesses());
            Ok(Followed { config, warnings })
        }
    }
}

/// What server blocks have to fit.
fn served(config: &Config, domain: Name) -> Served {
    Served {
        domain,
        port: config.port,
        addresses: served_addresses(config),
        node_local: config.node_local_addresses.clone(),
        connects_pods: config.connects_pods,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_understood_again_when_any_of_them_says_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let hosts = folder.path().join("hosts");
        write("hosts", "192.0.2.1 a.example\n");
        let rest = format!("hosts {} {{\nfallthrough\n}}\nimport more/*\n", hosts.display());
        write("Corefile", &format!(".:53 {{\nkubernetes cluster.local\n{rest}}}\n"));
        std::fs::create_dir(folder.path().join("more")).unwrap();
        let source = Source::Corefile(folder.path().join("Corefile"));
        let config = Config { source, ..Config::default() };
        let domain = origin("cluster.local").unwrap();
        let mut noted = None;
        let is_new = async |noted: &mut Option<Arc<Noted>>| {
            let looked = look(&config, &domain, noted.as_ref()).await.unwrap();
            let new = looked.map(|(followed, now)| {
                *noted = Some(Arc::new(now));
                followed.config
            });
            new.map(|config| (config.routes, config.blocks))
        };
        let first = is_new(&mut noted).await.expect("the first look");
        assert_eq!(is_new(&mut noted).await, None);
        // As long as before.
        write("hosts", "192.0.2.2 a.example\n");
        let second = is_new(&mut noted).await.expect("a changed table");
        assert_ne!(first, second);
        write("more/forward", "forward . 192.0.2.53\n");
        assert!(is_new(&mut noted).await.is_some(), "another file of the pattern");
        assert_eq!(is_new(&mut noted).await, None);
        // What it said stays in force; as soon as it is there again, that is what it says.
        std::fs::remove_file(&hosts).unwrap();
        let gone = look(&config, &domain, noted.as_ref()).await.unwrap_err();
        assert!(gone.contains("it was there and is gone"), "{gone}");
        write("hosts", "192.0.2.2 a.example\n");
        assert_eq!(is_new(&mut noted).await, None);
    }

    /// In a Corefile and in the agent's own configuration alike.
    #[tokio::test]
    async fn a_table_that_is_not_there_yet_is_empty_and_one_that_cant_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let hosts = folder.path().join("hosts");
        let corefile = folder.path().join("Corefile");
        std::fs::write(&corefile, format!(".:53 {{\nhosts {}\n}}\n", hosts.display())).unwrap();
        let blocks = format!("[{{hosts: {{file: {}}}}}]", hosts.display());
        let data_dir = Some(folder.path().to_owned());
        let sources = [Source::Corefile(corefile), Source::Blocks(blocks.parse().unwrap())];
        let configs = sources.map(|source| Config {
            source,
            data_dir: data_dir.clone(),
            ..Config::default()
        });
        let domain = origin("cluster.local").unwrap();
        for config in &configs {
            assert!(look(config, &domain, None).await.unwrap().is_some());
            assert!(check(config).is_ok());
        }
        // One that is cut says so: one name has more addresses than there is room for.
        let line = |at| format!("10.0.{}.{} a\n", at / 256, at % 256);
        let cut = "the server block .: its table of hosts leaves out 1 of its pairs";
        for (addresses, is_cut) in [(256_u16, false), (257, true)] {
            let lines: Vec<_> = (0..addresses).map(line).collect();
            std::fs::write(&hosts, lines.concat()).unwrap();
            for config in &configs {
                let warnings = check(config).unwrap();
                let said = warnings.iter().any(|warning| warning.starts_with(cut));
                assert_eq!(said, is_cut, "{warnings:?}");
            }
        }
        std::fs::remove_file(&hosts).unwrap();
        std::fs::create_dir(&hosts).unwrap();
        for config in &configs {
            for why in [look(config, &domain, None).await.unwrap_err(), check(config).unwrap_err()]
            {
                let table = format!("the table {} can't be read", hosts.display());
                assert!(why.contains(&table), "{why}");
            }
        }
        // An agent that begins while it is gone goes on with what an earlier one had of it.
        std::fs::remove_dir(&hosts).unwrap();
        for config in &configs {
            std::fs::write(&hosts, "192.0.2.1 a.example\n").unwrap();
            let (there, _) = look(config, &domain, None).await.unwrap().unwrap();
            std::fs::remove_file(&hosts).unwrap();
            let why = look(config, &domain, None).await.unwrap_err();
            assert!(why.contains("it was there and is gone"), "{why}");
            assert_eq!(recall(config, &domain).await.unwrap(), Some(there));
        }
    }
}
