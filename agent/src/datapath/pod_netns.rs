//! Which pod is behind which network namespace, as the socket programs know it.
//!
//! The kernel numbers namespaces and never gives a number twice, so an entry that outlives its pod
//! does no harm. Entries are found by the pod's addresses: a pod is forgotten when its namespace
//! can't be asked any more.

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Mutex, PoisonError},
};

use mizzen_ebpf_abi::{
    addr::Addr,
    maps,
    node::{PodNetns, endpoint_flags, socket_options},
};

use super::{
    layout,
    pin::{PinError, Pins},
    sys, walk,
};
use crate::podnet::{
    datapath::{PodLink, Survey},
    netns,
};

/// The tables of pods' namespaces, for their one writer.
#[derive(Debug)]
pub(super) struct PodNamespaces {
    entries: OwnedFd,
    options: OwnedFd,
    /// Held while they are read and written: pods come and go on several threads.
    writing: Mutex<()>,
}

impl PodNamespaces {
    pub(super) fn open(pins: &Pins) -> Result<Self, PinError> {
        Ok(Self {
            entries: pins.open_map(&layout::POD_NETNS)?,
            options: pins.open_map(&layout::SOCKET_OPTIONS)?,
            writing: Mutex::default(),
        })
    }

    /// Makes a pod known as the one in `netns`, or what has changed of a pod that is known; bits
    /// of [`endpoint_flags`] that it has now.
    pub(super) fn put(&self, link: &PodLink, netns: Option<&File>) -> io::Result<u32> {
        let cookie = netns.map(|netns| netns::inside(netns, sys::netns_cookie)).transpose()?;
        self.change(|held| put(held, link, cookie))
    }

    /// What the tables say of namespaces.
    pub(super) fn survey(&self) -> io::Result<Survey> {
        // Not while they are written: the word would not be that of the entries.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let options = self.options()?;
        let namespaces = self.read()?.into_iter().collect();
        Ok(Survey { namespaces, options, ..Survey::default() })
    }

    fn options(&self) -> io::Result<u32> {
        Ok(sys::lookup::<u32, u32>(self.options.as_fd(), &0)?.unwrap_or_default())
    }

    /// Mends what somebody else altered of a pod in the tables, as `seen` has them. Gives the bits
    /// of [`endpoint_flags`] that it has, and the maps that were altered.
    pub(super) fn mend(
        &self,
        link: &PodLink,
        netns: Option<&File>,
        seen: &Survey,
    ) -> io::Result<(u32, Vec<&'static str>)> {
        let known = seen.namespace_of(&link.addresses);
        let flags = flags(link, known.map(|(_, entry)| entry.flags));
        let wanted = PodNetns { flags, ..entry(&link.addresses) };
        let mut altered = Vec::new();
        let cookie = match known {
            Some((_, entry)) if *entry == wanted => None,
            Some((cookie, _)) => Some(cookie),
            None => netns.map(|netns| netns::inside(netns, sys::netns_cookie)).transpose()?,
        };
        if cookie.is_some() {
            altered.push(maps::POD_NETNS);
        }
        let held: Vec<_> = seen.namespaces.iter().map(|(of, entry)| (*of, *entry)).collect();
        let options = options(&held);
        // Another pod's turn may have mended it.
        if options != seen.options && self.options()? != options {
            altered.push(maps::SOCKET_OPTIONS);
        }
        if !altered.is_empty() {
            let put = cookie.map(|cookie| (cookie, wanted)).into_iter().collect();
            self.change(|_| Plan { put, ..Plan::default() })?;
        }
        Ok((flags, altered))
    }

    /// Forgets a pod. Success where it is unknown.
    pub(super) fn remove(&self, link: &PodLink) -> io::Result<()> {
        self.change(|held| {
            let remove = of_pod(held, link).map(|(cookie, _)| *cookie).collect();
            Plan { remove, ..Plan::default() }
        })
        .map(drop)
    }

    fn change(&self, plan: impl FnOnce(&[(u64, PodNetns)]) -> Plan) -> io::Result<u32> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.read()?;
        let Plan { remove, put, flags } = plan(&held);
        for cookie in &remove {
            sys::delete(self.entries.as_fd(), cookie)?;
        }
        for (cookie, entry) in &put {
            sys::update(self.entries.as_fd(), cookie, entry)?;
        }
        held.retain(|(cookie, _)| {
            !remove.contains(cookie) && put.iter().all(|(other, _)| other != cookie)
        });
        held.extend(put);
        let options = options(&held);
        let written = sys::lookup::<u32, u32>(self.options.as_fd(), &0)?;
        if written != Some(options) {
            sys::update(self.options.as_fd(), &0_u32, &options)?;
        }
        Ok(flags)
    }

    fn read(&self) -> io::Result<Vec<(u64, PodNetns)>> {
        let mut held = Vec::new();
        walk::visit(self.entries.as_fd(), |batch| {
            held.extend(batch.iter().map(|(cookie, entry)| (*cookie, *entry)));
        })?;
        Ok(held)
    }
}

/// What is to be written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    remove: Vec<u64>,
    put: Vec<(u64, PodNetns)>,
    /// Of the pod in question.
    flags: u32,
}

