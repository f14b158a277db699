//! Connections whose destination netfilter's rules translated, as the kernel's connection tracking
//! has them (`linux/netfilter/nfnetlink_conntrack.h`).

use std::{
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
    path::Path,
};

use super::{
    Family, TalkError,
    wire::{Line, attribute, insist, number_of},
};

/// The subsystem (NFNL_SUBSYS_CTNETLINK).
const SUBSYSTEM: u8 = 1;
/// What is asked for (IPCTNL_MSG_CT_GET).
const GET: u8 = 1;
/// Bit of a connection's status: its destination is translated (IPS_DST_NAT).
const DESTINATION_TRANSLATED: u32 = 1 << 5;
/// Bit of it: there was traffic both ways, more than a question and its answer (IPS_ASSURED).
const ASSURED: u32 = 1 << 2;
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
    /// Whether it is more than a question and maybe its answer.
    pub assured: bool,
}

/// Whether this kernel tracks connections at all.
pub fn is_there() -> bool {
    Path::new(TRACKING).exists()
}

/// Shows each connection with a translated destination until `note` has seen enough; some twice
/// where many come and go meanwhile. Those of protocols without ports are not among them.
pub fn each_translated(
    mut note: impl FnMut(&Translated) -> ControlFlow<()>,
) -> Result<(), TalkError> {
    if !is_there() {
        return Ok(());
    }
    for family in Family::ALL {
        let mut enough = false;
        insist(|| {
            Line::open()?.dump(SUBSYSTEM, GET, family, &[], |body| {
                let Some(connection) = connection(&body.attributes) else {
                    return ControlFlow::Continue(());
                };
                let outcome = note(&connection);
                enough = outcome.is_break();
                outcome
            })
        })?;
        if enough {
            break;
        }
    }
    Ok(())
}

/// How many there are.
pub fn count_translated() -> Result<usize, TalkError> {
    let mut count = 0;
    each_translated(|_| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

/// Whether there are any.
pub fn any_translated() -> Result<bool, TalkError> {
    let mut any = false;
    each_translated(|_| {
        any = true;
        ControlFlow::Break(())
    })?;
    Ok(any)
}

fn connection(attributes: &[u8]) -> Option<Translated> {
    let status = number_of(attribute(attributes, 3)?)?;
    if status & DESTINATION_TRANSLATED == 0 {
        return None;
    }
    let [original, reply] = [1, 2].map(|kind| tuple(attribute(attributes, kind)?));
    let assured = status & ASSURED != 0;
    Some(Translated { original: original?, reply: reply?, assured })
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
