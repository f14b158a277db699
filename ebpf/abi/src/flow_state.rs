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
    /// Turned over by an RST of this direction, so that it differs from what the other has seen of
    /// it: see [`super::is_reset`].
    pub const RST: u8 = 1 << 2;
    /// This direction is the opener's, and has sent nothing yet that shows that an answer reached
    /// it: whoever sends under a forged address gets none.
    pub const UNCONFIRMED: u8 = 1 << 3;
    /// The other direction's [`RST`] as this one found it when it last sent anything but an RST.
    pub const RST_SEEN: u8 = 1 << 4;
    /// In the opener's entry: its backend was deleted. The agent writes it, for the backend's id
    /// may be another's when the opener goes on.
    pub const GONE: u8 = 1 << 5;
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
    /// TCP, both sides closed: `nf_conntrack_tcp_timeout_time_wait`. As long as an end may be in
    /// TIME-WAIT (Linux' own is for 60 s), it takes another client's SYN by this source port for one
    /// of the connection before.
    pub const TCP_CLOSED: u32 = 120;
    /// TCP, reset, and over on both sides or never confirmed.
    pub const TCP_RESET: u32 = 10;
    /// TCP, reset by one side, of which the other says nothing. Nobody here knows which sequence
    /// numbers are right, so the reset may be forged: an end that lives sends what clears it, if
    /// only a keepalive. As nf_conntrack's `max_retrans` and `unacknowledged`, which wait for a
    /// silent end too, and well above the 100 s for which RFC 9293 section 3.8.3 has one try.
    pub const TCP_RESET_ALONE: u32 = 300;
    /// What makes room for others, where there is need, may be silent for no more: flows that were
    /// never confirmed, that were reset, or that are over on both sides. Between two of the first
    /// four repetitions of a SYN, and longer than resolvers wait for an answer.
    pub const PRESSED: u32 = 10;
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
/// Whatever either direction sends after an RST clears it: the RST's sender did not mean it (or
/// someone else sent it), or its receiver did not believe it. A spurious RST must not shorten the
/// life of a connection that goes on. A receiver that is gone answers with an RST of its own.
#[inline(always)]
pub const fn next(flow: &Flow, protocol: u8, flags: u8, now_s: u32) -> u8 {
    let (own, peer) = (flow.state, flow.peer_state);
    let seen = own | state::SEEN;
    let answered = peer & state::SEEN != 0;
    if protocol != protocol::TCP {
        let [now, ..] = now_s.to_le_bytes();
        let goes_on = answered && now.wrapping_sub(flow.opened) >= STREAM_AFTER_S;
        return if goes_on { seen & !state::UNCONFIRMED } else { seen };
    }
    if flags & tcp_flags::RST != 0 {
        return reset(seen, peer);
    }
    // What follows is in bits, not branches: each would double the ways that the verifier walks.
    let kept = seen & !(state::RST | state::RST_SEEN);
    let clears = ((peer & state::RST_SEEN) >> 2) | ((peer & state::RST) << 2);
    let confirms = (peer & state::SEEN & !(flags >> 1)) << 3;
    (kept | clears | ((flags & tcp_flags::FIN) << 1)) & !confirms
}

const _: () = assert!(state::RST_SEEN == state::RST << 2);
const _: () = assert!(state::UNCONFIRMED == state::SEEN << 3 && tcp_flags::SYN >> 1 == state::SEEN);
const _: () = assert!(state::FIN == tcp_flags::FIN << 1);

/// Whether the direction with the state `own` sent an RST, and neither has sent anything since.
///
/// Each direction writes its own octet only, so what clears an RST of the other's is a copy of its
/// bit: while the copy differs, the RST counts.
#[inline(always)]
pub const fn is_reset(own: u8, peer: u8) -> bool {
    reset_bit(own, peer) != 0
}

/// [`is_reset`] in the place of [`state::RST`].
#[inline(always)]
const fn reset_bit(own: u8, peer: u8) -> u8 {
    (own ^ (peer >> 2)) & state::RST
}

/// A direction's state after an RST of its.
#[inline(always)]
pub const fn reset(own: u8, peer: u8) -> u8 {
    (own & !state::RST) | (!(peer >> 2) & state::RST)
}

/// Whether both sides are done, or one gave up.
#[inline(always)]
pub const fn closed(flow: &Flow) -> bool {
    let (own, peer) = (flow.state, flow.peer_state);
    reset_bit(own, peer) | reset_bit(peer, own) | (own & peer & state::FIN) != 0
}

