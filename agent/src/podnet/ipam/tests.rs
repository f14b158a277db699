//! Tests of the allocator: the rules by example, and what must hold after any calls.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1000);

fn ipam(ranges: &[&str]) -> Ipam {
    let ranges: Vec<Cidr> = ranges.iter().map(|text| text.parse().unwrap()).collect();
    Ipam::new(&ranges, &[], [])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn exhausted(ipam: &mut Ipam) -> Exhausted {
    match ipam.allocate(&[], NOW) {
        Err(AllocateError::Exhausted(exhausted)) => exhausted,
        other => panic!("{other:?}"),
    }
}

fn one(ipam: &mut Ipam, now: Duration) -> String {
    ipam.allocate(&[], now).unwrap()[0].to_string()
}

#[test]
fn cni_22_round_robin_without_network_gateway_and_broadcast() {
    let mut ipam = ipam(&["10.244.1.0/29"]);
    let given: Vec<_> = (0..5).map(|_| one(&mut ipam, NOW)).collect();
    assert_eq!(given, ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6"]);
    // The freed one is the only one left, so it comes back at once.
    ipam.free(ip("10.244.1.4"), NOW);
    assert_eq!(one(&mut ipam, NOW), "10.244.1.4");
}

#[test]
fn cni_22_freed_addresses_rest_while_others_are_free() {
    let mut ipam = ipam(&["10.244.1.0/29"]);
    assert_eq!(one(&mut ipam, NOW), "10.244.1.2");
    ipam.free(ip("10.244.1.2"), NOW);
    for expected in ["10.244.1.3", "10.244.1.4", "10.244.1.5"] {
        assert_eq!(one(&mut ipam, NOW), expected);
    }
    ipam.free(ip("10.244.1.3"), NOW);
    assert_eq!(one(&mut ipam, NOW), "10.244.1.6");
    // Only cooling ones are left: the one that rested longest.
    assert_eq!(one(&mut ipam, NOW), "10.244.1.2");
}

#[test]
fn cni_22_a_freed_address_rests_where_it_is_kept_back_again() {
    let mut before = ipam(&["10.244.1.0/29", "10.244.2.0/29"]);
    for freed in ["10.244.1.2", "10.244.1.3"] {
        assert_eq!(one(&mut before, NOW), freed);
    }
    before.free(ip("10.244.1.2"), NOW);
    before.free(ip("10.244.1.3"), NOW + Duration::from_secs(1));
    // The ranges change: one is not there any more, and one address is a pod's by now.
    let mut after = Ipam::new(&["10.244.1.0/29".parse().unwrap()], &[], [ip("10.244.1.3")]);
    for (address, until) in before.cooling() {
        after.cool(address, until);
    }
    assert_eq!(after.cooling().collect::<Vec<_>>(), [(ip("10.244.1.2"), NOW + COOL_DOWN)]);
    assert_eq!(one(&mut after, NOW), "10.244.1.4");
}

#[test]
fn a_rested_address_is_free_again() {
    let mut ipam = ipam(&["10.244.1.0/29"]);
    for _ in 0..4 {
        one(&mut ipam, NOW);
    }
    ipam.free(ip("10.244.1.2"), NOW);
    assert_eq!(one(&mut ipam, NOW + COOL_DOWN), "10.244.1.6");
    assert_eq!(one(&mut ipam, NOW + COOL_DOWN), "10.244.1.2");
}

#[test]
fn cni_23_both_families_or_none() {
    let mut ipam = ipam(&["fd00:244:1::/64", "10.244.1.0/30"]);
    assert_eq!(ipam.allocate(&[], NOW).unwrap(), [ip("10.244.1.2"), ip("fd00:244:1::2")]);
    let exhausted = exhausted(&mut ipam);
    assert_eq!(exhausted.range.to_string(), "10.244.1.0/30");
    ipam.free(ip("10.244.1.2"), NOW);
    assert_eq!(ipam.allocate(&[], NOW).unwrap(), [ip("10.244.1.2"), ip("fd00:244:1::3")]);
}

#[test]
fn cni_20_a_failed_attempt_takes_nothing_of_the_other_family() {
    let mut ipam = ipam(&["10.244.1.0/29", "fd00:244:1::/126"]);
    ipam.allocate(&[], NOW).unwrap();
    for _ in 0..9 {
        assert_eq!(exhausted(&mut ipam).range.to_string(), "fd00:244:1::/126");
    }
    ipam.free(ip("fd00:244:1::2"), NOW);
    assert!(ipam.allocate(&[], NOW).is_ok());
}

#[test]
fn cni_21_exhaustion_names_the_range_and_the_counts() {
    let mut ipam = ipam(&["10.244.1.0/29"]);
    assert_eq!(ipam.exhausted(), None);
    for _ in 0..5 {
        one(&mut ipam, NOW);
    }
    let text = "no free address in 10.244.1.0/29: 5 of 5 usable addresses are taken by pods";
    assert_eq!(ipam.allocate(&[], NOW).unwrap_err().to_string(), text);
    assert_eq!(ipam.exhausted().unwrap().to_string(), text);
    // Ranges without room for anybody.
    for range in ["10.0.0.1/32", "10.0.0.0/31", "fd00::1/128"] {
        let text = self::ipam(&[range]).allocate(&[], NOW).unwrap_err().to_string();
        assert!(text.contains("0 of 0"), "{text}");
    }
}

#[test]
fn a_second_range_of_a_family_is_used_when_the_first_is_full() {
    let mut ipam = ipam(&["10.244.1.0/30", "10.244.9.0/30"]);
    assert_eq!(one(&mut ipam, NOW), "10.244.1.2");
    assert_eq!(one(&mut ipam, NOW), "10.244.9.2");
    assert!(ipam.exhausted().is_some());
}

#[test]
fn cni_29_what_pods_have_is_not_given_again() {
    let ranges = ["10.244.1.0/29".parse().unwrap()];
    let mut ipam = Ipam::new(&ranges, &[], [ip("10.244.1.3"), ip("192.0.2.1")]);
    let given: Vec<_> = (0..4).map(|_| one(&mut ipam, NOW)).collect();
    assert_eq!(given, ["10.244.1.4", "10.244.1.5", "10.244.1.6", "10.244.1.2"]);
    // Freeing what is not ours, or twice, changes nothing.
    ipam.free(ip("192.0.2.1"), NOW);
    ipam.free(ip("10.244.1.3"), NOW);
    ipam.free(ip("10.244.1.3"), NOW);
    assert_eq!(one(&mut ipam, NOW), "10.244.1.3");
    assert!(ipam.allocate(&[], NOW).is_err());
}

#[derive(Clone, Debug)]
enum Call {
    Allocate,
    /// Frees the pod at this place of the list of pods.
    Free(usize),
    Wait(u64),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        3 => Just(Call::Allocate),
        2 => (0..64_usize).prop_map(Call::Free),
        1 => (0..40_u64).prop_map(Call::Wait),
    ];
    prop::collection::vec(call, 0..200)
}

proptest! {
    /// No address twice; always inside and usable; fails only when full; an address that rests is
    /// given early only where every other one is taken or rests as well.
    #[test]
    fn holds_after_any_calls(calls in calls(), prefix_len in 27_u8..=30) {
        let v4 = Cidr::holding(ip("10.244.1.0"), prefix_len).unwrap();
        let v6 = "fd00:244:1::/64".parse().unwrap();
        let usable = (1_usize << (32 - prefix_len)) - 3;
        let mut ipam = Ipam::new(&[v4, v6], &[], []);
        let mut now = NOW;
        let mut pods: Vec<Vec<IpAddr>> = Vec::new();
        let mut freed: BTreeMap<IpAddr, Duration> = BTreeMap::new();
        for call in calls {
            match call {
                Call::Wait(seconds) => now += Duration::from_secs(seconds),
                Call::Free(index) if index < pods.len() => {
                    for address in pods.swap_remove(index) {
                        ipam.free(address, now);
                        freed.insert(address, now);
                    }
                }
                Call::Free(_) => {}
                Call::Allocate => match ipam.allocate(&[], now) {
                    Err(_) => prop_assert_eq!(pods.len(), usable),
                    Ok(addresses) => {
                        prop_assert!(pods.len() < usable);
                        prop_assert!(v4.contains(addresses[0]) && v6.contains(addresses[1]));
                        let offset = v4.offset_of(addresses[0]).unwrap();
                        prop_assert!((2..=usable as u128 + 1).contains(&offset));
                        for address in &addresses {
                            prop_assert!(!pods.iter().flatten().any(|other| other == address));
                            let warm = freed.get(address).is_some_and(|at| now < *at + COOL_DOWN);
                            let resting = freed.iter().filter(|(other, at)| {
                                v4.contains(**other)
                                    && now < **at + COOL_DOWN
                                    && !pods.iter().flatten().any(|taken| taken == *other)
                            });
                            if warm {
                                prop_assert!(address.is_ipv4());
                                prop_assert_eq!(pods.len() + resting.count(), usable);
                            }
                        }
                        pods.push(addresses);
                    }
                },
            }
        }
    }
}

fn excluding(ranges: &[&str], excluded: &[&str]) -> Ipam {
    let parse =
        |texts: &[&str]| -> Vec<Cidr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    Ipam::new(&parse(ranges), &parse(excluded), [])
}

#[test]
fn cni_22_excluded_addresses_are_never_given() {
    let excluded = ["10.244.1.4/31", "10.244.1.5/32", "192.0.2.0/24", "10.244.1.12/30"];
    let mut ipam = excluding(&["10.244.1.0/28"], &excluded);
    let given: Vec<_> = (0..8).map(|_| one(&mut ipam, NOW)).collect();
    let lasts = [2, 3, 6, 7, 8, 9, 10, 11].map(|last| format!("10.244.1.{last}"));
    assert_eq!(given, lasts);
    let error = ipam.allocate(&[], NOW).unwrap_err().to_string();
    assert!(error.contains("8 of 8 usable"), "{error}");
    assert!(ipam.exhausted().is_some());
    // All of it, and what another had before it was excluded.
    assert!(excluding(&["10.244.1.0/28"], &["10.0.0.0/8"]).allocate(&[], NOW).is_err());
    let (range, rest) = ("10.244.1.0/29".parse().unwrap(), "10.244.1.4/30".parse().unwrap());
    let mut ipam = Ipam::new(&[range], &[rest], [ip("10.244.1.5")]);
    assert_eq!([one(&mut ipam, NOW), one(&mut ipam, NOW)], ["10.244.1.2", "10.244.1.3"]);
    ipam.free(ip("10.244.1.5"), NOW);
    assert!(ipam.allocate(&[], NOW).is_err());
}

/// An exclusion that begins where the range does is not all of it, in either family.
#[test]
fn cni_22_an_exclusion_at_the_start_of_a_range_leaves_the_rest() {
    for (range, excluded, first) in [
        ("10.244.1.0/24", "10.244.1.0/28", "10.244.1.16"),
        ("10.244.1.0/24", "10.244.1.0/32", "10.244.1.2"),
        ("fd00:244:1::/64", "fd00:244:1::/112", "fd00:244:1::1:0"),
    ] {
        assert_eq!(one(&mut excluding(&[range], &[excluded]), NOW), first, "{range} {excluded}");
    }
    let exhausted = |range, excluded| excluding(&[range], &[excluded]).exhausted().is_some();
    for (range, whole) in [("10.244.1.0/24", "10.244.0.0/16"), ("fd00:244:1::/64", "fd00::/8")] {
        assert!(exhausted(range, whole) && exhausted(range, range), "{range} {whole}");
    }
}

#[test]
fn cni_22_a_requested_address_is_given_or_refused_by_name() {
    let mut ipam = excluding(&["10.244.1.0/24", "fd00:244:1::/64"], &["10.244.1.64/26"]);
    let asked = [ip("10.244.1.9"), ip("fd00:244:1::9")];
    assert_eq!(ipam.allocate(&asked, NOW).unwrap(), asked);
    // Another family's is any; and one that is free is not given twice.
    assert_eq!(ipam.allocate(&[ip("10.244.1.2")], NOW).unwrap()[1], ip("fd00:244:1::2"));
    assert_eq!(one(&mut ipam, NOW), "10.244.1.3");
    let taken = ipam.allocate(&[ip("10.244.1.9")], NOW).unwrap_err();
    assert_eq!(taken, AllocateError::Taken { address: ip("10.244.1.9") });
    for strange in ["10.244.2.9", "10.244.1.0", "10.244.1.1", "10.244.1.255", "10.244.1.70"] {
        let error = ipam.allocate(&[ip(strange)], NOW).unwrap_err().to_string();
        assert!(error.contains(strange) && error.contains("10.244.1.0/24, fd00:"), "{error}");
    }
    // A refusal takes nothing of the other family.
    assert!(ipam.allocate(&[ip("10.244.1.20"), ip("fd00:245::1")], NOW).is_err());
    assert!(ipam.allocate(&[ip("10.244.1.20")], NOW).is_ok());
    // One that cools down is its former owner's to ask for, and then not given to others.
    ipam.free(ip("10.244.1.9"), NOW);
    assert!(ipam.allocate(&[ip("10.244.1.9")], NOW).is_ok());
    ipam.free(ip("10.244.1.9"), NOW + COOL_DOWN);
    assert!(ipam.allocate(&[], NOW + COOL_DOWN).unwrap()[0] != ip("10.244.1.9"));
}
