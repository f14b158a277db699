//! The agent's configuration: flags, a file, a KubeProxyConfiguration and the defaults, in this order
//! of precedence; two variables have a say too. Read once, validated once, passed on by value.
//!
//! [`fields`] is the one table of it: the flags, the file's fields, the configuration itself and the
//! reference page are made of it. [`kube_proxy`] has another, of kube-proxy's fields.

mod fields;
mod kept;
mod kube_proxy;
mod reference;
mod roles;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub use fields::{Config, Flags};
pub use kube_proxy::Note;
pub use reference::{page as reference_page, schema};

/// The only `apiVersion` of the file.
pub const API_VERSION: &str = "mizzen.dev/v1alpha1";
/// The only `kind` of the file.
pub const KIND: &str = "AgentConfiguration";

/// Where a value is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// kube-proxy's configuration.
    KubeProxy,
    /// The file.
    File,
    /// A variable of the environment.
    Environment,
    /// A flag.
    Flag,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::KubeProxy => "kube-proxy",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// The variables that say something, where they are set.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `NODE_NAME`: what the node is called where neither a flag nor the file says it.
    pub node_name: Option<String>,
    /// `RUST_LOG`: what is logged, whoever says otherwise.
    pub log_filter: Option<String>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self { node_name: given("NODE_NAME"), log_filter: given("RUST_LOG") }
    }
}

/// A configuration with the origin of each value.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The values.
    pub config: Config,
    /// What of kube-proxy's configuration has no effect.
    pub notes: Vec<Note>,
    origins: Vec<Origin>,
    /// kube-proxy's configuration, where one is named.
    kube_proxy: Option<kept::Source>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be; the cause names the field and the line.
    #[error("the configuration {path} is not valid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_yaml_ng::Error,
    },
    /// The file is of another version or kind.
    #[error("the configuration {path} has {field} {found:?}, and must have {expected:?}")]
    Version {
        /// The file.
        path: PathBuf,
        /// `apiVersion` or `kind`.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
    /// A value can't be.
    #[error("{field} (--{flag}){place}: {why}")]
    Value {
        /// The field's name in the file.
        field: String,
        /// The flag's name.
        flag: String,
        /// Where a file says it: ` in FILE, line 3`; else empty.
        place: String,
        /// What is wrong, and what would be right.
        why: String,
    },
}

impl ConfigError {
    /// An error about the field `name` of [`Config`].
    fn value(name: &str, why: impl Into<String>) -> Self {
        debug_assert!(fields::all().any(|field| field.name == name), "{name} is no field");
        let (field, flag) = (camel_case(name), name.replace('_', "-"));
        Self::Value { field, flag, place: String::new(), why: why.into() }
    }

    /// The same, where it is about a field of the file with `text`, with its place.
    fn placed(mut self, path: &Path, text: &str) -> Self {
        if let Self::Value { field, place, .. } = &mut self {
            let key = format!("{field}:");
            if let Some(line) = text.lines().position(|line| line.starts_with(&key)) {
                *place = format!(" in {}, line {}", path.display(), line + 1);
            }
        }
        self
    }
}

/// The configuration from an optional file, the flags and the environment.
pub fn resolve(
    path: Option<&Path>,
    flags: Flags,
    environment: Environment,
) -> Result<Resolved, ConfigError> {
    let text = path.map(read).transpose()?;
    let file = match path.zip(text.as_ref()) {
        Some((path, text)) => parse(text, path)?,
        None => fields::File::default(),
    };
    let named = flags.kube_proxy_config.as_ref().or(file.kube_proxy_config.as_ref());
    let named = named.filter(|path| !path.as_os_str().is_empty());
    let data_dir = flags.data_dir.as_ref().or(file.data_dir.as_ref());
    let data_dir = data_dir.cloned().unwrap_or_else(|| Config::default().data_dir);
    let mut kube_proxy = named.map(|path| kept::Source::find(path, &data_dir)).transpose()?;
    let taken = kube_proxy.as_mut().map(kept::Source::take).transpose()?.unwrap_or_default();
    let (config, origins) = fields::layer(flags, file, taken.settings);
    let mut resolved = Resolved { config, notes: taken.notes, origins, kube_proxy };
    resolved.hear(environment);
    resolved.config.check().map_err(|error| match path.zip(text.as_ref()) {
        Some((path, text)) if resolved.is_of_file(&error) => error.placed(path, text),
        _ => error,
    })?;
    Ok(resolved)
}

/// Validates a file alone, of either kind; gives what of it has no effect.
pub fn check_file(path: &Path) -> Result<Vec<Note>, ConfigError> {
    check_text(&read(path)?, path)
}

/// The same of what a file says.
pub fn check_text(text: &str, path: &Path) -> Result<Vec<Note>, ConfigError> {
    if is_kube_proxys(text) {
        let taken = take(text, path)?;
        fields::layer(Flags::default(), fields::File::default(), taken.settings).0.check()?;
        return Ok(taken.notes);
    }
    let file = parse(text, path)?;
    let (config, _) = fields::layer(Flags::default(), file, fields::File::default());
    config.check().map_err(|error| error.placed(path, text))?;
    Ok(Vec::new())
}

