//! Endpoints of one set, put in order so that every traffic policy is one window of slots.
//!
//! The rules are kube-proxy's: a ready endpoint beats a terminating one (reference B83); where
//! none is ready, those that terminate but still serve are used (B84, KEP-1669); a Local policy
//! without a usable local endpoint drops, as long as the service has a usable one at all (V6);
//! traffic from this node and its pods to external frontends is not bound by an external Local
//! policy (B30, B31, B33).
//!
//! A ready endpoint that is in no window has a slot all the same, before the first: datagrams of flows
//! that packets opened go on being led there, whatever traffic policies and topology say (kube-proxy
//! keeps their conntrack entries likewise). One that terminates has none: it may be gone before the
//! slices say so, and nothing shall be lost in a rolling update (R8).

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive};

use mizzen_ebpf_abi::service::{backend_flags, range_flags};

use super::Slot;
use crate::model::service::TrafficPolicy;

/// Consecutive slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The first, counted behind the range's header.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// Which slots take which traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Traffic to a ClusterIP.
    pub internal: Window,
    /// Traffic from outside of the cluster to node ports, external IPs and load balancer IPs.
    pub external: Window,
    /// Traffic to the same from this node and its pods.
    pub nearby: Window,
    /// Bits of [`mizzen_ebpf_abi::service::range_flags`].
    pub flags: u32,
}

/// How an endpoint may be used. The better state comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usability {
    /// Ready.
    Ready,
    /// Terminating, but it still serves.
    Terminating,
}

/// An endpoint as the order of slots sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: u16,
    /// How it may be used.
    pub usability: Usability,
    /// Whether it is on this node.
    pub local: bool,
    /// Whether the topology hints allow it for this node; true where there are none.
    pub hinted: bool,
}

const TERMINATING_LOCAL: usize = 0;
const LOCAL_OUTSIDE_HINTS: usize = 1;
const LOCAL_IN_HINTS: usize = 2;
const REMOTE_IN_HINTS: usize = 3;
const REMOTE_OUTSIDE_HINTS: usize = 4;
const TERMINATING_REMOTE: usize = 5;
const GROUPS: usize = 6;

impl Candidate {
    fn group(&self) -> usize {
        match (self.usability, self.local, self.hinted) {
            (Usability::Terminating, true, _) => TERMINATING_LOCAL,
            (Usability::Ready, true, false) => LOCAL_OUTSIDE_HINTS,
            (Usability::Ready, true, true) => LOCAL_IN_HINTS,
            (Usability::Ready, false, true) => REMOTE_IN_HINTS,
            (Usability::Ready, false, false) => REMOTE_OUTSIDE_HINTS,
            (Usability::Terminating, false, _) => TERMINATING_REMOTE,
        }
    }

    fn slot(&self) -> Slot {
        let mut flags = 0;
        if self.local {
            flags |= backend_flags::LOCAL;
        }
        if self.usability == Usability::Terminating {
            flags |= backend_flags::TERMINATING;
        }
        Slot { addr: self.addr, port: self.port, flags }
    }
}

