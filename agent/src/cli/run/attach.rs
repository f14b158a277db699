//! The datapath's programs, put in place when the tables are filled.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    datapath::{Adopted, Datapath, Interface, Outcome, Uplinks, find_uplinks},
    podnet,
    reconcile::Attach,
    supervisor::TaskError,
};

/// Where they go.
pub(super) struct AttachDatapath {
    datapath: Datapath,
    uplinks: Vec<String>,
    /// Whether this node answers for cluster DNS.
    dns: bool,
    /// Whether flows of another service proxy are to be taken over first: not where programs of ours
    /// have been in force.
    adopts: bool,
    /// The uplinks that no program can be at, as far as they were told.
    told: BTreeSet<Interface>,
}

impl AttachDatapath {
    /// The programs of a datapath, the names of the uplinks where they are given, and whether this
    /// node answers for cluster DNS.
    pub(super) fn new(datapath: Datapath, uplinks: Vec<String>, dns: bool) -> Self {
        let adopts = datapath.is_attached().is_ok_and(|attached| !attached);
        Self { datapath, uplinks, dns, adopts, told: BTreeSet::new() }
    }
}

impl Attach for AttachDatapath {
    fn attach(&mut self, addresses: &[IpAddr]) -> Result<usize, TaskError> {
        let adopts = self.adopts;
        let attached = put_in_place(self, addresses, adopts)?;
        self.adopts = false;
        Ok(attached)
    }
}

/// What is done to put programs in their places.
trait Work {
    /// Finds where those of packets go.
    fn uplinks(&mut self, addresses: &[IpAddr]) -> Result<Vec<Interface>, TaskError>;
    /// Attaches those of sockets; how many were not.
    fn sockets(&mut self) -> Result<usize, TaskError>;
    /// Takes over flows of another service proxy.
    fn adopt(&self);
    /// Attaches those of packets; how many were not.
    fn packets(&mut self, uplinks: &[Interface]) -> Result<usize, TaskError>;
}

/// In an order in which as little as may be comes between the look at another proxy's flows and the
/// first packet that a program sees. What began in between is taken over afterwards: what a program
/// has led by then stays as it is.
fn put_in_place(
    work: &mut impl Work,
    addresses: &[IpAddr],
    adopts: bool,
) -> Result<usize, TaskError> {
    let uplinks = work.uplinks(addresses)?;
    let mut attached = work.sockets()?;
    if adopts {
        work.adopt();
    }
    attached += work.packets(&uplinks)?;
    if adopts {
        work.adopt();
    }
    Ok(attached)
}

impl Work for AttachDatapath {
    fn uplinks(&mut self, addresses: &[IpAddr]) -> Result<Vec<Interface>, TaskError> {
        let Uplinks { devices, without_ethernet } = find_uplinks(&self.uplinks, addresses)?;
        for interface in without_ethernet.difference(&self.told) {
            tracing::warn!(
                interface = interface.name,
                "leads to other hosts and has no Ethernet header: packets of services that pass it \
                 are not translated; sockets of this node are"
            );
        }
        self.told = without_ethernet;
        Ok(devices.into_iter().collect())
    }

    fn sockets(&mut self) -> Result<usize, TaskError> {
        Ok(count(self.datapath.attach_sockets()?))
    }

    fn adopt(&self) {
        match self.datapath.adopt() {
            Ok(Adopted { flows: 0, ports: 0 }) => {}
            Ok(Adopted { flows, ports }) => tracing::info!(
                flows,
                ports,
                "took over flows of datagrams, and keeps source ports of connections, that \
                 kube-proxy's rules began"
            ),
            Err(error) => tracing::warn!(
                error = podnet::pods::chain(&error),
                "flows of datagrams that kube-proxy's rules began may go to other backends now"
            ),
        }
    }

    fn packets(&mut self, uplinks: &[Interface]) -> Result<usize, TaskError> {
        let at_uplinks = count(self.datapath.attach_uplinks(uplinks)?);
        Ok(at_uplinks + count(self.datapath.attach_loopback(self.dns)?))
    }
}

/// How many hooks had no program before.
fn count<H: std::fmt::Debug>(hooks: impl IntoIterator<Item = (H, Outcome)>) -> usize {
    let mut attached = 0;
    for (hook, outcome) in hooks {
        tracing::debug!(?hook, ?outcome, "attached");
        attached += usize::from(outcome == Outcome::Attached);
    }
    attached
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[derive(Default)]
    struct Told(RefCell<Vec<&'static str>>);

    impl Told {
        #[expect(clippy::unnecessary_wraps, reason = "as the callers give it")]
        fn tell<T>(&self, what: &'static str, gives: T) -> Result<T, TaskError> {
            self.0.borrow_mut().push(what);
            Ok(gives)
        }
    }

    impl Work for Told {
        fn uplinks(&mut self, _: &[IpAddr]) -> Result<Vec<Interface>, TaskError> {
            self.tell("uplinks", Vec::new())
        }

        fn sockets(&mut self) -> Result<usize, TaskError> {
            self.tell("sockets", 2)
        }

        fn adopt(&self) {
            self.0.borrow_mut().push("adopt");
        }

        fn packets(&mut self, _: &[Interface]) -> Result<usize, TaskError> {
            self.tell("packets", 3)
        }
    }

    #[test]
    fn flows_are_taken_over_just_before_packets_are_seen_and_once_more_after() {
        for (adopts, expected) in [
            (true, &["uplinks", "sockets", "adopt", "packets", "adopt"][..]),
            (false, &["uplinks", "sockets", "packets"]),
        ] {
            let mut told = Told::default();
            assert_eq!(put_in_place(&mut told, &[], adopts).unwrap(), 5);
            assert_eq!(*told.0.borrow(), expected);
        }
    }
}
