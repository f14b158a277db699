//! The socket buffer: the few accesses that the stages need, each bounded by the kernel.

use core::{
    ffi::c_void,
    ptr::{addr_of, read_volatile},
};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
    },
    helpers::generated::{
        bpf_get_hash_recalc, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use mizzen_ebpf_abi::{
    addr::protocol,
    checksum::Delta,
    packet::{Bytes, ETHERNET_HEADER},
};

/// What a change of bytes under a transport checksum does to the buffer's own bookkeeping.
#[derive(Clone, Copy)]
pub(super) enum Covered {
    /// Addresses: they are summed through the pseudo-header, also where the sender left the
    /// checksum to the device and the field holds nothing but that sum.
    PseudoHeader,
    /// Bytes of the transport itself: a device that computes the checksum will see them.
    Transport,
}

/// A socket buffer that begins with an Ethernet header.
#[derive(Clone, Copy)]
pub(super) struct Skb(*mut __sk_buff);

impl Skb {
    #[inline(always)]
    pub(super) fn new(context: &TcContext) -> Self {
        Self(context.skb.skb)
    }

    /// The EtherType behind any VLAN tag, host byte order.
    #[inline(always)]
    pub(super) fn ethertype(self) -> u16 {
        // SAFETY: the context is valid while the program runs; volatile, because the verifier
        // allows only whole-field accesses at known offsets.
        u16::from_be(unsafe { read_volatile(addr_of!((*self.0).protocol)) } as u16)
    }

    /// Index of the device whose hook this is.
    #[inline(always)]
    pub(super) fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).ifindex)) }
    }

    /// Whether the packet came in by some device, rather than from this node.
    #[inline(always)]
    pub(super) fn is_forwarded(self) -> bool {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).ingress_ifindex)) != 0 }
    }

    /// Flags of a redirection to where the packet came from, by this device.
    #[inline(always)]
    pub(super) fn way_back(self) -> u64 {
        if self.is_forwarded() { 0 } else { BPF_F_INGRESS.into() }
    }

    /// Whether the packet has a VLAN tag: it is of the VLAN's own device, where it has none.
    #[inline(always)]
    pub(super) fn is_tagged(self) -> bool {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).vlan_present)) != 0 }
    }

    /// Whether the packet is for another host by its link-layer address.
    #[inline(always)]
    pub(super) fn is_for_another_host(self) -> bool {
        const PACKET_OTHERHOST: u32 = 3;
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).pkt_type)) == PACKET_OTHERHOST }
    }

    /// Makes a packet that is for another host this host's.
    #[inline(always)]
    pub(super) fn claim(self) {
        const PACKET_HOST: u32 = 0;
        // SAFETY: the helper changes the type and nothing else. It can't fail from that type.
        unsafe { bpf_skb_change_type(self.0, PACKET_HOST) };
    }

    /// The context, for helpers.
    #[inline(always)]
    pub(super) fn as_ptr(self) -> *mut c_void {
        self.0.cast()
    }

    /// Writes bytes at an offset. `flags` as of `bpf_skb_store_bytes`.
    #[inline(always)]
    pub(super) fn store<const N: usize>(
        self,
        offset: u32,
        bytes: &[u8; N],
        flags: u32,
    ) -> Result<(), ()> {
        // SAFETY: the helper copies `N` bytes from `bytes` and checks the offset.
        let done = unsafe {
            bpf_skb_store_bytes(self.0, offset, bytes.as_ptr().cast(), N as u32, flags.into())
        };
        if done == 0 { Ok(()) } else { Err(()) }
    }

    /// Writes words, as they stand, at an offset.
    #[inline(always)]
    pub(super) fn store_words<const N: usize>(
        self,
        offset: u32,
        words: &[u32; N],
        flags: u32,
    ) -> Result<(), ()> {
        let len = (N * 4) as u32;
        // SAFETY: the helper copies that many bytes from `words` and checks the offset.
        let done = unsafe {
            bpf_skb_store_bytes(self.0, offset, words.as_ptr().cast(), len, flags.into())
        };
        if done == 0 { Ok(()) } else { Err(()) }
    }

    /// Mends the checksum at `offset`, of a header of `protocol`. Zero is a sum like any other, but
    /// in UDP's field (RFC 768): a datagram without one stays without.
    #[inline(always)]
    pub(super) fn mend(
        self,
        offset: u32,
        delta: Delta,
        covered: Covered,
        protocol: u8,
    ) -> Result<(), ()> {
        let of_protocol = if protocol == protocol::UDP { BPF_F_MARK_MANGLED_0 } else { 0 };
        let of_covered = match covered {
            Covered::PseudoHeader => BPF_F_PSEUDO_HDR,
            Covered::Transport => 0,
        };
        let flags = of_protocol | of_covered;
        // SAFETY: the helper checks the offset; size 0 in the flags says that `to` is a sum.
        let done =
            unsafe { bpf_l4_csum_replace(self.0, offset, 0, delta.value().into(), flags.into()) };
        if done == 0 { Ok(()) } else { Err(()) }
    }

    /// Reads `len` bytes at an offset to the beginning of `words`.
    #[inline(always)]
    pub(super) fn load_into<const N: usize>(
        self,
        offset: u32,
        words: &mut [u32; N],
        len: u32,
    ) -> Option<()> {
        let len = core::hint::black_box(len); // what is known of it is not what is checked here
        if len == 0 || len > (N * 4) as u32 {
            return None;
        }
        // SAFETY: the helper writes `len` bytes to `words`, which has room for them, or fails.
        let done =
            unsafe { bpf_skb_load_bytes(self.as_ptr(), offset, words.as_mut_ptr().cast(), len) };
        (done == 0).then_some(())
    }

    /// Octets of a segment's data, where the packet is many segments of a flow; else 0.
    #[inline(always)]
    pub(super) fn segment_size(self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).gso_size)) }
    }

    /// Octets of the packet, from its Ethernet header on.
    #[inline(always)]
    pub(super) fn length(self) -> u32 {
        // SAFETY: as above.
        unsafe { read_volatile(addr_of!((*self.0).len)) }
    }

    /// How many segments the packet is.
    #[inline(always)]
    pub(super) fn segments(self) -> u32 {
        // SAFETY: as above.
        match unsafe { read_volatile(addr_of!((*self.0).gso_segs)) } {
            0 => 1,
            many => many,
        }
    }

    /// Cuts the packet after `len` bytes. What is left is one packet, not many segments.
    #[inline(always)]
    pub(super) fn truncate(self, len: u32) -> Option<()> {
        // SAFETY: the helper checks the length.
        let done = unsafe { bpf_skb_change_tail(self.0, len, 0) };
        (done == 0).then_some(())
    }

    /// Makes room for the headers of a tunnel over IPv4 and UDP between the Ethernet and the IP header:
    /// `len` bytes, whose last are the Ethernet header of what is inside then. Segments of a flow stay
    /// as long as they are: who sent them knew of the tunnel.
    #[inline(always)]
    pub(super) fn wrap_v4(self, len: u32) -> Result<(), ()> {
        const ADJ_ROOM_MAC: u32 = 1;
        const INNER: u64 = (ETHERNET_HEADER as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
        const FLAGS: u32 = BPF_F_ADJ_ROOM_FIXED_GSO
            | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
        // SAFETY: the helper checks the length.
        let done = unsafe {
            bpf_skb_adjust_room(self.0, len as i32, ADJ_ROOM_MAC, u64::from(FLAGS) | INNER)
        };
        if done == 0 { Ok(()) } else { Err(()) }
    }

    /// A number that the packets of a flow have in common.
    #[inline(always)]
    pub(super) fn flow_hash(self) -> u32 {
        // SAFETY: the helper reads the context.
        unsafe { bpf_get_hash_recalc(self.0) }
    }

    /// Makes room for `len` bytes between the Ethernet and the IP header.
    #[inline(always)]
    pub(super) fn insert_after_mac(self, len: i32) -> Result<(), ()> {
        const ADJ_ROOM_MAC: u32 = 1;
        // SAFETY: the helper checks the length.
        let done = unsafe { bpf_skb_adjust_room(self.0, len, ADJ_ROOM_MAC, 0) };
        if done == 0 { Ok(()) } else { Err(()) }
    }
}

