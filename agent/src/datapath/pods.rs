//! The node's pods, as the programs know them.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use mizzen_ebpf_abi::{addr::Addr, node::Endpoint};

use super::{
    layout,
    object::Programs,
    pin::{PinError, Pins},
    sys, tc,
    uplinks::Interface,
};
use crate::podnet::datapath::{PodDatapath, PodDatapathError, PodLink};

/// Attaches pods to the datapath.
#[derive(Debug)]
pub struct Pods {
    endpoints: OwnedFd,
    programs: Arc<Programs>,
    pins: Arc<Pins>,
}

impl Pods {
    pub(super) fn open(programs: Arc<Programs>, pins: Arc<Pins>) -> Result<Self, PinError> {
        let endpoints = pins.open_map(&layout::ENDPOINTS)?;
        Ok(Self { endpoints, programs, pins })
    }
}

impl PodDatapath for Pods {
    fn attach(&self, link: &PodLink) -> Result<(), PodDatapathError> {
        let endpoint = Endpoint {
            ifindex: link.ifindex,
            identity: 0,
            flags: 0,
            pod_mac: link.pod_mac,
            host_mac: link.host_mac,
        };
        for address in &link.addresses {
            sys::update(self.endpoints.as_fd(), &Addr::from(*address), &endpoint)
                .map_err(|source| failed("make the address known", link, source))?;
        }
        let interface = Interface { index: link.ifindex, name: link.ifname.clone() };
        tc::attach_pod(&interface, &self.programs, &self.pins)
            .map_err(|source| failed("attach the packet programs", link, source))?;
        Ok(())
    }

    fn detach(&self, link: &PodLink) -> Result<(), PodDatapathError> {
        for address in &link.addresses {
            sys::delete(self.endpoints.as_fd(), &Addr::from(*address))
                .map_err(|source| failed("forget the address", link, source))?;
        }
        Ok(())
    }
}

fn failed<E>(operation: &'static str, link: &PodLink, source: E) -> PodDatapathError
where
    E: std::error::Error + Send + Sync + 'static,
{
    PodDatapathError { operation, ifname: link.ifname.clone(), source: Box::new(source) }
}
