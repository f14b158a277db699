//! The node's pods, as the programs know them.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use mizzen_ebpf_abi::{
    addr::Addr,
    maps,
    node::{Endpoint, endpoint_flags},
    service::{Frontend, FrontendKey},
};

use super::{
    growing::GrowingHash,
    layout::{self, MapLayout},
    link::Outcome,
    object::Programs,
    peers::Peers,
    pin::{PinError, Pins},
    pod_netns::PodNamespaces,
    pod_rates::PodRates,
    sys, tc,
    uplinks::Interface,
    walk::{self, Batch},
};
use crate::{
    model::node::Cidr,
    podnet::datapath::{PodDatapath, PodDatapathError, PodLink, Survey},
};

/// Attaches pods to the datapath.
#[derive(Debug)]
pub struct Pods {
    endpoints: OwnedFd,
    namespaces: PodNamespaces,
    peers: Peers,
    rates: PodRates,
    programs: Arc<Programs>,
    pins: Arc<Pins>,
}

impl Pods {
    pub(super) fn open(programs: Arc<Programs>, pins: Arc<Pins>) -> Result<Self, PinError> {
        let endpoints = pins.open_map(&layout::ENDPOINTS)?;
        let namespaces = PodNamespaces::open(&pins)?;
        let (peers, rates) = (Peers::open(&pins)?, PodRates::open(&pins)?);
        Ok(Self { endpoints, namespaces, peers, rates, programs, pins })
    }
}

impl PodDatapath for Pods {
    fn attach(&self, link: &PodLink, netns: Option<&File>) -> Result<(), PodDatapathError> {
        let flags = self.namespaces.put(link, netns).map_err(|source| {
            failed("make the network namespace known", link, or_full(&layout::POD_NETNS, source))
        })?;
        for address in &link.addresses {
            self.put_endpoint(link, Addr::from(*address), &endpoint(link, flags))?;
        }
        self.put_rate(link)?;
        self.attach_programs(link).map(drop)
    }

    fn detach(&self, link: &PodLink) -> Result<(), PodDatapathError> {
        self.namespaces
            .remove(link)
            .map_err(|source| failed("forget the network namespace", link, source))?;
        for address in &link.addresses {
            sys::delete(self.endpoints.as_fd(), &Addr::from(*address))
                .map_err(|source| failed("forget the address", link, source))?;
        }
        self.forget_device(link)
    }

    fn forget_device(&self, link: &PodLink) -> Result<(), PodDatapathError> {
        self.rates.remove(link).map_err(|source| failed("forget the bandwidth", link, source))
    }

    fn missing(&self, link: &PodLink) -> Result<Option<String>, PodDatapathError> {
        let unread = |source| failed("look at the address", link, source);
        for address in &link.addresses {
            let known: Option<Endpoint> =
                sys::lookup(self.endpoints.as_fd(), &Addr::from(*address)).map_err(unread)?;
            if known.is_none_or(|known| known.ifindex != link.ifindex) {
                return Ok(Some(format!("the datapath does not know {address}")));
            }
        }
        let seen = tc::look_at_pod(link.ifindex, &self.programs)
            .map_err(|source| failed("look at the packet programs", link, source))?;
        let lost = seen.iter().find(|(_, in_force)| !in_force);
        Ok(lost.map(|(program, _)| format!("{program} is not attached to {}", link.ifname)))
    }

