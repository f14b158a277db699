//! TCP connections that live, with the kernel's own counters of each (`struct tcp_info`,
//! `<linux/tcp.h>`) and what they were translated to.

use std::io;

use mizzen_ebpf_abi::{addr::protocol, socket::SocketPeer, traffic::Ending};

use super::sock_diag::{
    CONNECTED, MESSAGE, NLM_F_DUMP, SOCK_DIAG_BY_FAMILY, SOCKET_ID, SockDiag, Translations, find,
    message, request, translation,
};
use crate::traffic::SocketTraffic;

/// Attribute of an answer, and as a bit of the request that asks for it.
const INET_DIAG_INFO: u16 = 2;
/// Where the bits are in a request, and the state in an answer.
const EXTENSIONS_AT: usize = 2;
const STATE_AT: usize = 1;
/// Where fields of `struct tcp_info` are; those behind came with Linux 4.2.
const UNACKED_AT: usize = 24;
const TOTAL_RETRANS_AT: usize = 100;
const BYTES_ACKED_AT: usize = 120;
const BYTES_RECEIVED_AT: usize = 128;
const SEGS_OUT_AT: usize = 136;
const SEGS_IN_AT: usize = 140;

/// A connection that was translated and lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveConnection {
    /// What it was led to.
    pub peer: SocketPeer,
    /// What it sent so far.
    pub traffic: SocketTraffic,
}

impl SockDiag {
    /// Calls `visit` with every TCP connection of the namespace that was translated.
    pub fn live(
        &mut self,
        translations: &Translations,
        mut visit: impl FnMut(LiveConnection),
    ) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.send(&live_request(u8::try_from(family).unwrap_or_default(), translations))?;
            self.read_dump(|body| live(body).into_iter().for_each(&mut visit))?;
        }
        Ok(())
    }
}

fn live_request(family: u8, of: &Translations) -> Vec<u8> {
    let mut body = request(family, protocol::TCP, CONNECTED, &[0; SOCKET_ID]);
    body[EXTENSIONS_AT] = 1 << (INET_DIAG_INFO - 1);
    body.extend(of.request());
    message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &body)
}

/// A socket of an answer, if it has a connection that was translated.
fn live(body: &[u8]) -> Option<LiveConnection> {
    let peer = translation(body).filter(SocketPeer::is_used)?;
    let info = find(body.get(MESSAGE..)?, INET_DIAG_INFO)?;
    let word = |at: usize| Some(u32::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u64::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let so_far = Ending {
        state: u32::from(*body.get(STATE_AT)?),
        acked: long(BYTES_ACKED_AT)?,
        received: long(BYTES_RECEIVED_AT)?,
        all_acked: word(UNACKED_AT)? == 0,
        received_at_fin: peer.used,
    };
    let traffic = SocketTraffic {
        connections: 0,
        open: 1,
        sent_bytes: so_far.sent(),
        received_bytes: so_far.received(),
        sent_segments: word(SEGS_OUT_AT)?.into(),
        received_segments: word(SEGS_IN_AT)?.into(),
        retransmits: word(TOTAL_RETRANS_AT)?.into(),
    };
    Some(LiveConnection { peer, traffic })
}
