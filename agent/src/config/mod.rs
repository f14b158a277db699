//! The agent's configuration: a file, flags for every field of it, and the defaults, in this order
//! of precedence from the last to the first. Read once, validated once, passed on by value.

mod fields;
mod roles;

use std::path::{Path, PathBuf};

pub use fields::{Config, Flags};

/// The only `apiVersion` of the file.
pub const API_VERSION: &str = "mizzen.dev/v1alpha1";
/// The only `kind` of the file.
pub const KIND: &str = "AgentConfiguration";

/// Where a value is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
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
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// A configuration with the origin of each value.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The values.
    pub config: Config,
    origins: Vec<Origin>,
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
    #[error("{field} (--{flag}): {why}")]
    Value {
        /// The field's name in the file.
        field: String,
        /// The flag's name.
        flag: String,
        /// What is wrong, and what would be right.
        why: String,
    },
}

impl ConfigError {
    /// An error about the field `name` of [`Config`].
    fn value(name: &str, why: impl Into<String>) -> Self {
        debug_assert!(fields::NAMES.contains(&name), "{name} is no field");
        Self::Value { field: camel_case(name), flag: name.replace('_', "-"), why: why.into() }
    }
}

/// The configuration from an optional file, the flags, and `node_name_variable`, the value of
/// NODE_NAME.
pub fn resolve(
    file: Option<&Path>,
    flags: Flags,
    node_name_variable: Option<String>,
) -> Result<Resolved, ConfigError> {
    let file = file.map(read).transpose()?.unwrap_or_default();
    let (mut config, mut origins) = fields::layer(file, flags);
    if config.node_name.is_empty()
        && let Some(name) = node_name_variable
    {
        config.node_name = name;
        if let Some(at) = fields::NAMES.iter().position(|name| *name == "node_name") {
            origins[at] = Origin::Environment;
        }
    }
    config.check()?;
    Ok(Resolved { config, origins })
}

fn read(path: &Path) -> Result<fields::File, ConfigError> {
    let path = path.to_path_buf();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(ConfigError::Read { path, source }),
    };
    parse(&text, path)
}

fn parse(text: &str, path: PathBuf) -> Result<fields::File, ConfigError> {
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
    /// The configuration as a file that would say the same, with the origin of each value.
    pub fn show(&self) -> String {
        let mut lines = vec![format!("apiVersion: {API_VERSION}"), format!("kind: {KIND}")];
        for ((field, value), origin) in fields::values(&self.config).into_iter().zip(&self.origins)
        {
            lines.push(format!("{field}: {value}  # {origin}"));
        }
        lines.join("\n") + "\n"
    }
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
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let error = parse(text, "agent.yaml".into()).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {cause}")
    }

    const HEAD: &str = "apiVersion: mizzen.dev/v1alpha1\n";

    #[test]
    fn an_unknown_field_is_named_with_its_line() {
        let error = error(&format!("{HEAD}nodeName: a\nnodePortAdresses: []\n"));
        assert!(error.contains("agent.yaml") && error.contains("nodePortAdresses"), "{error}");
        assert!(error.contains("line 3"), "{error}");
        assert!(error.contains("nodePortAddresses"), "it says what there is: {error}");
    }

    #[test]
    fn what_is_wrong_in_a_server_block_is_named_with_its_line() {
        let unknown = error(&format!("{HEAD}dnsBlocks:\n- zones: [a]\n  forwards: []\n"));
        assert!(unknown.contains("dnsBlocks[0]") && unknown.contains("forwards"), "{unknown}");
        assert!(unknown.contains("line 4"), "{unknown}");
        let meant = error(&format!("{HEAD}dnsBlocks:\n- zones: [a]\n  bufsize: 1\n"));
        assert!(meant.contains("dnsBlocks[0]: bufsize: 1 is no number"), "{meant}");
        assert!(meant.contains("line 3"), "the block's: {meant}");
    }

    #[test]
    fn server_blocks_are_shown_as_they_would_be_written() {
        let blocks = "[{\"zones\":[\"a\"],\"forward\":[{\"to\":[\"192.0.2.1\"]}]}]";
        let flags = Flags {
            node_name: Some("n".into()),
            dns_blocks: Some("[{zones: [a], forward: [{to: [192.0.2.1]}]}]".parse().unwrap()),
            ..Flags::default()
        };
        let shown = resolve(None, flags, None).unwrap().show();
        assert!(shown.contains(&format!("dnsBlocks: {blocks}  # flag\n")), "{shown}");
        let again = parse(&shown, "shown".into()).unwrap();
        assert_eq!(again.dns_blocks.unwrap().0.len(), 1);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_line() {
        let error = error(&format!("{HEAD}services: maybe\n"));
        assert!(error.contains("services") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn another_version_is_refused() {
        let error = error("apiVersion: mizzen.dev/v2\n");
        assert!(error.contains("mizzen.dev/v2") && error.contains(API_VERSION), "{error}");
        assert!(parse("", "x".into()).is_err(), "apiVersion is needed");
    }

    #[test]
    fn flags_go_before_the_file_before_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.yaml");
        std::fs::write(&path, format!("{HEAD}nodeName: a\nclusterDomain: file.example\n")).unwrap();
        let flags = Flags { node_name: Some("b".into()), ..Flags::default() };
        let resolved = resolve(Some(&path), flags, Some("c".into())).unwrap();
        assert_eq!(resolved.config.node_name, "b");
        let shown = resolved.show();
        assert!(shown.contains("nodeName: \"b\"  # flag\n"), "{shown}");
        assert!(shown.contains("clusterDomain: \"file.example\"  # file\n"), "{shown}");
        assert!(shown.contains("services: true  # default\n"), "{shown}");
        let again = parse(&shown, "shown".into()).unwrap();
        assert_eq!(fields::layer(again, Flags::default()).0, resolved.config);
    }

    #[test]
    fn without_a_node_name_the_remedies_are_named() {
        let error = resolve(None, Flags::default(), None).unwrap_err().to_string();
        assert!(error.contains("--node-name") && error.contains("NODE_NAME"), "{error}");
        assert!(resolve(None, Flags::default(), Some("n".into())).is_ok());
    }
}
