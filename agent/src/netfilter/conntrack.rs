//! Connections whose destination netfilter's rules translated, as the kernel's connection tracking
//! has them (`linux/netfilter/nfnetlink_conntrack.h`).

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::{
    Family, TalkError,
    wire::{Line, attribute, number_of},
};

/// The subsystem (NFNL_SUBSYS_CTNETLINK).
const SUBSYSTEM: u8 = 1;
/// What is asked for (IPCTNL_MSG_CT_GET).
const GET: u8 = 1;
/// Bit of a connection's status: its destination is translated (IPS_DST_NAT).
const DESTINATION_TRANSLATED: u32 = 1 << 5;
/// What a kernel with connection tracking has, in each network namespace.
const TRACKING: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Who sends.
    pub source: SocketAddr,
    /// Who receives.
    pub destination: SocketAddr,
    /// IANA protocol number.
    pub protocol: u8,
}

/// A connection whose destination is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// As its opener sends it, before translation.
    pub original: Tuple,
    /// As answers arrive, before they are translated back: from the backend.
    pub reply: Tuple,
}

/// Whether this kernel tracks connections at all.
pub fn is_there() -> bool {
    Path::new(TRACKING).exists()
}

/// The connections with a translated destination. Those of protocols without ports are not among
/// them.
pub fn translated() -> Result<Vec<Translated>, TalkError> {
    let mut found = Vec::new();
    visit(|connection| found.push(connection))?;
    Ok(found)
}

/// How many there are.
pub fn count_translated() -> Result<usize, TalkError> {
    let mut count = 0;
    visit(|_| count += 1)?;
    Ok(count)
}

fn visit(mut note: impl FnMut(Translated)) -> Result<(), TalkError> {
    if !is_there() {
        return Ok(());
    }
    let mut line = Line::open()?;
    for family in Family::ALL {
        line.dump(SUBSYSTEM, GET, family, &[], |body| {
            if let Some(connection) = connection(&body.attributes) {
                note(connection);
            }
        })?;
    }
    Ok(())
}

fn connection(attributes: &[u8]) -> Option<Translated> {
    let status = number_of(attribute(attributes, 3)?)?;
    if status & DESTINATION_TRANSLATED == 0 {
        return None;
    }
    let [original, reply] = [1, 2].map(|kind| tuple(attribute(attributes, kind)?));
    Some(Translated { original: original?, reply: reply? })
}

fn tuple(octets: &[u8]) -> Option<Tuple> {
    let (addresses, ports) = (attribute(octets, 1)?, attribute(octets, 2)?);
    let [source, destination] = [(1, 3), (2, 4)].map(|(v4, v6)| address(addresses, v4, v6));
    let protocol = *attribute(ports, 1)?.first()?;
    let [from, to] = [2, 3].map(|kind| {
        let octets = attribute(ports, kind)?;
        octets.try_into().ok().map(u16::from_be_bytes)
    });
    Some(Tuple {
        source: SocketAddr::new(source?, from?),
        destination: SocketAddr::new(destination?, to?),
        protocol,
    })
}

fn address(octets: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    if let Some(octets) = attribute(octets, v4) {
        return <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    }
    <[u8; 16]>::try_from(attribute(octets, v6)?).ok().map(IpAddr::from)
}
