//! What a server block does beside looking names up: to questions before, to answers behind. Each
//! step is data and a pure function of it; the resolver's walk goes through them in this order,
//! which is CoreDNS's:
//!
//! ```text
//! bufsize -> log -> dns64 -> acl -> rewrite -> autopath -> minimal -> template
//!     -> hosts, index, upstreams
//! ```

pub mod acl;
pub mod autopath;
pub mod dns64;
pub mod query_log;
pub mod rewrite;
pub mod template;
pub mod text;

use std::sync::Arc;

use hickory_proto::rr::Name;

use self::{
    acl::Access, autopath::Autopath, dns64::Dns64, query_log::LogRule, rewrite::Rule,
    template::Template,
};
use super::hosts::Hosts;

/// The steps of a server block. Most have none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chain {
    /// What clients take by UDP at most, in octets, whatever they offer (`bufsize`).
    pub payload: Option<u16>,
    /// Which answers are logged; the first rule whose zone has the name decides.
    pub log: Vec<LogRule>,
    /// How IPv6 addresses are made of IPv4 addresses.
    pub dns64: Option<Dns64>,
    /// Who may ask what.
    pub access: Vec<Access>,
    /// Which questions are asked otherwise.
    pub rewrites: Vec<Rule>,
    /// Whose search list is gone through here.
    pub autopath: Option<Autopath>,
    /// Whether what is beside an answer is left out.
    pub minimal: bool,
    /// Answers made of the question.
    pub templates: Vec<Template>,
}

impl Chain {
    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A server block: its zones, its steps and its table of hosts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// Its zones. Of all blocks' the longest that a name is in has it.
    pub zones: Vec<Name>,
    /// Names in these that are answered without asking anyone, before the index.
    pub hosts: Option<Arc<Hosts>>,
    /// What it does.
    pub chain: Chain,
}

/// Of `zones` the longest that `name` is in.
fn zone_of<'a>(zones: &'a [Name], name: &Name) -> Option<&'a Name> {
    zones.iter().filter(|zone| zone.zone_of(name)).max_by_key(|zone| zone.num_labels())
}