/// Makes a pod's entries what they should be.
fn put(held: &[(u64, PodNetns)], link: &PodLink, cookie: Option<u64>) -> Plan {
    let flags = flags(link, of_pod(held, link).next().map(|(_, entry)| entry.flags));
    let Some(cookie) = cookie else {
        let stale = of_pod(held, link).filter(|(_, entry)| entry.flags != flags);
        let put = stale.map(|(cookie, entry)| (*cookie, PodNetns { flags, ..*entry })).collect();
        return Plan { put, flags, ..Plan::default() };
    };
    // An address that another pod had before.
    let remove = of_pod(held, link).map(|(other, _)| *other).filter(|other| *other != cookie);
    let remove = remove.collect();
    let wanted = PodNetns { flags, ..entry(&link.addresses) };
    let put = match held.iter().find(|(other, _)| *other == cookie) {
        Some((_, same)) if *same == wanted => vec![],
        // Another interface of the pod: the one that was attached first is who the pod is.
        Some((_, other)) if !is_of(other, link) => vec![],
        _ => vec![(cookie, wanted)],
    };
    Plan { remove, put, flags }
}

/// Bits of [`endpoint_flags`] that a pod has, where it had those.
fn flags(link: &PodLink, known: Option<u32>) -> u32 {
    match link.socket_translation {
        None => known.unwrap_or(0),
        Some(true) => 0,
        Some(false) => endpoint_flags::NO_SOCKET_TRANSLATION,
    }
}

/// The first address of each family.
fn entry(addresses: &[IpAddr]) -> PodNetns {
    let first = |ipv6| addresses.iter().find(|address| address.is_ipv6() == ipv6);
    let addr = |ipv6| first(ipv6).map_or(Addr::default(), |address| Addr::from(*address));
    PodNetns { ipv4: addr(false), ipv6: addr(true), flags: 0 }
}

/// Entries that have an address of the pod.
fn of_pod<'a>(
    held: &'a [(u64, PodNetns)],
    link: &'a PodLink,
) -> impl Iterator<Item = &'a (u64, PodNetns)> {
    held.iter().filter(|(_, entry)| is_of(entry, link))
}

fn is_of(entry: &PodNetns, link: &PodLink) -> bool {
    let mut addresses = link.addresses.iter().map(|address| Addr::from(*address));
    addresses.any(|address| address == entry.ipv4 || address == entry.ipv6)
}

/// Bits of [`socket_options`].
fn options(held: &[(u64, PodNetns)]) -> u32 {
    let opted_out =
        |(_, entry): &(u64, PodNetns)| entry.flags & endpoint_flags::NO_SOCKET_TRANSLATION != 0;
    if held.iter().any(opted_out) { socket_options::OPTED_OUT } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: u32 = endpoint_flags::NO_SOCKET_TRANSLATION;

    fn link(addresses: [&str; 2], socket_translation: Option<bool>) -> PodLink {
        PodLink {
            ifname: "mz1".into(),
            ifindex: 7,
            addresses: addresses.map(|text| text.parse().unwrap()).into(),
            pod_mac: [2; 6],
            host_mac: [4; 6],
            socket_translation,
            queued: false,
            sends: None,
        }
    }

    fn web(socket_translation: Option<bool>) -> PodLink {
        link(["10.244.1.2", "fd00::2"], socket_translation)
    }

    fn known(cookie: u64, link: &PodLink, flags: u32) -> (u64, PodNetns) {
        (cookie, PodNetns { flags, ..entry(&link.addresses) })
    }

    #[test]
    fn d12_a_pod_is_known_by_its_namespace_and_once() {
        let pod = web(Some(true));
        let plan = put(&[], &pod, Some(5));
        assert_eq!(plan.put, [known(5, &pod, 0)]);
        assert_eq!(plan.put[0].1.ipv4.to_string(), "10.244.1.2");
        assert_eq!(plan.put[0].1.ipv6.to_string(), "fd00::2");
        assert_eq!(put(&plan.put, &pod, Some(5)), Plan::default(), "nothing new");
        let moved = put(&plan.put, &pod, Some(6));
        assert_eq!((moved.remove, moved.put), (vec![5], vec![known(6, &pod, 0)]));
    }

    #[test]
    fn d12_a_second_interface_is_not_who_the_pod_is() {
        let held = [known(5, &web(None), 0)];
        let second = link(["192.0.2.9", "2001:db8::9"], Some(true));
        assert_eq!(put(&held, &second, Some(5)), Plan::default());
    }

    #[test]
    fn u06_what_is_not_known_of_the_annotation_changes_nothing() {
        let held = [known(5, &web(None), OUT), known(6, &link(["10.0.0.1", "::1"], None), 0)];
        let unchanged = Plan { flags: OUT, ..Plan::default() };
        assert_eq!(put(&held, &web(None), None), unchanged);
        assert_eq!(put(&held, &web(None), Some(5)), unchanged);
        assert_eq!(put(&held, &web(Some(false)), None), unchanged);
        let back = put(&held, &web(Some(true)), None);
        assert_eq!((back.put, back.flags), (vec![known(5, &web(None), 0)], 0));
        assert_eq!(put(&[], &web(Some(false)), None), unchanged, "its namespace is not known");
    }

    #[test]
    fn u06_sockets_are_asked_whose_they_are_where_a_pod_opted_out() {
        assert_eq!(options(&[known(5, &web(None), 0)]), 0);
        assert_eq!(
            options(&[known(5, &web(None), 0), known(6, &web(None), OUT)]),
            socket_options::OPTED_OUT
        );
    }
}
