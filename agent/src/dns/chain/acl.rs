//! `acl`: who may ask what. The first policy that a question fits decides; without one it is
//! answered.

use std::net::IpAddr;

use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{Name, RecordType},
};

use super::zone_of;
use crate::{
    dns::answer::{Explanation, Reply},
    model::node::Cidr,
};

/// Policies for some zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The zones.
    pub zones: Vec<Name>,
    /// The policies in their order.
    pub policies: Vec<Policy>,
}

/// What is done with some questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What.
    pub action: Action,
    /// With those of these types; `None`: of any.
    pub kinds: Option<Vec<RecordType>>,
    /// With those from these sources; `None`: from anywhere.
    pub sources: Option<Vec<Cidr>>,
}

/// What can be done with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is answered.
    Allow,
    /// It is refused.
    Block,
    /// The answer is that there is nothing.
    Filter,
    /// There is no answer.
    Drop,
}

impl Action {
    /// The action of that name, in any letters.
    pub fn named(name: &str) -> Result<Self, String> {
        Ok(match &*name.to_ascii_lowercase() {
            "allow" => Self::Allow,
            "block" => Self::Block,
            "filter" => Self::Filter,
            "drop" => Self::Drop,
            other => return Err(format!("{other:?} must be allow, block, filter or drop")),
        })
    }

    /// What is said in the place of the answer; nothing where there is one, or none at all.
    pub fn reply(self) -> Option<Reply> {
        let (code, explanation) = match self {
            Self::Allow | Self::Drop => return None,
            Self::Block => (ResponseCode::Refused, Explanation::Blocked),
            Self::Filter => (ResponseCode::NoError, Explanation::Filtered),
        };
        Some(Reply { explanation: Some(explanation), ..Reply::of_code(code) })
    }
}

/// What is done with `query` from `client`.
pub fn verdict(all: &[Access], query: &Query, client: IpAddr) -> Action {
    all.iter()
        .filter(|access| zone_of(&access.zones, query.name()).is_some())
        .find_map(|access| access.policies.iter().find(|policy| policy.fits(query, client)))
        .map_or(Action::Allow, |policy| policy.action)
}

impl Policy {
    fn fits(&self, query: &Query, client: IpAddr) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&query.query_type()))
            && self
                .sources
                .as_ref()
                .is_none_or(|sources| sources.iter().any(|range| range.contains(client)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(action: Action, kinds: &[RecordType], sources: &[&str]) -> Policy {
        let sources: Vec<_> = sources.iter().map(|text| text.parse().unwrap()).collect();
        Policy {
            action,
            kinds: (!kinds.is_empty()).then(|| kinds.to_vec()),
            sources: (!sources.is_empty()).then_some(sources),
        }
    }

    #[test]
    fn the_first_policy_that_fits_decides() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let all = [
            Access {
                zones: vec![name("a.example.org.")],
                policies: vec![policy(Action::Drop, &[], &["192.0.2.0/24"])],
            },
            Access {
                zones: vec![name("example.org.")],
                policies: vec![
                    policy(Action::Allow, &[], &["192.168.1.0/24", "fd00::/64"]),
                    policy(Action::Block, &[RecordType::A, RecordType::MX], &["192.168.0.0/16"]),
                    policy(Action::Filter, &[], &["::/0"]),
                ],
            },
        ];
        let said = |text: &str, kind, client: &str| {
            verdict(&all, &Query::query(name(text), kind), client.parse().unwrap())
        };
        let a = RecordType::A;
        assert_eq!(said("x.A.example.org.", a, "192.0.2.7"), Action::Drop);
        assert_eq!(said("example.org.", a, "192.0.2.7"), Action::Allow, "no policy fits");
        assert_eq!(said("example.org.", a, "192.168.1.7"), Action::Allow);
        assert_eq!(said("example.org.", a, "192.168.2.7"), Action::Block);
        assert_eq!(said("example.org.", RecordType::TXT, "192.168.2.7"), Action::Allow);
        assert_eq!(said("a.example.org.", a, "fd00::7"), Action::Allow, "the second rule's");
        assert_eq!(said("a.example.org.", a, "fd01::7"), Action::Filter);
        assert_eq!(said("example.com.", a, "fd01::7"), Action::Allow, "another zone");
    }

    #[test]
    fn what_is_not_allowed_is_explained() {
        let said = |action: Action| action.reply().map(|reply| (reply.code, reply.explanation));
        assert_eq!(said(Action::Allow), None);
        assert_eq!(said(Action::Drop), None);
        let blocked = (ResponseCode::Refused, Some(Explanation::Blocked));
        assert_eq!(said(Action::Block), Some(blocked));
        let filtered = (ResponseCode::NoError, Some(Explanation::Filtered));
        assert_eq!(said(Action::Filter), Some(filtered));
    }
}