/// Whether a file says of itself that it is kube-proxy's.
pub fn is_kube_proxys(text: &str) -> bool {
    let in_a_line = |line: &str| {
        let value = line.strip_prefix("kind:").map(|value| value.trim().trim_matches(['"', '\'']));
        value == Some(kube_proxy::KIND)
    };
    // One that can't be read is to be named as what it is.
    text.lines().any(in_a_line)
        || serde_yaml_ng::from_str::<Value>(text).is_ok_and(|it| it["kind"] == kube_proxy::KIND)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let path = path.to_path_buf();
    std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path, source })
}

fn take(text: &str, path: &Path) -> Result<kube_proxy::Taken, ConfigError> {
    let path = path.to_path_buf();
    kube_proxy::take(text).map_err(|source| ConfigError::Parse { path, source })
}

fn parse(text: &str, path: &Path) -> Result<fields::File, ConfigError> {
    let path = path.to_path_buf();
    let file: fields::File = match serde_yaml_ng::from_str(text) {
        Ok(file) => file,
        Err(source) => return Err(ConfigError::Parse { path, source }),
    };
    let given = |value: &Option<String>| value.clone().unwrap_or_default();
    let version = given(&file.api_version);
    let kind = file.kind.clone().unwrap_or_else(|| KIND.to_owned());
    for (field, found, expected) in [("apiVersion", version, API_VERSION), ("kind", kind, KIND)] {
        if found != expected {
            return Err(ConfigError::Version { path, field, found, expected });
        }
    }
    Ok(file)
}

impl Resolved {
    /// Without a name of the node nothing runs; what is shown and checked does without.
    pub fn named(self) -> Result<Self, ConfigError> {
        if self.config.node_name.is_empty() {
            let why = "name this machine's Node object by --node-name or the variable NODE_NAME";
            return Err(ConfigError::value("node_name", why));
        }
        Ok(self)
    }

    /// Keeps kube-proxy's configuration, where one is named, for agents that start when it is gone.
    pub fn keep_kube_proxys(&self) -> std::io::Result<()> {
        self.kube_proxy.as_ref().map_or(Ok(()), kept::Source::keep)
    }

    /// What is to be said where the configuration that is named for kube-proxy's is gone, and this
    /// is made of the one that was kept.
    pub fn kube_proxys_is_gone(&self) -> Option<String> {
        self.kube_proxy.as_ref()?.is_gone()
    }

    /// Takes what the variables say.
    fn hear(&mut self, mut environment: Environment) {
        let Config { node_name, log_filter, .. } = &mut self.config;
        for (field, origin) in fields::all().zip(&mut self.origins) {
            let (value, said) = match field.name {
                // kube-proxy's file is one for all nodes: those who name its pods' nodes do it by a
                // flag, over what the file has.
                "node_name" if node_name.is_empty() || *origin == Origin::KubeProxy => {
                    (&mut *node_name, environment.node_name.take())
                }
                "log_filter" => (&mut *log_filter, environment.log_filter.take()),
                _ => continue,
            };
            if let Some(said) = said {
                *value = said;
                *origin = Origin::Environment;
            }
        }
    }

    /// Whether an error is about a value of the file.
    fn is_of_file(&self, error: &ConfigError) -> bool {
        let ConfigError::Value { field: wrong, .. } = error else { return false };
        let mut all = fields::all().zip(&self.origins);
        all.any(|(field, origin)| field.key() == *wrong && *origin == Origin::File)
    }

    /// The configuration as a file that would say the same, with the origin of each value.
    pub fn show(&self) -> String {
        let mut lines = vec![format!("apiVersion: {API_VERSION}"), format!("kind: {KIND}")];
        for (field, value, origin) in self.rows() {
            lines.push(format!("{}: {value}  # {origin}", field.key()));
        }
        lines.join("\n") + "\n"
    }

    /// Each value with its origin, and what of kube-proxy's configuration has no effect.
    pub fn to_json(&self) -> Value {
        let fields = self.rows().map(|(field, value, origin)| {
            let value: Value = serde_json::from_str(&value).unwrap_or_default();
            (field.key(), json!({"value": value, "origin": origin.to_string()}))
        });
        let notes = self.notes.iter().map(|note| json!({"field": note.field, "why": note.why}));
        json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "fields": fields.collect::<serde_json::Map<_, _>>(),
            "withoutEffect": notes.collect::<Vec<_>>(),
        })
    }

    /// Each field, its value as JSON, and its origin.
    fn rows(&self) -> impl Iterator<Item = (&'static fields::Field, String, Origin)> {
        let values = fields::values(&self.config).into_iter().zip(&self.origins);
        fields::all().zip(values).map(|(field, (value, origin))| (field, value, *origin))
    }
}

/// Whether a field of the configuration, and so a flag, has this name.
pub fn is_setting(name: &str) -> bool {
    fields::all().any(|field| field.name == name)
}

/// What of a KubeProxyConfiguration has no effect. An error has line and column.
pub fn kube_proxy_notes(text: &str) -> Result<Vec<Note>, serde_yaml_ng::Error> {
    kube_proxy::take(text).map(|taken| taken.notes)
}

/// `node_name` as `nodeName`.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(1);
        camel.push_str(&first.to_uppercase());
        camel.push_str(rest);
    }
    camel
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
