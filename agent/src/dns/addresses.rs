//! The resolver's addresses as the node's own: routes of type local on `lo`.
//!
//! Routes, not addresses of an interface: the kernel then delivers packets to them and lets
//! sockets be bound to them, but does not choose them as a source, announce them, or list them
//! among the node's addresses. They bear a protocol number of ours, so that what is found in the
//! kernel can be told from what others made. They stay when the agent dies: what is sent meanwhile
//! is refused at once instead of leaving the node by its default route.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

/// The protocol number in our routes ("m"); iproute2 names none with it.
pub const ROUTE_PROTOCOL: u8 = 109;
/// The table in which the kernel looks for the node's own addresses (RT_TABLE_LOCAL).
const TABLE_LOCAL: u8 = 255;
/// The index that `lo` has in every network namespace.
const LOOPBACK: u32 = 1;

/// Why the node does not hold an address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The kernel can't be asked.
    #[error("open a netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The routes can't be listed.
    #[error("list the routes of the table local: {0}")]
    List(#[source] rtnetlink::Error),
    /// A route can't be made or removed.
    #[error(
        "{operation} the local route to {address} on lo, which has to be up and needs the capability \
         CAP_NET_ADMIN: {source}"
    )]
    Change {
        /// What was tried.
        operation: &'static str,
        /// The route's address.
        address: IpAddr,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
}

/// A change to the kernel's routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Hold this address.
    Add(IpAddr),
    /// Give this one up.
    Remove(IpAddr),
}

/// What leads from the addresses that are held to those that are wanted: first what is new, then
/// what goes.
pub fn plan(held: &BTreeSet<IpAddr>, wanted: &BTreeSet<IpAddr>) -> Vec<Change> {
    let add = wanted.difference(held).copied().map(Change::Add);
    add.chain(held.difference(wanted).copied().map(Change::Remove)).collect()
}

/// Has this network namespace hold exactly `wanted`, as far as addresses are ours: with an empty
/// set, none. Idempotent.
pub async fn hold(wanted: &BTreeSet<IpAddr>) -> Result<(), AddressError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let result = apply(&handle, wanted).await;
    connection.abort();
    result
}

async fn apply(handle: &Handle, wanted: &BTreeSet<IpAddr>) -> Result<(), AddressError> {
    for change in plan(&held(handle).await?, wanted) {
        match change {
            Change::Add(address) => add(handle, address).await?,
            Change::Remove(address) => remove(handle, address).await?,
        }
        tracing::debug!(?change, "local route changed");
    }
    Ok(())
}

/// The addresses that routes of ours hold.
async fn held(handle: &Handle) -> Result<BTreeSet<IpAddr>, AddressError> {
    let families = [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ];
    let mut held = BTreeSet::new();
    for family in families {
        let mut routes = std::pin::pin!(handle.route().get(family).execute());
        while let Some(route) = routes.try_next().await.map_err(AddressError::List)? {
            held.extend(address_of(&route));
        }
    }
    Ok(held)
}

/// The address that a route of ours holds.
fn address_of(route: &RouteMessage) -> Option<IpAddr> {
    let ours = route.header.table == TABLE_LOCAL
        && route.header.kind == RouteType::Local
        && route.header.protocol == RouteProtocol::from(ROUTE_PROTOCOL);
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    destination.filter(|_| ours)
}

fn route_to(address: IpAddr) -> RouteMessage {
    let mut message = match address {
        IpAddr::V4(address) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32);
            route.scope(RouteScope::Host).output_interface(LOOPBACK).build()
        }
        IpAddr::V6(address) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128);
            route.output_interface(LOOPBACK).build()
        }
    };
    message.header.table = TABLE_LOCAL;
    message.header.kind = RouteType::Local;
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message
}

async fn add(handle: &Handle, address: IpAddr) -> Result<(), AddressError> {
    match handle.route().add(route_to(address)).execute().await {
        // Somebody gave the address to an interface: it is the node's already.
        Err(error) if is(&error, libc::EEXIST) => Ok(()),
        result => {
            result.map_err(|source| AddressError::Change { operation: "add", address, source })
        }
    }
}

async fn remove(handle: &Handle, address: IpAddr) -> Result<(), AddressError> {
    match handle.route().del(route_to(address)).execute().await {
        Err(error) if is(&error, libc::ESRCH) => Ok(()),
        result => {
            result.map_err(|source| AddressError::Change { operation: "remove", address, source })
        }
    }
}

fn is(error: &rtnetlink::Error, number: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_add_before_they_remove() {
        let set = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let held: BTreeSet<IpAddr> = set(&["10.96.0.10", "169.254.20.10"]);
        let wanted = set(&["10.96.0.10", "fd00:96::a"]);
        assert_eq!(
            plan(&held, &wanted),
            [
                Change::Add("fd00:96::a".parse().unwrap()),
                Change::Remove("169.254.20.10".parse().unwrap())
            ]
        );
        assert_eq!(plan(&held, &held), []);
        assert_eq!(plan(&held, &BTreeSet::new()).len(), 2);
    }

    #[test]
    fn only_our_own_routes_are_ours() {
        for address in ["10.96.0.10", "fd00:96::a"] {
            let address = address.parse().unwrap();
            let route = route_to(address);
            assert_eq!(address_of(&route), Some(address));
            let mut kernels = route.clone();
            kernels.header.protocol = RouteProtocol::Kernel;
            assert_eq!(address_of(&kernels), None);
            let mut elsewhere = route;
            elsewhere.header.table = 254;
            assert_eq!(address_of(&elsewhere), None);
        }
    }
}
