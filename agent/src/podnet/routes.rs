//! Routes as they shall be and as they are. Pure: from wanted and present ones to a plan. Which are
//! wanted is [`super::ways`]'.

use std::collections::{BTreeMap, BTreeSet};

use super::message::Via;
use crate::model::node::Cidr;

/// A route that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Present {
    /// Where to.
    pub destination: Cidr,
    /// Which way; `None`: one that we never set.
    pub via: Option<Via>,
    /// Whether it has our protocol number.
    pub ours: bool,
}

/// What to do about the difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Routes to set, new or to another place.
    pub set: Vec<(Cidr, Via)>,
    /// Our routes to remove.
    pub remove: Vec<(Cidr, Via)>,
    /// Wanted routes that somebody else holds, for people.
    pub problems: Vec<String>,
}

/// The plan that turns `present` into `wanted`. Routes straight onto a link are pods' and are
/// left to their ADD and DEL; those of others are left alone.
pub fn plan(wanted: &BTreeMap<Cidr, Via>, present: &[Present]) -> Plan {
    let mut plan = Plan::default();
    let mut held = BTreeSet::new();
    for route in present {
        match (wanted.get(&route.destination), route.via) {
            (Some(_), _) if !route.ours => {
                let text = format!(
                    "a route to {} exists that is not ours; remove it (ip route show {0})",
                    route.destination
                );
                plan.problems.push(text);
                held.insert(route.destination);
            }
            (Some(want), Some(via)) if *want == via => {
                held.insert(route.destination);
            }
            (None, Some(via)) if route.ours && !matches!(via, Via::Link(_)) => {
                plan.remove.push((route.destination, via));
            }
            // Ours that leads elsewhere is replaced by the one that is set.
            _ => {}
        }
    }
    let missing = wanted.iter().filter(|(destination, _)| !held.contains(destination));
    plan.set = missing.map(|(destination, via)| (*destination, *via)).collect();
    plan
}

#[cfg(test)]
mod tests;
