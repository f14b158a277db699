//! A KubeProxyConfiguration (`kubeproxy.config.k8s.io/v1alpha1`) as settings of the agent's, so that
//! what a cluster has configured goes on to hold.
//!
//! [`table`] says of every field what its values may be, and which settings it becomes or why it has
//! no effect; [`read`] reads a file by it, and [`convert`] is what it says. Nothing of a file is
//! passed over in silence: what the table does not have is an error with its place, and what has no
//! effect is told once.

mod convert;
mod read;
pub(super) mod table;

use std::{collections::BTreeMap, net::SocketAddr};

use super::fields::File;

/// The `apiVersion` of these files.
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// Their `kind`.
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// What a file says, as settings.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The settings that it says something about.
    pub(super) settings: File,
    /// What it says in vain.
    pub(super) notes: Vec<Note>,
}

/// A field that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Its path in the file, as `iptables.syncPeriod`.
    pub field: String,
    /// Why it has none.
    pub why: &'static str,
}

/// What the file with `text` says. An error has line and column.
pub(super) fn take(text: &str) -> Result<Taken, serde_yaml_ng::Error> {
    let values = read::read(text)?;
    let notes = table::FIELDS.iter().filter_map(|field| {
        let table::Meaning::NoEffect(why) = field.meaning else { return None };
        let said = values.0.get(field.path).is_some_and(Value::says_something);
        said.then(|| Note { field: field.path.to_owned(), why })
    });
    Ok(Taken { notes: notes.collect(), settings: convert::settings(&values) })
}

/// A value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Bool(bool),
    Integer(i64),
    Text(String),
    Texts(Vec<String>),
    /// Whose content nobody asks for; whether there is any.
    Other(bool),
}

impl Value {
    /// Whether it is other than what kubeadm writes for a field that nobody set.
    fn says_something(&self) -> bool {
        match self {
            Self::Bool(value) | Self::Other(value) => *value,
            Self::Integer(value) => *value != 0,
            Self::Text(text) => !text.is_empty(),
            Self::Texts(texts) => !texts.is_empty(),
        }
    }
}

/// The values of a file by the paths of their fields, without those that are null.
#[derive(Debug, Default)]
pub(super) struct Values(BTreeMap<&'static str, Value>);

impl Values {
    fn flag(&self, path: &str) -> Option<bool> {
        if let Some(Value::Bool(value)) = self.0.get(path) { Some(*value) } else { None }
    }

    fn integer(&self, path: &str) -> Option<i64> {
        if let Some(Value::Integer(value)) = self.0.get(path) { Some(*value) } else { None }
    }

    /// Where it is not empty.
    fn text(&self, path: &str) -> Option<&str> {
        let Some(Value::Text(text)) = self.0.get(path) else { return None };
        (!text.is_empty()).then_some(text)
    }

    fn texts(&self, path: &str) -> &[String] {
        if let Some(Value::Texts(texts)) = self.0.get(path) { texts } else { &[] }
    }
}

/// An address to listen at, with `port` where it has none. IPv4's unspecified address means both
/// families, as it does for kube-proxy.
fn listen_address(text: &str, port: u16) -> Option<SocketAddr> {
    let with_port = text.parse::<SocketAddr>().ok();
    let bare = || text.trim_matches(['[', ']']).parse().ok().map(|ip| SocketAddr::new(ip, port));
    let mut address = with_port.or_else(bare)?;
    if address.ip() == std::net::Ipv4Addr::UNSPECIFIED {
        address.set_ip(std::net::Ipv6Addr::UNSPECIFIED.into());
    }
    Some(address)
}

#[cfg(test)]
mod tests;