/// The slots of a set and its windows. Those that no window holds come first, so that the end of the
/// last window is the end of the range. The order of `candidates` makes no difference; of
/// several with one address and port, the most usable counts.
pub fn arrange(
    candidates: impl IntoIterator<Item = Candidate>,
    internal_policy: TrafficPolicy,
    external_policy: TrafficPolicy,
) -> (Vec<Slot>, Windows) {
    let mut merged: BTreeMap<(IpAddr, u16), Candidate> = BTreeMap::new();
    for candidate in candidates {
        let rank = |c: &Candidate| (c.usability, !c.local, !c.hinted);
        merged
            .entry((candidate.addr, candidate.port))
            .and_modify(|held| {
                if rank(&candidate) < rank(held) {
                    *held = candidate;
                }
            })
            .or_insert(candidate);
    }
    let mut groups: [Vec<Slot>; GROUPS] = Default::default();
    for candidate in merged.values() {
        groups[candidate.group()].push(candidate.slot());
    }
    let counts = std::array::from_fn(|group| groups[group].len());
    let cluster = cluster_groups(&counts);
    let local = local_groups(&counts);
    let by_policy = |policy| match policy {
        TrafficPolicy::Cluster => cluster.clone(),
        TrafficPolicy::Local => local.clone(),
    };
    let (internal, external) = (by_policy(internal_policy), by_policy(external_policy));

    let held = |group: usize| {
        internal.contains(&group) || external.contains(&group) || cluster.contains(&group)
    };
    // All of them, nearly always, and for as long as the set is there.
    let mut slots = Vec::with_capacity(counts.iter().sum());
    let mut starts = [0; GROUPS];
    for group in (LOCAL_OUTSIDE_HINTS..=REMOTE_OUTSIDE_HINTS).filter(|group| !held(*group)) {
        slots.extend_from_slice(&groups[group]);
    }
    for group in (0..GROUPS).filter(|group| held(*group)) {
        starts[group] = slots.len();
        slots.extend_from_slice(&groups[group]);
    }
    let window = |groups: &RangeInclusive<usize>| Window {
        start: slot_number(starts[*groups.start()]),
        count: slot_number(groups.clone().map(|group| counts[group]).sum()),
    };
    let mut windows = Windows {
        internal: window(&internal),
        external: window(&external),
        nearby: window(&cluster),
        flags: 0,
    };
    let any = counts.iter().any(|count| *count > 0);
    if any && windows.internal.count == 0 {
        windows.flags |= range_flags::INTERNAL_DROP;
    }
    if any && windows.external.count == 0 {
        windows.flags |= range_flags::EXTERNAL_DROP;
    }
    (slots, windows)
}

/// The groups that take traffic under the policy Cluster.
fn cluster_groups(counts: &[usize; GROUPS]) -> RangeInclusive<usize> {
    let hinted = counts[LOCAL_IN_HINTS] + counts[REMOTE_IN_HINTS];
    let unhinted = counts[LOCAL_OUTSIDE_HINTS] + counts[REMOTE_OUTSIDE_HINTS];
    if hinted > 0 {
        LOCAL_IN_HINTS..=REMOTE_IN_HINTS
    } else if unhinted > 0 {
        LOCAL_OUTSIDE_HINTS..=REMOTE_OUTSIDE_HINTS
    } else {
        // Nothing is ready, so that the two groups at the ends touch.
        TERMINATING_LOCAL..=TERMINATING_REMOTE
    }
}

/// The groups that take traffic under the policy Local, which knows no hints (reference B91).
fn local_groups(counts: &[usize; GROUPS]) -> RangeInclusive<usize> {
    if counts[LOCAL_OUTSIDE_HINTS] + counts[LOCAL_IN_HINTS] > 0 {
        LOCAL_OUTSIDE_HINTS..=LOCAL_IN_HINTS
    } else {
        TERMINATING_LOCAL..=TERMINATING_LOCAL
    }
}

