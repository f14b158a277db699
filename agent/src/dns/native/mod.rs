//! Server blocks in the agent's own configuration (`dnsBlocks`): what a Corefile says, as YAML.
//!
//! ```text
//! YAML -> these types (as written, each checked where it stands) -> server blocks
//! ```
//! Whatever can be checked without files is checked while it is read, so that the error names the
//! field and the line.

mod blocks;
mod steps;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops::Deref, path::PathBuf, str::FromStr};

use hickory_proto::rr::Name;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

pub use self::blocks::read;
use super::notation;

/// What something written means; an error says what is wrong with it.
pub trait Meant {
    /// What it means.
    type Meaning;
    /// What it is called in errors.
    const FIELD: &'static str;
    /// Its meaning.
    fn meant(&self) -> Result<Self::Meaning, String>;
}

/// Something written that means something: it was tried when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Checked<T>(T);

impl<'de, T: Deserialize<'de> + Meant> Deserialize<'de> for Checked<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = T::deserialize(deserializer)?;
        // Where a mapping has a value that can't be, its line is that of the mapping.
        let named = |why: String| D::Error::custom(format!("{}: {why}", T::FIELD));
        written.meant().map_err(named)?;
        Ok(Self(written))
    }
}

impl<T> Deref for Checked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Makes a text that means something by a function.
macro_rules! texts {
    ($( $(#[doc = $help:literal])+ $name:ident $field:literal => $meaning:ty = $read:expr; )*) => { $(
        $(#[doc = $help])+
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl Meant for $name {
            type Meaning = $meaning;
            const FIELD: &'static str = $field;

            fn meant(&self) -> Result<$meaning, String> {
                ($read)(&self.0)
            }
        }
    )* };
}

texts! {
    /// A zone: a name, or a range of addresses, which may be several.
    Zone "a zone" => Vec<Name> = notation::zones;
    /// A response code after which another upstream is asked.
    FailingCode "failover" => hickory_proto::op::ResponseCode = notation::failing_code;
    /// A response code.
    Code "next" => hickory_proto::op::ResponseCode = notation::response_code;
    /// A time such as `30s`.
    Time "a time" => std::time::Duration = notation::duration;
    /// How names of pods are answered.
    Pods "pods" => super::zone::PodNames = notation::pods;
    /// Which objects are meant, by their labels.
    Selection "labels" => crate::model::labels::Selector = notation::selection;
    /// With whom a question begins.
    Policy "policy" => super::route::Policy = notation::policy;
}

/// Zones.
type Zones = Vec<Checked<Zone>>;

/// The zones that are written, or where none are `otherwise`.
fn zones(written: &Zones, otherwise: &[Name]) -> Result<Vec<Name>, String> {
    if written.is_empty() {
        return Ok(otherwise.to_vec());
    }
    let all = written.iter().map(|zone| zone.meant());
    Ok(all.collect::<Result<Vec<_>, _>>()?.concat())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Makes a mapping of which every field may be missing and none is unknown.
macro_rules! mappings {
    ($(
        $(#[doc = $help:literal])+ $name:ident {
            $( $(#[doc = $about:literal])+ $(#[serde($($attribute:tt)+)])? $field:ident : $type:ty, )*
        }
    )*) => { $(
        $(#[doc = $help])+
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name {
            $( $(#[doc = $about])+ $(#[serde($($attribute)+)])? pub $field: $type, )*
        }
    )* };
}

mappings! {
    /// A server block.
    Block {
        /// Its zones; all names where there is none.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        zones: Zones,
        /// How names of the cluster are answered.
        #[serde(skip_serializing_if = "Option::is_none")]
        kubernetes: Option<Kubernetes>,
        /// Who is asked.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        forward: Vec<Forward>,
        /// How long answers are kept.
        #[serde(skip_serializing_if = "Option::is_none")]
        cache: Option<Cache>,
        /// Whether the addresses of a name are said in turns; they are where nothing is said.
        #[serde(skip_serializing_if = "Option::is_none")]
        loadbalance: Option<bool>,
        /// Whether what is beside an answer is left out.
        #[serde(skip_serializing_if = "is_false")]
        minimal: bool,
        /// Names that are answered without asking anyone.
        #[serde(skip_serializing_if = "Option::is_none")]
        hosts: Option<Hosts>,
        /// Questions that are asked otherwise.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        rewrite: Vec<Checked<Rewrite>>,
        /// Answers made of the question.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        template: Vec<Checked<Template>>,
        /// Whose search list is gone through.
        #[serde(skip_serializing_if = "Option::is_none")]
        autopath: Option<Autopath>,
        /// How IPv6 addresses are made of IPv4 addresses.
        #[serde(skip_serializing_if = "Option::is_none")]
        dns64: Option<Checked<Dns64>>,
        /// Who may ask what.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        acl: Vec<Checked<Acl>>,
        /// Which answers are logged.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        log: Vec<Checked<Log>>,
        /// What is said of questions that nobody answers.
        #[serde(skip_serializing_if = "Option::is_none")]
        errors: Option<Checked<Errors>>,
        /// What clients take by UDP at most, in octets.
        #[serde(skip_serializing_if = "Option::is_none")]
        bufsize: Option<Checked<Bufsize>>,
        /// Where it is answered over TLS too.
        #[serde(skip_serializing_if = "Option::is_none")]
        tls: Option<Tls>,
    }

    /// `kubernetes`.
    Kubernetes {
        /// `disabled`, `insecure` or `verified`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pods: Option<Checked<Pods>>,
        /// How long clients may keep names, in seconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl: Option<u32>,
        /// Zones in which what does not exist is asked of others.
        #[serde(skip_serializing_if = "Option::is_none")]
        fallthrough: Option<Zones>,
        /// The only namespaces that have names.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        namespaces: Vec<String>,
        /// The only namespaces that have names, by their labels.
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace_labels: Option<Checked<Selection>>,
        /// The only Services that have names, by their labels.
        #[serde(skip_serializing_if = "Option::is_none")]
        labels: Option<Checked<Selection>>,
        /// Endpoints without a hostname are called as their pods are.
        #[serde(skip_serializing_if = "is_false")]
        endpoint_pod_names: bool,
        /// Endpoints have no names.
        #[serde(skip_serializing_if = "is_false")]
        no_endpoints: bool,
        /// Services without a ready endpoint have no name.
        #[serde(skip_serializing_if = "is_false")]
        ignore_empty_services: bool,
    }

    /// `forward`.
    Forward {
        /// For which zone; all names where there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<Checked<Zone>>,
        /// Who: addresses, `tls://` before them, or files such as `/etc/resolv.conf`.
        to: Vec<String>,
        /// `random`, `round_robin` or `sequential`.
        #[serde(skip_serializing_if = "Option::is_none")]
        policy: Option<Checked<Policy>>,
        /// By TCP alone.
        #[serde(skip_serializing_if = "is_false")]
        force_tcp: bool,
        /// After which answers the next of them is asked, beside those that say nothing of the
        /// name.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        failover: Vec<Checked<FailingCode>>,
        /// After which answers the block's next `forward` that has the name is tried.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        next: Vec<Checked<Code>>,
        /// Zones that it passes over.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        except: Zones,
        /// How many questions may be under way.
        #[serde(skip_serializing_if = "Option::is_none")]
        max_concurrent: Option<usize>,
        /// For upstreams over TLS.
        #[serde(skip_serializing_if = "Option::is_none")]
        tls: Option<Peer>,
    }

    /// Whom an upstream over TLS is trusted by, and what it trusts.
    Peer {
        /// The name that its certificate has to have.
        #[serde(skip_serializing_if = "Option::is_none")]
        server_name: Option<String>,
        /// A file of authorities, in the place of those that the system trusts.
        #[serde(skip_serializing_if = "Option::is_none")]
        ca_file: Option<PathBuf>,
        /// Files of our own certificate and key.
        #[serde(skip_serializing_if = "Option::is_none")]
        cert_file: Option<PathBuf>,
        /// The key.
        #[serde(skip_serializing_if = "Option::is_none")]
        key_file: Option<PathBuf>,
    }

    /// Where a block is answered over TLS.
    Tls {
        /// The port; 853 where none is named.
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// A file of the certificate and its chain.
        cert_file: PathBuf,
        /// A file of the key.
        key_file: PathBuf,
        /// A file of the authorities that clients' certificates are signed by; without one they
        /// need none.
        #[serde(skip_serializing_if = "Option::is_none")]
        client_ca_file: Option<PathBuf>,
    }

    /// `cache`.
    Cache {
        /// Nothing is kept.
        #[serde(skip_serializing_if = "is_false")]
        disabled: bool,
        /// The longest that answers are kept.
        #[serde(skip_serializing_if = "Option::is_none")]
        max_ttl: Option<Checked<Time>>,
        /// The shortest.
        #[serde(skip_serializing_if = "Option::is_none")]
        min_ttl: Option<Checked<Time>>,
        /// The longest that it is kept that there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        denial_max_ttl: Option<Checked<Time>>,
        /// The shortest.
        #[serde(skip_serializing_if = "Option::is_none")]
        denial_min_ttl: Option<Checked<Time>>,
        /// How long failures are kept, five minutes at most.
        #[serde(skip_serializing_if = "Option::is_none")]
        servfail_ttl: Option<Checked<Time>>,
        /// How long answers may outlive their time while nobody has a new one; 0: not at all.
        #[serde(skip_serializing_if = "Option::is_none")]
        serve_stale: Option<Checked<Time>>,
        /// Which answers are asked for anew before their time is up.
        #[serde(skip_serializing_if = "Option::is_none")]
        prefetch: Option<Prefetch>,
    }

    /// `cache.prefetch`.
    Prefetch {
        /// Those that were given so often; 0: none.
        requests: u32,
        /// With no longer pause in between; a minute where none is named.
        #[serde(skip_serializing_if = "Option::is_none")]
        pause: Option<Checked<Time>>,
        /// When so many hundredths of their time are left; 10 where none are named.
        #[serde(skip_serializing_if = "Option::is_none")]
        percent: Option<u8>,
    }

    /// `hosts`.
    Hosts {
        /// A file as `/etc/hosts`.
        #[serde(skip_serializing_if = "Option::is_none")]
        file: Option<PathBuf>,
        /// Addresses, and the names that they have.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        entries: BTreeMap<std::net::IpAddr, Vec<String>>,
        /// How long clients may keep them, in seconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl: Option<u32>,
        /// Whether addresses have no names.
        #[serde(skip_serializing_if = "is_false")]
        no_reverse: bool,
        /// Zones in which what is not there is looked for elsewhere.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        fallthrough: Zones,
    }

    /// `rewrite`: one of `name`, `type` and `ttl`.
    Rewrite {
        /// Another name.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<RewriteName>,
        /// Another type.
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
        kind: Option<Change>,
        /// Another TTL.
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl: Option<RewriteTtl>,
        /// Whether the rules behind it are looked at where it fits.
        #[serde(rename = "continue", skip_serializing_if = "is_false")]
        goes_on: bool,
    }

    /// `rewrite.name`.
    RewriteName {
        /// `exact`, `prefix`, `suffix`, `substring` or `regex`; exact where nothing is said.
        #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
        test: Option<String>,
        /// What is asked for.
        from: String,
        /// What is asked in its place.
        to: String,
        /// Names in the answer become what they were.
        #[serde(skip_serializing_if = "is_false")]
        answer_auto: bool,
        /// The names that records have, by pattern.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        answer_name: Vec<Change>,
        /// The names that records hold, by pattern.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        answer_value: Vec<Change>,
    }

    /// What becomes something else.
    Change {
        /// What.
        from: String,
        /// Into what.
        to: String,
    }

    /// `rewrite.ttl`.
    RewriteTtl {
        /// As of `rewrite.name`.
        #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
        test: Option<String>,
        /// Of which names.
        name: String,
        /// At least, in seconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        min: Option<u32>,
        /// At most.
        #[serde(skip_serializing_if = "Option::is_none")]
        max: Option<u32>,
    }

    /// `template`.
    Template {
        /// For which type; any where there is none.
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
        /// In which zones; the block's where there is none.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        zones: Zones,
        /// Patterns, of which the first that is found in the name counts.
        #[serde(rename = "match", skip_serializing_if = "Vec::is_empty")]
        patterns: Vec<String>,
        /// Records of the answer.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        answer: Vec<String>,
        /// Records of the authority section.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        authority: Vec<String>,
        /// Records of the additional section.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        additional: Vec<String>,
        /// The response code.
        #[serde(skip_serializing_if = "Option::is_none")]
        rcode: Option<String>,
        /// The code of RFC 8914.
        #[serde(skip_serializing_if = "Option::is_none")]
        ederror: Option<u16>,
        /// Zones in which a name that no pattern fits is for others to answer.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        fallthrough: Zones,
    }

    /// `autopath`.
    Autopath {
        /// In which zones; the block's where there is none.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        zones: Zones,
        /// A file as `resolv.conf` with the list; that of the pod that asks where there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        file: Option<PathBuf>,
    }

    /// `dns64`.
    Dns64 {
        /// The prefix; `64:ff9b::/96` where there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        prefix: Option<String>,
        /// Also for names that have IPv6 addresses.
        #[serde(skip_serializing_if = "is_false")]
        translate_all: bool,
        /// Also for clients that ask over IPv4.
        #[serde(skip_serializing_if = "is_false")]
        allow_ipv4: bool,
    }

    /// `acl`.
    Acl {
        /// In which zones; the block's where there is none.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        zones: Zones,
        /// The first that a question fits decides.
        policies: Vec<Policies>,
    }

    /// `acl.policies`.
    Policies {
        /// `allow`, `block`, `filter` or `drop`.
        action: String,
        /// For these types.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        types: Vec<String>,
        /// From these sources.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        nets: Vec<String>,
    }

    /// `errors`.
    Errors {
        /// Which are counted for a while and then said together.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        consolidate: Vec<Consolidate>,
    }

    /// `errors.consolidate`.
    Consolidate {
        /// For how long.
        period: String,
        /// Those in whose reason this pattern is found.
        #[serde(rename = "match")]
        pattern: String,
        /// `error`, `warning`, `info` or `debug`.
        #[serde(skip_serializing_if = "Option::is_none")]
        level: Option<String>,
    }

    /// `log`.
    Log {
        /// In which zones; all where there is none.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        zones: Zones,
        /// The form of a line.
        #[serde(skip_serializing_if = "Option::is_none")]
        format: Option<String>,
        /// `success`, `denial`, `error`, `all`.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        classes: Vec<String>,
        /// And answers that took longer.
        #[serde(skip_serializing_if = "Option::is_none")]
        min_duration: Option<Checked<Time>>,
    }
}

/// Octets of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bufsize(u16);

/// Server blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Blocks(pub Vec<Block>);

impl FromStr for Blocks {
    type Err = serde_yaml_ng::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_yaml_ng::from_str(text)
    }
}
