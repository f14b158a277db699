//! How long a flow is remembered, and when its five-tuple may begin anew.
//!
//! Each direction writes its own octet of state into its own entry, and a copy into the other
//! entry as the peer's, so that every entry holds the whole state and no two processors write the
//! same octet for different reasons.

use crate::{addr::protocol, conntrack::Flow, packet::tcp_flags};

/// Bits of [`Flow::state`] and [`Flow::peer_state`].
pub mod state {
    /// A packet was seen in this direction.
    pub const SEEN: u8 = 1 << 0;
    /// This direction sent a FIN.
    pub const FIN: u8 = 1 << 1;
    /// This direction sent an RST, and nothing since.
    pub const RST: u8 = 1 << 2;
    /// This direction is the opener's, and has sent nothing yet that shows that an answer reached
    /// it: whoever sends under a forged address gets none.
    pub const UNCONFIRMED: u8 = 1 << 3;
}

/// Seconds of silence after which an entry is expired.
pub mod timeout {
    /// TCP, confirmed by the opener: kube-proxy's default for `tcpEstablishedTimeout`.
    pub const TCP_ESTABLISHED: u32 = 86_400;
    /// TCP, one side closed: kube-proxy's default for `tcpCloseWaitTimeout`.
    pub const TCP_HALF_CLOSED: u32 = 3_600;
    /// TCP, not answered yet, or the answer not confirmed: five retransmissions of a SYN fit. As
    /// `nf_conntrack_tcp_timeout_syn_recv`.
    pub const TCP_OPENING: u32 = 60;
    /// TCP, both sides closed: long enough for a lost last ACK to be sent again.
    pub const TCP_CLOSED: u32 = 30;
    /// TCP, reset.
    pub const TCP_RESET: u32 = 10;
    /// UDP, a question and maybe its answer: `nf_conntrack_udp_timeout`.
    pub const UDP_EXCHANGE: u32 = 30;
    /// UDP, both sides go on: `nf_conntrack_udp_timeout_stream`.
    pub const UDP_STREAM: u32 = 120;
}

/// Seconds after which a datagram of the opener shows that the flow is more than a few questions
/// that were asked at once, as of a resolver that wants addresses of both families. Counted in
/// turns of the clock, so up to a second less.
const STREAM_AFTER_S: u8 = 3;

/// The opener's state after the first packet of a flow.
pub const OPENED: u8 = state::SEEN | state::UNCONFIRMED;

/// A direction's state after one more of its packets. `flow` is the direction's own entry.
///
/// A direction that sends anything after its own RST did not mean it (or someone else sent it):
/// a spurious RST must not shorten the life of a connection that goes on.
#[inline(always)]
pub const fn next(flow: &Flow, protocol: u8, flags: u8, now_s: u32) -> u8 {
    let seen = flow.state | state::SEEN;
    let answered = flow.peer_state & state::SEEN != 0;
    if protocol != protocol::TCP {
        let [now, ..] = now_s.to_le_bytes();
        let goes_on = answered && now.wrapping_sub(flow.opened) >= STREAM_AFTER_S;
        return if goes_on { seen & !state::UNCONFIRMED } else { seen };
    }
    if flags & tcp_flags::RST != 0 {
        return seen | state::RST;
    }
    let mut alive = seen & !state::RST;
    if flags & tcp_flags::SYN == 0 && answered {
        alive &= !state::UNCONFIRMED;
    }
    if flags & tcp_flags::FIN != 0 { alive | state::FIN } else { alive }
}

/// Whether both sides are done, or one gave up.
#[inline(always)]
pub const fn closed(flow: &Flow) -> bool {
    (flow.state | flow.peer_state) & state::RST != 0
        || flow.state & flow.peer_state & state::FIN != 0
}

/// Seconds of silence that `flow` may have.
#[inline(always)]
pub const fn timeout_s(protocol: u8, flow: &Flow) -> u32 {
    let either = flow.state | flow.peer_state;
    let confirmed =
        flow.state & flow.peer_state & state::SEEN != 0 && either & state::UNCONFIRMED == 0;
    if protocol != protocol::TCP {
        return if confirmed { timeout::UDP_STREAM } else { timeout::UDP_EXCHANGE };
    }
    if either & state::RST != 0 {
        timeout::TCP_RESET
    } else if flow.state & flow.peer_state & state::FIN != 0 {
        timeout::TCP_CLOSED
    } else if !confirmed {
        timeout::TCP_OPENING
    } else if either & state::FIN != 0 {
        timeout::TCP_HALF_CLOSED
    } else {
        timeout::TCP_ESTABLISHED
    }
}