/// What the timeout of a flow depends on: bits of an index into [`TIMEOUTS`].
mod case {
    /// One side reset it.
    pub(super) const RESET: usize = 1 << 0;
    /// Both sides are done, by FIN or RST.
    pub(super) const OVER: usize = 1 << 1;
    /// One side at least sent a FIN.
    pub(super) const CLOSING: usize = 1 << 2;
    /// Its opener goes on after an answer.
    pub(super) const CONFIRMED: usize = 1 << 3;
    /// It is no connection.
    pub(super) const DATAGRAMS: usize = 1 << 4;
}

/// The cases of [`TIMEOUTS`].
const CASES: usize = 1 << 5;

/// Seconds of silence by [`case`]. A table, since branches would double the ways that the verifier
/// walks.
static TIMEOUTS: [u32; CASES] = {
    let mut timeouts = [0; CASES];
    let mut case = 0;
    while case < CASES {
        timeouts[case] = timeout_of(case);
        case += 1;
    }
    timeouts
};

/// The same where there is need.
static PRESSED: [u32; CASES] = {
    let mut timeouts = [timeout::PRESSED; CASES];
    let mut case = 0;
    while case < CASES {
        if lives(case) {
            timeouts[case] = timeout_of(case);
        }
        case += 1;
    }
    timeouts
};

/// Whether both sides were there, and neither ended it: then nobody takes its place.
const fn lives(case: usize) -> bool {
    case & (case::CONFIRMED | case::RESET | case::OVER) == case::CONFIRMED
}

const fn timeout_of(case: usize) -> u32 {
    let confirmed = case & case::CONFIRMED != 0;
    if case & case::DATAGRAMS != 0 {
        return if confirmed { timeout::UDP_STREAM } else { timeout::UDP_EXCHANGE };
    }
    let over = case & case::OVER != 0;
    if case & case::RESET != 0 {
        let alone = confirmed && !over;
        return if alone { timeout::TCP_RESET_ALONE } else { timeout::TCP_RESET };
    }
    if over {
        timeout::TCP_CLOSED
    } else if !confirmed {
        timeout::TCP_OPENING
    } else if case & case::CLOSING != 0 {
        timeout::TCP_HALF_CLOSED
    } else {
        timeout::TCP_ESTABLISHED
    }
}

#[inline(always)]
const fn case_of(protocol: u8, flow: &Flow) -> usize {
    let (own, peer) = (flow.state, flow.peer_state);
    // Each in the lowest place.
    let (own_reset, peer_reset) = (reset_bit(own, peer) >> 2, reset_bit(peer, own) >> 2);
    let (own_fin, peer_fin) = ((own & state::FIN) >> 1, (peer & state::FIN) >> 1);
    let reset = own_reset | peer_reset;
    let over = (own_reset | own_fin) & (peer_reset | peer_fin);
    let closing = own_fin | peer_fin;
    let confirmed = own & peer & !((own | peer) >> 3) & state::SEEN;
    let datagrams = if protocol == protocol::TCP { 0 } else { case::DATAGRAMS };
    (reset | (over << 1) | (closing << 2) | (confirmed << 3)) as usize | datagrams
}

/// Seconds of silence that `flow` may have.
#[inline(always)]
pub fn timeout_s(protocol: u8, flow: &Flow) -> u32 {
    TIMEOUTS[case_of(protocol, flow) % CASES]
}

/// Whether there are others that want a flow's room or source port. What lives is not given up for
/// them, but what may have come to nothing is, earlier than else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// There is enough of both.
    None,
    /// There is not.
    Pressing,
}

