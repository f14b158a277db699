//! How much a pod may receive and send (capability `bandwidth`): a token bucket filter (tc-tbf(8)) at
//! each end of its link.
//!
//! ```text
//! pod's end:   root qdisc tbf, what the pod sends (egress)
//! host's end:  root qdisc tbf, what the pod receives (ingress)
//! ```
//! Both are where packets wait for their turn before any program of ours sees them, or after all of
//! them did: what a program sends on by itself passes no queue behind it, so a filter on the way in
//! to the host would miss it. The sockets of a pod feel its bucket as their own congestion, and
//! lose nothing. They go with the link.

use mizzen_cni::wire::{Bandwidth, Limit};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE, Nla as _, NlasIterator};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};

use super::{
    interface::find,
    link::{LinkError, LinkSpec},
    netlink::{Change, Netlink, NetlinkError},
};

/// How long a packet may wait in a bucket, in milliseconds; what comes later is dropped.
const LATENCY_MS: u64 = 25;
/// The most that is one packet to a queue: 64 KiB of a stream, segmented when it leaves.
const PACKET_MAX: u64 = 64 << 10;
/// What the link layer adds to an IP packet.
const ETHERNET_HEADER: u32 = 14;
/// The burst of runtimes that were told none, in bits: 512 MiB, which would be no limit for seconds.
const NO_BURST: u64 = u32::MAX as u64;
/// What such a burst is instead: the octets of this many milliseconds.
const BURST_MS: u64 = 20;
/// But at least this many octets: a few packets.
const BURST_MIN: u64 = 16 << 10;

const KIND: &str = "tbf";
/// Of `enum` in linux/pkt_sched.h.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel counts by itself and needs no table of rates.
const LINKLAYER_ETHERNET: u8 = 1;
/// Octets of `struct tc_tbf_qopt`.
const QOPT: usize = 36;

/// A token bucket, as the kernel is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Octets per second, of the link layer.
    pub rate: u64,
    /// Octets that may go at once.
    pub burst: u32,
    /// Octets that may wait.
    pub limit: u32,
}

impl Bucket {
    /// What keeps to `limit` on a link with this MTU.
    pub fn of(limit: Limit, mtu: u32) -> Self {
        let rate = (limit.rate / 8).max(1);
        let asked = if limit.burst == NO_BURST {
            (rate.saturating_mul(BURST_MS) / 1000).max(BURST_MIN)
        } else {
            limit.burst / 8
        };
        // A packet that is larger than the bucket would never go.
        let burst = asked.max(u64::from(mtu + ETHERNET_HEADER));
        let waiting = (rate.saturating_mul(LATENCY_MS) / 1000).max(2 * PACKET_MAX);
        Self { rate, burst: narrow(burst), limit: narrow(waiting.saturating_add(burst)) }
    }

    /// `TCA_OPTIONS`.
    fn options(&self) -> Vec<TcOption> {
        // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate.
        let mut qopt = [0; QOPT];
        qopt[1] = LINKLAYER_ETHERNET;
        qopt[8..12].copy_from_slice(&narrow(self.rate).to_ne_bytes());
        qopt[24..28].copy_from_slice(&self.limit.to_ne_bytes());
        let nla = |kind, bytes: &[u8]| TcOption::Other(DefaultNla::new(kind, bytes.to_vec()));
        let mut options =
            vec![nla(TCA_TBF_PARMS, &qopt), nla(TCA_TBF_BURST, &self.burst.to_ne_bytes())];
        if self.rate > u32::MAX.into() {
            options.push(nla(TCA_TBF_RATE64, &self.rate.to_ne_bytes()));
        }
        options
    }

    /// Makes this the root qdisc of an interface.
    fn put(&self, ifname: &str, ifindex: u32) -> Change {
        let mut message = root_of(ifindex);
        message.attributes =
            vec![TcAttribute::Kind(KIND.into()), TcAttribute::Options(self.options())];
        Change {
            what: format!("limit {ifname} to {} octets per second", self.rate),
            message: RouteNetlinkMessage::NewQueueDiscipline(message),
            flags: NLM_F_CREATE | NLM_F_REPLACE,
            tolerate: None,
        }
    }

    /// Whether the interface's root qdisc is this.
    fn is_on(&self, netlink: &mut Netlink, ifindex: u32) -> Result<bool, NetlinkError> {
        let question = RouteNetlinkMessage::GetQueueDiscipline(root_of(ifindex));
        let answer = netlink.get("get the qdisc of a pod's link", question)?;
        let Some(RouteNetlinkMessage::NewQueueDiscipline(message)) = answer else {
            return Ok(false);
        };
        Ok(Self::read(&message) == Some((self.rate, self.limit)))
    }