/// Octets from the link-layer header on in which all headers are looked for: those of the packet,
/// and of one that it quotes.
const HEADERS_MAX: u32 = 255;

impl Skb {
    /// Has the kernel move what may be headers to where it can be read in place. Whether it did:
    /// nearly always they are there.
    #[inline(always)]
    pub(super) fn pull_headers(self) -> bool {
        // SAFETY: as above.
        let (data, end, len) = unsafe {
            (
                read_volatile(addr_of!((*self.0).data)),
                read_volatile(addr_of!((*self.0).data_end)),
                read_volatile(addr_of!((*self.0).len)),
            )
        };
        let wanted = if len < HEADERS_MAX { len } else { HEADERS_MAX };
        if data as usize + wanted as usize <= end as usize {
            return false;
        }
        // SAFETY: the helper checks the length.
        unsafe { bpf_skb_pull_data(self.0, wanted) == 0 }
    }

    /// A `T` at an offset; none where the packet ends before, or the headers are too long.
    #[inline(always)]
    fn in_place<T: Copy>(self, offset: u32) -> Option<T> {
        // Of a single octet the compiler makes a comparison that tells the verifier nothing.
        const { assert!(size_of::<T>() > 1) };
        // What an earlier access proved of an offset, the compiler knows and the verifier forgot.
        let offset =
            if offset == ETHERNET_HEADER { ETHERNET_HEADER } else { core::hint::black_box(offset) };
        if offset > HEADERS_MAX {
            return None;
        }
        // SAFETY: as above.
        let (data, end) = unsafe {
            (read_volatile(addr_of!((*self.0).data)), read_volatile(addr_of!((*self.0).data_end)))
        };
        let start = data as usize + offset as usize;
        if start + size_of::<T>() > end as usize {
            return None;
        }
        // SAFETY: the comparison, on which the verifier insists, says that all of it is there.
        // Headers are where the kernel aligned them to (NET_IP_ALIGN).
        Some(unsafe { (start as *const T).read() })
    }
}

/// Of what lies elsewhere nothing is read before [`Skb::pull_headers`].
impl Bytes for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.in_place(offset)
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.in_place(offset)
    }

    #[inline(always)]
    fn joined(&self) -> u32 {
        if self.segment_size() == 0 { 0 } else { self.length() }
    }
}