    fn has_frontends(&self, frontends: &[FrontendKey]) -> Result<bool, PodDatapathError> {
        // Opened anew: a table that has grown is another map.
        let table: GrowingHash<FrontendKey, Frontend> =
            GrowingHash::open(&self.pins, &layout::FRONTENDS)
                .map_err(|error| unread("open map FRONTENDS")(io::Error::other(error)))?;
        for key in frontends {
            let found: Option<Frontend> =
                sys::lookup(table.as_fd(), key).map_err(unread("read map FRONTENDS"))?;
            if !found.is_some_and(|found| found.is_of(key)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn survey(&self) -> Result<Survey, PodDatapathError> {
        let mut seen = self.namespaces.survey().map_err(unread("read map POD_NETNS"))?;
        walk::visit(self.endpoints.as_fd(), |batch: &Batch<'_, Addr, Endpoint>| {
            seen.endpoints.extend(batch.iter().map(|(addr, endpoint)| (*addr, *endpoint)));
        })
        .map_err(unread("read map ENDPOINTS"))?;
        Ok(seen)
    }

    fn has_tunnels(&self) -> bool {
        true
    }

    fn attach_tunnel(&self, ifname: &str, ifindex: u32) -> Result<usize, PodDatapathError> {
        let interface = Interface { index: ifindex, name: ifname.to_owned() };
        let attached =
            tc::attach_tunnel(&interface, &self.programs, &self.pins).map_err(|source| {
                PodDatapathError {
                    operation: "attach the packet programs",
                    ifname: ifname.to_owned(),
                    source: Box::new(source),
                }
            })?;
        Ok(attached.iter().filter(|(_, outcome)| *outcome == Outcome::Attached).count())
    }

    fn sync_peers(&self, peers: &BTreeMap<Cidr, IpAddr>) -> Result<usize, PodDatapathError> {
        self.peers
            .sync(peers)
            .map_err(|error| unread("write map PEERS")(or_full(&layout::PEERS, error)))
    }

    fn sync_tunnelled(&self, devices: &BTreeMap<Cidr, u32>) -> Result<usize, PodDatapathError> {
        self.peers
            .sync_tunnelled(devices)
            .map_err(|error| unread("write map TUNNELLED")(or_full(&layout::TUNNELLED, error)))
    }

    fn mend(
        &self,
        link: &PodLink,
        netns: Option<&File>,
        seen: &Survey,
    ) -> Result<Vec<&'static str>, PodDatapathError> {
        let (flags, mut mended) = self
            .namespaces
            .mend(link, netns, seen)
            .map_err(|source| failed("make the network namespace known again", link, source))?;
        for address in link.addresses.iter().map(|address| Addr::from(*address)) {
            if seen.endpoints.get(&address) != Some(&endpoint(link, flags)) {
                self.put_endpoint(link, address, &endpoint(link, flags))?;
                mended.push(maps::ENDPOINTS);
            }
        }
        if !self.put_rate(link)? {
            mended.push(maps::POD_RATES);
        }
        let attached = self.attach_programs(link)?;
        let lost = attached.iter().filter(|(_, outcome)| *outcome != Outcome::Unchanged);
        mended.extend(lost.map(|_| "program"));
        Ok(mended)
    }
}

impl Pods {
    fn put_endpoint(
        &self,
        link: &PodLink,
        address: Addr,
        endpoint: &Endpoint,
    ) -> Result<(), PodDatapathError> {
        sys::update(self.endpoints.as_fd(), &address, endpoint).map_err(|source| {
            failed("make the address known", link, or_full(&layout::ENDPOINTS, source))
        })
    }

    /// Whether the table said so before.
    fn put_rate(&self, link: &PodLink) -> Result<bool, PodDatapathError> {
        self.rates.put(link).map_err(|source| {
            failed("limit what the pod sends", link, or_full(&layout::POD_RATES, source))
        })
    }

    fn attach_programs(
        &self,
        link: &PodLink,
    ) -> Result<Vec<(&'static str, Outcome)>, PodDatapathError> {
        let interface = Interface { index: link.ifindex, name: link.ifname.clone() };
        tc::attach_pod(&interface, link.sends.is_some(), &self.programs, &self.pins)
            .map_err(|source| failed("attach the packet programs", link, source))
    }
}

/// What `ENDPOINTS` says of a pod's address.
fn endpoint(link: &PodLink, flags: u32) -> Endpoint {
    let PodLink { ifindex, pod_mac, host_mac, queued, .. } = *link;
    let queued = if queued { endpoint_flags::QUEUED } else { 0 };
    Endpoint { ifindex, identity: 0, flags: flags | queued, pod_mac, host_mac }
}

/// What the kernel calls too long a list is a full map.
fn or_full(layout: &MapLayout, error: io::Error) -> io::Error {
    if error.raw_os_error() != Some(libc::E2BIG) {
        return error;
    }
    let MapLayout { name: map, entries: capacity, .. } = *layout;
    io::Error::other(format!("map {map} is full with its {capacity} entries"))
}

/// That a table can't be read concerns every pod.
fn unread(operation: &'static str) -> impl FnOnce(io::Error) -> PodDatapathError {
    let ifname = "of any name".to_owned();
    move |source| PodDatapathError { operation, ifname, source: Box::new(source) }
}

fn failed<E>(operation: &'static str, link: &PodLink, source: E) -> PodDatapathError
where
    E: std::error::Error + Send + Sync + 'static,
{
    PodDatapathError { operation, ifname: link.ifname.clone(), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_is_called_by_its_name() {
        let text =
            or_full(&layout::ENDPOINTS, io::Error::from_raw_os_error(libc::E2BIG)).to_string();
        assert!(text.contains("ENDPOINTS is full with its 4096 entries"), "{text}");
        let other = or_full(&layout::ENDPOINTS, io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(other.raw_os_error(), Some(libc::EPERM));
    }
}
