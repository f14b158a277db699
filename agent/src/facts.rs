//! Facts of this node that only the kernel knows: the addresses on its interfaces. Read by
//! netlink in the agent's network namespace, and again whenever the kernel says that they changed
//! (reference B61).

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    desired::{LocalAddress, NodeFacts},
    status::{Board, State},
    supervisor::TaskError,
};

/// The part on the board.
const PART: &str = "node-addresses";
/// Changes that come in a row are read once.
const SETTLE: Duration = Duration::from_millis(20);
/// A reading in any case: a full socket buffer loses notices.
const REVIEW: Duration = Duration::from_secs(30);
/// The pause before netlink is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Publishes the node's facts until cancelled; `None` until they were read once.
pub async fn run(
    publish: watch::Sender<Option<Arc<NodeFacts>>>,
    board: Arc<Board>,
    cancel: CancellationToken,
) -> Result<(), TaskError> {
    while !cancel.is_cancelled() {
        let error = tokio::select! {
            () = cancel.cancelled() => break,
            Err(error) = follow(&publish, &board) => error,
        };
        let text = format!("the node's addresses can't be read: {error}; it is tried again");
        board.report(PART, State::Degraded(text));
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    Ok(())
}

/// Aborts the task that drives a netlink socket when its user goes.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads the addresses again and again; ends with an error only.
async fn follow(
    publish: &watch::Sender<Option<Arc<NodeFacts>>>,
    board: &Board,
) -> Result<std::convert::Infallible, TaskError> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut notices) = new_multicast_connection(&groups)?;
    let _driver = Driver(tokio::spawn(connection));
    loop {
        let facts = NodeFacts { addresses: read(&handle).await?, ..NodeFacts::default() };
        publish.send_if_modified(|held| {
            let news = held.as_deref() != Some(&facts);
            if news {
                *held = Some(Arc::new(facts));
            }
            news
        });
        board.report(PART, State::Ready);
        match tokio::time::timeout(REVIEW, notices.next()).await {
            Ok(None) => return Err("the netlink socket was closed".into()),
            Ok(Some(_)) => {
                tokio::time::sleep(SETTLE).await;
                while let Ok(Some(_)) = tokio::time::timeout(Duration::ZERO, notices.next()).await {
                }
            }
            Err(_elapsed) => {}
        }
    }
}

async fn read(handle: &Handle) -> Result<BTreeSet<LocalAddress>, rtnetlink::Error> {
    let left_out = service_device(handle).await?;
    let messages = handle.address().get().execute();
    let own = async |message: AddressMessage| {
        Ok(local_address(&message).filter(|local| Some(local.ifindex) != left_out))
    };
    messages.try_filter_map(own).try_collect().await
}

/// The device on which kube-proxy's ipvs mode has the addresses of all services, and leaves them when
/// it goes: they are services', not the node's.
const SERVICE_DEVICE: &str = "kube-ipvs0";

/// The index of that device, where there is one.
async fn service_device(handle: &Handle) -> Result<Option<u32>, rtnetlink::Error> {
    let request = handle.link().get().match_name(SERVICE_DEVICE.to_owned());
    match request.execute().try_next().await {
        Ok(device) => Ok(device.map(|device| device.header.index)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(error),
    }
}

/// An interface's own address, where others could dial it.
fn local_address(message: &AddressMessage) -> Option<LocalAddress> {
    // On point-to-point links the plain address is the peer's, and the local one is ours.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    let plain = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(addr) => Some(*addr),
        _ => None,
    });
    let addr = local.or(plain).filter(|addr| !is_link_bound(addr))?;
    Some(LocalAddress { addr, ifindex: message.header.index })
}

/// Loopback and link-local IPv6 addresses mean nothing beyond their interface.
fn is_link_bound(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(attributes: Vec<AddressAttribute>) -> Option<IpAddr> {
        let mut message = AddressMessage::default();
        message.header.index = 7;
        message.attributes = attributes;
        local_address(&message).map(|local| local.addr)
    }

    #[test]
    fn the_local_side_of_a_point_to_point_link_counts() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (ours, theirs) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let both = vec![AddressAttribute::Address(theirs), AddressAttribute::Local(ours)];
        assert_eq!(address(both), Some(ours));
        assert_eq!(
            address(vec![AddressAttribute::Address(ip("2001:db8::1"))]),
            Some(ip("2001:db8::1"))
        );
        for bound in ["127.0.0.1", "::1", "fe80::1"] {
            assert_eq!(address(vec![AddressAttribute::Address(ip(bound))]), None, "{bound}");
        }
    }
}