/// Whether this entry alone has been silent for too long. A flow is expired where both of its
/// entries are: traffic may go one way only.
#[inline(always)]
pub const fn silent(protocol: u8, flow: &Flow, now_s: u32) -> bool {
    // Another processor may have written a second that is ahead of ours.
    let idle = now_s.wrapping_sub(flow.seen_s);
    idle < u32::MAX / 2 && idle > timeout_s(protocol, flow)
}

/// Whether a packet may open a flow: any datagram, or the first segment of a connection.
#[inline(always)]
pub const fn opens(protocol: u8, flags: u8) -> bool {
    protocol != protocol::TCP
        || flags & (tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST | tcp_flags::FIN)
            == tcp_flags::SYN
}

/// Whether a packet of an existing flow begins a new one with the same five-tuple, which may go
/// to another backend. A repeated SYN of a connection that is still being opened does not: it
/// goes where the first one went.
#[inline(always)]
pub const fn reopens(protocol: u8, flags: u8, flow: &Flow) -> bool {
    protocol == protocol::TCP && opens(protocol, flags) && closed(flow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tcp_flags::{ACK, FIN, RST, SYN};

    const TCP: u8 = protocol::TCP;
    const UDP: u8 = protocol::UDP;

    fn flow(state: u8, peer_state: u8) -> Flow {
        Flow { state, peer_state, seen_s: 1_000, ..Flow::default() }
    }

    /// The opener's entry after one more packet.
    fn passes(opener: &mut Flow, is_openers: bool, (protocol, flags): (u8, u8), now_s: u32) {
        let Flow { state, peer_state, opened, .. } = *opener;
        if is_openers {
            opener.state = next(opener, protocol, flags, now_s);
        } else {
            let answerer = Flow { state: peer_state, peer_state: state, opened, ..Flow::default() };
            opener.peer_state = next(&answerer, protocol, flags, now_s);
        }
    }

    /// The timeout after these segments, each by whether it is the opener's and its flags.
    fn tcp_timeout(segments: &[(bool, u8)]) -> u32 {
        let mut this = flow(OPENED, 0);
        for (is_openers, flags) in segments {
            passes(&mut this, *is_openers, (TCP, *flags), 1_000);
        }
        timeout_s(TCP, &this)
    }

    #[test]
    fn timeouts_follow_the_life_of_a_connection() {
        let life = [
            (false, SYN | ACK, timeout::TCP_OPENING),
            (true, ACK, timeout::TCP_ESTABLISHED),
            (true, FIN | ACK, timeout::TCP_HALF_CLOSED),
            (false, FIN | ACK, timeout::TCP_CLOSED),
            (true, ACK, timeout::TCP_CLOSED), // the last ACK opens nothing
            (false, RST, timeout::TCP_RESET),
        ];
        let packets = life.map(|(is_openers, flags, _)| (is_openers, flags));
        assert_eq!(tcp_timeout(&[]), timeout::TCP_OPENING);
        for (at, (.., expected)) in life.into_iter().enumerate() {
            assert_eq!(tcp_timeout(&packets[..=at]), expected, "{at}");
        }
    }

    /// What an attacker who gets no answers can send, and what backends say to it.
    #[test]
    fn u03_only_an_opener_that_was_answered_establishes_a_connection() {
        let (opener, answerer) = (true, false);
        for packets in [
            [(answerer, SYN | ACK), (answerer, SYN | ACK)].as_slice(),
            &[(answerer, SYN | ACK), (opener, SYN)],
            &[(answerer, SYN | ACK), (answerer, ACK)],
            &[(answerer, SYN | ACK), (answerer, FIN | ACK)],
            &[(opener, ACK), (answerer, SYN | ACK)],
            &[(opener, FIN | ACK), (answerer, SYN | ACK)],
            &[(opener, ACK)],
        ] {
            assert_eq!(tcp_timeout(packets), timeout::TCP_OPENING, "{packets:?}");
        }
        let answered = (answerer, SYN | ACK);
        assert_eq!(tcp_timeout(&[answered, (opener, ACK)]), timeout::TCP_ESTABLISHED);
        assert_eq!(tcp_timeout(&[answered, (opener, FIN | ACK)]), timeout::TCP_HALF_CLOSED);
    }

    /// Programs from before the bit was there left flows without it.
    #[test]
    fn an_older_agents_connections_stay_established() {
        assert_eq!(timeout_s(TCP, &flow(state::SEEN, state::SEEN)), timeout::TCP_ESTABLISHED);
    }

    /// The timeout after these datagrams, each by whether it is the opener's and when it passed.
    fn udp_timeout(opened_s: u32, datagrams: &[(bool, u32)]) -> u32 {
        let [opened, ..] = opened_s.to_le_bytes();
        let mut this = Flow { opened, ..flow(OPENED, 0) };
        for (is_openers, after_s) in datagrams {
            passes(&mut this, *is_openers, (UDP, 0), opened_s + after_s);
        }
        timeout_s(UDP, &this)
    }

    #[test]
    fn u03_udp_lives_longer_once_the_opener_goes_on_after_an_answer() {
        let (opener, answerer) = (true, false);
        for opened_s in [0, 1_000, 1_022, 1_023] {
            for exchange in [
                [].as_slice(),
                &[(answerer, 0)],
                &[(answerer, 0), (answerer, 20)],
                // Both families of an address, from one socket.
                &[(opener, 0), (answerer, 0), (answerer, 0)],
                &[(answerer, 0), (opener, 1), (answerer, 2)],
                &[(opener, 3), (opener, 6), (answerer, 6)],
            ] {
                let timeout = udp_timeout(opened_s, exchange);
                assert_eq!(timeout, timeout::UDP_EXCHANGE, "{opened_s} {exchange:?}");
            }
            for stream in [
                [(answerer, 0), (opener, 3)].as_slice(),
                &[(answerer, 0), (opener, 31)],
                &[(answerer, 0), (opener, 1), (answerer, 2), (opener, 3)],
            ] {
                let timeout = udp_timeout(opened_s, stream);
                assert_eq!(timeout, timeout::UDP_STREAM, "{opened_s} {stream:?}");
            }
        }
    }

    #[test]
    fn b135_only_a_closed_connection_is_opened_anew() {
        let opening = flow(state::SEEN, 0);
        let established = flow(state::SEEN, state::SEEN);
        let closed = flow(state::SEEN | state::FIN, state::SEEN | state::FIN);
        let reset = flow(state::SEEN, state::SEEN | state::RST);
        assert!(!reopens(TCP, SYN, &opening), "a repeated SYN stays with its backend");
        assert!(!reopens(TCP, SYN, &established));
        assert!(reopens(TCP, SYN, &closed));
        assert!(reopens(TCP, SYN, &reset));
        assert!(!reopens(TCP, SYN | ACK, &closed));
        assert!(!reopens(TCP, ACK, &closed));
        assert!(!reopens(UDP, 0, &closed));
    }

    #[test]
    fn b140_a_spurious_rst_is_survived() {
        let packets = [(false, SYN | ACK), (true, ACK), (true, RST), (true, ACK)];
        assert_eq!(tcp_timeout(&packets), timeout::TCP_ESTABLISHED);
    }

    #[test]
    fn only_datagrams_and_first_segments_open_flows() {
        assert!(opens(UDP, 0));
        assert!(opens(TCP, SYN));
        assert!(opens(TCP, SYN | 0xc0), "the ECN bits of RFC 3168 do not matter");
        for flags in [0, ACK, SYN | ACK, SYN | RST, SYN | FIN, RST, FIN | ACK] {
            assert!(!opens(TCP, flags), "{flags:#04x}");
        }
    }

    #[test]
    fn silence_is_counted_from_the_last_packet_and_tolerates_clocks_ahead() {
        let this = flow(state::SEEN, 0);
        assert!(!silent(UDP, &this, 1_000 + timeout::UDP_EXCHANGE));
        assert!(silent(UDP, &this, 1_001 + timeout::UDP_EXCHANGE));
        assert!(!silent(UDP, &this, 999));
    }
}