fn slot_number(n: usize) -> u32 {
    u32::try_from(n).expect("a service has fewer endpoints than 2^32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use TrafficPolicy::{Cluster, Local};

    /// `r`eady or `t`erminating, `l`ocal or `r`emote, `h`inted or `o`utside: "rlh" and so on.
    fn candidates(kinds: &[&str]) -> Vec<Candidate> {
        let make = |(n, kind): (u8, &&str)| {
            let kind = kind.as_bytes();
            Candidate {
                addr: [10, 0, 0, n].into(),
                port: 80,
                usability: if kind[0] == b'r' { Usability::Ready } else { Usability::Terminating },
                local: kind[1] == b'l',
                hinted: kind[2] == b'h',
            }
        };
        (1..).zip(kinds).map(make).collect()
    }

    /// Last octets of the backends in the three windows, and the flags.
    fn check(
        kinds: &[&str],
        policies: (TrafficPolicy, TrafficPolicy),
        expected: (&[u8], &[u8], &[u8], u32),
    ) {
        let (slots, windows) = arrange(candidates(kinds), policies.0, policies.1);
        let members = |window: Window| -> Vec<u8> {
            let slots = &slots[window.start as usize..][..window.count as usize];
            let octet = |slot: &Slot| match slot.addr {
                IpAddr::V4(v4) => v4.octets()[3],
                IpAddr::V6(_) => panic!("an IPv4 candidate"),
            };
            slots.iter().map(octet).collect()
        };
        let Windows { internal, external, nearby, flags } = windows;
        let got = (members(internal), members(external), members(nearby), flags);
        assert_eq!(got, (expected.0.into(), expected.1.into(), expected.2.into(), expected.3));
        let end = [internal, external, nearby].map(|w| w.start + w.count).into_iter().max();
        assert_eq!(end, Some(u32::try_from(slots.len()).unwrap()), "slots behind the last window");
        let ready = kinds.iter().filter(|kind| kind.starts_with('r')).count();
        assert!(slots.len() >= ready, "all that are ready have one");
    }

    const DROP_INTERNAL: u32 = range_flags::INTERNAL_DROP;
    const DROP_EXTERNAL: u32 = range_flags::EXTERNAL_DROP;

    #[test]
    fn b80_policy_cluster_uses_every_ready_endpoint() {
        check(&["rlh", "rrh"], (Cluster, Cluster), (&[1, 2], &[1, 2], &[1, 2], 0));
    }

    #[test]
    fn b81_policy_local_uses_the_local_ones() {
        check(&["rlh", "rrh", "rlh"], (Local, Cluster), (&[1, 3], &[1, 3, 2], &[1, 3, 2], 0));
    }

    #[test]
    fn b30_b36_external_policy_local_binds_only_outsiders() {
        check(&["rrh", "rlh"], (Cluster, Local), (&[2, 1], &[2], &[2, 1], 0));
    }

    #[test]
    fn b82_local_without_local_endpoint_drops_and_without_any_does_not() {
        check(&["rrh"], (Local, Local), (&[], &[], &[1], DROP_INTERNAL | DROP_EXTERNAL));
        check(&["rrh"], (Cluster, Local), (&[1], &[], &[1], DROP_EXTERNAL));
        check(&["trh"], (Local, Cluster), (&[], &[1], &[1], DROP_INTERNAL));
        check(&[], (Local, Local), (&[], &[], &[], 0));
    }

    #[test]
    fn b83_ready_beats_terminating() {
        check(&["tlh", "rrh", "trh"], (Cluster, Cluster), (&[2], &[2], &[2], 0));
        check(&["tlh", "rlh"], (Local, Local), (&[2], &[2], &[2], 0));
    }

    #[test]
    fn b84_terminating_endpoints_are_used_where_none_is_ready() {
        check(&["trh", "tlh"], (Cluster, Cluster), (&[2, 1], &[2, 1], &[2, 1], 0));
        check(&["tlh", "rrh"], (Local, Local), (&[1], &[1], &[2], 0));
        check(&["tlh", "rrh"], (Local, Cluster), (&[1], &[2], &[2], 0));
    }

    #[test]
    fn b91_b96_hints_narrow_cluster_and_leave_local_alone() {
        check(&["rlo", "rlh", "rrh", "rro"], (Cluster, Cluster), (&[2, 3], &[2, 3], &[2, 3], 0));
        check(&["rlo", "rlh", "rrh", "rro"], (Cluster, Local), (&[2, 3], &[1, 2], &[2, 3], 0));
        check(&["rlo", "rro"], (Cluster, Local), (&[1, 2], &[1], &[1, 2], 0));
    }

    #[test]
    fn b120_of_duplicates_over_slices_the_most_usable_counts() {
        let mut all = candidates(&["tlh"]);
        all.push(Candidate { usability: Usability::Ready, ..all[0] });
        for order in [all.clone(), all.iter().rev().copied().collect()] {
            let (slots, windows) = arrange(order, Cluster, Cluster);
            assert_eq!(slots.len(), 1);
            assert_eq!(slots[0].flags, backend_flags::LOCAL);
            assert_eq!(windows.internal, Window { start: 0, count: 1 });
        }
    }
}