    /// Rate and limit of a token bucket; the kernel tells its burst in ticks only.
    fn read(message: &TcMessage) -> Option<(u64, u32)> {
        let is_ours = |attribute: &TcAttribute| *attribute == TcAttribute::Kind(KIND.into());
        if !message.attributes.iter().any(is_ours) {
            return None;
        }
        // Of qdiscs that the library does not know, it keeps the options in one piece.
        let options = message.attributes.iter().find_map(|attribute| match attribute {
            TcAttribute::Options(options) => options.first(),
            _ => None,
        })?;
        let mut bytes = vec![0; options.value_len()];
        options.emit_value(&mut bytes);
        let value = |kind: u16| {
            let mut nested = NlasIterator::new(&bytes).flatten();
            nested.find(|nla| nla.kind() == kind).map(|nla| nla.value().to_vec())
        };
        let parms = value(TCA_TBF_PARMS)?;
        let word = |at: usize| parms.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let large = value(TCA_TBF_RATE64).and_then(|bytes| bytes.try_into().ok());
        let rate = large.map_or(u64::from(word(8)?), u64::from_ne_bytes);
        Some((rate, word(24)?))
    }
}

/// Whether an interface's root qdisc is a token bucket, whichever.
pub fn has_bucket(netlink: &mut Netlink, ifindex: u32) -> Result<bool, NetlinkError> {
    let question = RouteNetlinkMessage::GetQueueDiscipline(root_of(ifindex));
    let answer = netlink.get("get the qdisc of a pod's link", question)?;
    let Some(RouteNetlinkMessage::NewQueueDiscipline(message)) = answer else { return Ok(false) };
    Ok(Bucket::read(&message).is_some())
}

/// An end of a pod's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The host's: what the pod receives leaves there.
    Host,
    /// The pod's.
    Pod,
}

/// The bucket of an end, and the interface's name.
fn wanted(spec: &LinkSpec, end: End) -> Option<(&str, Bucket)> {
    let Bandwidth { ingress, egress } = spec.bandwidth;
    let (ifname, limit) = match end {
        End::Host => (&spec.host_ifname, ingress),
        End::Pod => (&spec.pod_ifname, egress),
    };
    limit.map(|limit| (ifname.as_str(), Bucket::of(limit, spec.mtu)))
}

/// What limits an end of a link that was just made.
pub fn shape(spec: &LinkSpec, end: End, ifindex: u32) -> Option<Change> {
    let (ifname, bucket) = wanted(spec, end)?;
    tracing::info!(
        ifname,
        alias = spec.alias,
        method = KIND,
        bits_per_second = bucket.rate * 8,
        burst_octets = bucket.burst,
        "limiting a pod's bandwidth"
    );
    Some(bucket.put(ifname, ifindex))
}

/// Whether an end is limited as it should be, where it should.
pub fn is_shaped(
    spec: &LinkSpec,
    end: End,
    ifindex: u32,
    netlink: &mut Netlink,
) -> Result<bool, NetlinkError> {
    wanted(spec, end).map_or(Ok(true), |(_, bucket)| bucket.is_on(netlink, ifindex))
}

/// Limits an end again that somebody freed; whether there was something to do. In the namespace of
/// that end.
pub fn mend(spec: &LinkSpec, end: End) -> Result<bool, LinkError> {
    let Some((ifname, bucket)) = wanted(spec, end) else { return Ok(false) };
    let mut netlink = Netlink::open()?;
    // Gone: that is seen to elsewhere.
    let Some(interface) = find(&mut netlink, ifname)? else { return Ok(false) };
    if bucket.is_on(&mut netlink, interface.ifindex)? {
        return Ok(false);
    }
    netlink.apply(vec![bucket.put(ifname, interface.ifindex)])?;
    Ok(true)
}

fn root_of(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable as _, Parseable as _};

    use super::*;

    #[test]
    fn cni_32_a_bucket_takes_its_largest_packet_and_no_more_than_was_asked() {
        let bucket = |rate, burst, mtu| Bucket::of(Limit { rate, burst }, mtu);
        let asked = bucket(80_000_000, 8_000_000, 1500);
        assert_eq!((asked.rate, asked.burst), (10_000_000, 1_000_000));
        assert_eq!(asked.limit, 250_000 + 1_000_000, "25 ms, and the burst");
        // A burst below a packet, a rate below 64 KiB in 25 ms.
        let small = bucket(1_000_000, 8, 9000);
        assert_eq!((small.burst, small.limit), (9014, 2 * 65_536 + 9014));
        // What runtimes say that were told no burst.
        assert_eq!(bucket(80_000_000, u32::MAX.into(), 1500).burst, 200_000);
        assert_eq!(bucket(80_000, u32::MAX.into(), 1500).burst, 16 << 10);
        // The most that can be asked for.
        let most = bucket(u64::MAX, Limit::BURST_MAX, 1500);
        assert_eq!((most.rate, most.burst, most.limit), (u64::MAX / 8, u32::MAX, u32::MAX));
    }

    #[test]
    fn cni_32_what_the_kernel_is_told_reads_back() {
        for rate in [1, 125_000, u64::from(u32::MAX), u64::from(u32::MAX) + 1] {
            let bucket = Bucket { rate, burst: 10_000, limit: 20_000 };
            let RouteNetlinkMessage::NewQueueDiscipline(message) = bucket.put("eth0", 7).message
            else {
                panic!("a qdisc")
            };
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            let message = TcMessage::parse(&bytes).unwrap();
            assert_eq!(Bucket::read(&message), Some((rate, 20_000)));
        }
        assert_eq!(Bucket::read(&root_of(7)), None);
    }
}