/// Whether this entry alone has been silent for too long. A flow is expired where both of its
/// entries are: traffic may go one way only.
#[inline(always)]
pub fn silent(protocol: u8, flow: &Flow, now_s: u32, need: Need) -> bool {
    // Another processor may have written a second that is ahead of ours.
    let idle = now_s.wrapping_sub(flow.seen_s);
    let of_case = case_of(protocol, flow) % CASES;
    let limit = if matches!(need, Need::None) { TIMEOUTS[of_case] } else { PRESSED[of_case] };
    idle.cast_signed() > limit.cast_signed()
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
    extern crate std;

    use std::vec;

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
        timeout_s(TCP, &after(segments))
    }

    fn after(segments: &[(bool, u8)]) -> Flow {
        let mut this = flow(OPENED, 0);
        for (is_openers, flags) in segments {
            passes(&mut this, *is_openers, (TCP, *flags), 1_000);
        }
        this
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
        let reset = flow(state::SEEN, reset(state::SEEN, state::SEEN));
        assert!(!reopens(TCP, SYN, &opening), "a repeated SYN stays with its backend");
        assert!(!reopens(TCP, SYN, &established));
        assert!(reopens(TCP, SYN, &closed));
        assert!(reopens(TCP, SYN, &reset));
        assert!(!reopens(TCP, SYN | ACK, &closed));
        assert!(!reopens(TCP, ACK, &closed));
        assert!(!reopens(UDP, 0, &closed));
    }

    /// What either end says after a reset clears it, again and again.
    #[test]
    fn b140_a_spurious_rst_is_survived() {
        for resetter in [true, false] {
            for survivor in [true, false] {
                let mut packets = vec![(false, SYN | ACK), (true, ACK)];
                for _ in 0..3 {
                    for _ in 0..2 {
                        packets.push((resetter, RST));
                        assert_eq!(tcp_timeout(&packets), timeout::TCP_RESET_ALONE);
                    }
                    packets.push((survivor, ACK));
                    assert_eq!(tcp_timeout(&packets), timeout::TCP_ESTABLISHED, "{packets:?}");
                }
            }
        }
    }

    #[test]
    fn b140_a_reset_that_ends_a_connection_is_soon_forgotten() {
        let (opener, answerer) = (true, false);
        let up = [(answerer, SYN | ACK), (opener, ACK)];
        for ended in [
            [(opener, RST), (answerer, RST)],
            [(answerer, RST), (opener, RST)],
            [(opener, FIN | ACK), (answerer, RST)],
            [(answerer, FIN | ACK), (opener, RST | ACK)],
        ] {
            let packets = [up, ended].concat();
            assert_eq!(tcp_timeout(&packets), timeout::TCP_RESET, "{ended:?}");
        }
        assert_eq!(tcp_timeout(&[(answerer, RST | ACK)]), timeout::TCP_RESET, "refused");
        assert_eq!(tcp_timeout(&[(answerer, SYN | ACK), (opener, RST)]), timeout::TCP_RESET);
        let one_side = [up, [(opener, FIN | ACK), (opener, RST)]].concat();
        assert_eq!(tcp_timeout(&one_side), timeout::TCP_RESET_ALONE);
    }

    /// Programs from before resets were cleared by the other side left this.
    #[test]
    fn b140_an_older_agents_resets_count() {
        assert!(closed(&flow(state::SEEN | state::RST, state::SEEN)));
        assert!(closed(&flow(state::SEEN, state::SEEN | state::RST)));
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
    fn u03_need_ends_only_what_came_to_nothing() {
        let (opener, answerer) = (true, false);
        let up = [(answerer, SYN | ACK), (opener, ACK)];
        let is_over = |segments: &[(bool, u8)], after_s| {
            let this = after(segments);
            silent(TCP, &this, this.seen_s + after_s, Need::Pressing)
        };
        for lost in [
            vec![],
            vec![(answerer, SYN | ACK)],
            [&up[..], &[(opener, RST)]].concat(),
            [&up[..], &[(opener, FIN | ACK), (answerer, FIN | ACK)]].concat(),
        ] {
            assert!(!is_over(&lost, timeout::PRESSED), "{lost:?}");
            assert!(is_over(&lost, timeout::PRESSED + 1), "{lost:?}");
        }
        assert!(!is_over(&up, timeout::TCP_ESTABLISHED));
        assert!(is_over(&up, timeout::TCP_ESTABLISHED + 1));
        let closing = [&up[..], &[(opener, FIN | ACK)]].concat();
        assert!(!is_over(&closing, timeout::TCP_HALF_CLOSED));
    }

    #[test]
    fn silence_is_counted_from_the_last_packet_and_tolerates_clocks_ahead() {
        let this = flow(state::SEEN, 0);
        assert!(!silent(UDP, &this, 1_000 + timeout::UDP_EXCHANGE, Need::None));
        assert!(silent(UDP, &this, 1_001 + timeout::UDP_EXCHANGE, Need::None));
        assert!(!silent(UDP, &this, 999, Need::None));
    }
}
