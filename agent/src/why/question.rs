//! The question: SRC and DST as they are written, read by the command line and by the agent alike.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::model::{ObjectKey, service::Protocol};

/// The longest text of a SRC or DST: two names of 253 characters, port and protocol.
const LENGTH_MAX: usize = 600;

/// Who dials: `node`, `namespace/name` of a pod, an address, or `address:port` of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// This node itself.
    Node,
    /// A pod.
    Pod(ObjectKey),
    /// An address, and the port where one connection is meant.
    Address(IpAddr, Option<u16>),
}

/// A port as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortName {
    /// By its number.
    Number(u16),
    /// By its name.
    Name(String),
}

/// What is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A service's cluster IPs, at one port or at all.
    Service(ObjectKey, Option<PortName>),
    /// An address.
    Address(SocketAddr),
}

/// What is dialled, and how: `namespace/name[:port][/protocol]` or `address:port[/protocol]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// What.
    pub target: Target,
    /// How, where it is said: TCP otherwise, or what the service's port speaks.
    pub protocol: Option<Protocol>,
}

/// A text that is no source or destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not a source.
    #[error(
        "{0:?} is no client: `node` for this node, namespace/name of a pod, or an address such as \
         10.244.1.5 or [fd00:244::5]:40000"
    )]
    Source(String),
    /// Not a destination.
    #[error(
        "{0:?} is no destination: namespace/name[:port] of a service or address:port, and /tcp, \
         /udp or /sctp behind it"
    )]
    Destination(String),
    /// An address without a port.
    #[error("{0:?} needs a port, as in 10.96.0.10:53/udp or [fd00:96::a]:53")]
    Portless(String),
}

impl FromStr for Source {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "node" {
            return Ok(Self::Node);
        }
        if let Some(address) = address(text) {
            return Ok(Self::Address(address, None));
        }
        if let Ok(at) = text.parse::<SocketAddr>() {
            return Ok(Self::Address(at.ip().to_canonical(), Some(at.port())));
        }
        let key = text.split_once('/').and_then(|(namespace, name)| object_key(namespace, name));
        key.map(Self::Pod).ok_or_else(|| ParseError::Source(shown(text)))
    }
}

impl FromStr for Destination {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::Destination(shown(text));
        if text.len() > LENGTH_MAX {
            return Err(wrong());
        }
        let parts: Vec<&str> = text.split('/').collect();
        let (target, protocol) = match parts[..] {
            [first] => (target(first), None),
            [first, last] => match target(first) {
                Some(target) => (Some(target), Some(protocol(last).ok_or_else(wrong)?)),
                None => (service(first, last), None),
            },
            [namespace, name, last] => {
                (service(namespace, name), Some(protocol(last).ok_or_else(wrong)?))
            }
            _ => (None, None),
        };
        match target {
            Some(target) => Ok(Self { target, protocol }),
            None if parts.first().copied().and_then(address).is_some() => {
                Err(ParseError::Portless(shown(text)))
            }
            None => Err(wrong()),
        }
    }
}

/// `address:port`.
fn target(text: &str) -> Option<Target> {
    let at = text.parse::<SocketAddr>().ok().filter(|at| at.port() != 0)?;
    Some(Target::Address((at.ip().to_canonical(), at.port()).into()))
}

/// `namespace` and `name[:port]`.
fn service(namespace: &str, name: &str) -> Option<Target> {
    let (name, port) = match name.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (name, None),
    };
    let port = match port {
        None => None,
        Some(port) => Some(match port.parse::<u16>() {
            Ok(0) => return None,
            Ok(number) => PortName::Number(number),
            Err(_) => PortName::Name(label(port)?.to_owned()),
        }),
    };
    Some(Target::Service(object_key(namespace, name)?, port))
}

/// A bare address, in brackets or not.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn protocol(text: &str) -> Option<Protocol> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// A namespace and a name, if they can be such.
pub fn object_key(namespace: &str, name: &str) -> Option<ObjectKey> {
    // A namespace has no dots, so that it is never taken for an address.
    let namespace = label(namespace).filter(|namespace| !namespace.contains('.'))?;
    Some(ObjectKey::new(namespace, label(name)?))
}

/// A name as Kubernetes has them (RFC 1123).
fn label(text: &str) -> Option<&str> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    (!text.is_empty() && text.len() <= 253 && text.bytes().all(good)).then_some(text)
}

/// The text, cut to a length that can be shown.
fn shown(text: &str) -> String {
    text.chars().take(LENGTH_MAX).collect()
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Pod(key) => write!(f, "{key}"),
            Self::Address(address, None) => write!(f, "{address}"),
            Self::Address(address, Some(port)) => write!(f, "{}", SocketAddr::new(*address, *port)),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Address(at) => write!(f, "{at}")?,
            Target::Service(key, None) => write!(f, "{key}")?,
            Target::Service(key, Some(PortName::Number(port))) => write!(f, "{key}:{port}")?,
            Target::Service(key, Some(PortName::Name(port))) => write!(f, "{key}:{port}")?,
        }
        match self.protocol {
            Some(protocol) => write!(f, "/{}", protocol.to_string().to_ascii_lowercase()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_written() {
        for text in ["node", "default/web-0", "10.244.1.5", "10.244.1.5:40000", "[fd00::5]:40000"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        assert_eq!("[fd00::5]".parse(), Ok(Source::Address("fd00::5".parse().unwrap(), None)));
        assert_eq!("::ffff:10.0.0.1".parse::<Source>().unwrap().to_string(), "10.0.0.1");
        for bad in ["", "web", "a/b/c", "a/", "/b", "a/b c", "10.0.0.1/24"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }

    #[test]
    fn destinations_are_read_and_written() {
        for text in [
            "default/web",
            "default/web:80",
            "default/web:http",
            "default/web:http/udp",
            "default/web/udp",
            "10.96.0.10:53",
            "10.96.0.10:53/udp",
            "[fd00:96::a]:53/sctp",
        ] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
        let loud: Destination = "10.96.0.10:53/UDP".parse().unwrap();
        assert_eq!(loud.protocol, Some(Protocol::Udp));
        for bad in ["", "web", "a/b/c", "a/b/icmp", "a/b:0", "a/b:", "10.0.0.1:0", "a/b/tcp/x"] {
            assert!(matches!(bad.parse::<Destination>(), Err(ParseError::Destination(_))), "{bad}");
        }
        for portless in ["10.96.0.10", "fd00:96::a", "10.96.0.10/udp"] {
            let error = portless.parse::<Destination>().unwrap_err();
            assert!(matches!(error, ParseError::Portless(_)), "{portless}: {error}");
        }
        assert!("x".repeat(10_000).parse::<Destination>().unwrap_err().to_string().len() < 900);
    }
}
