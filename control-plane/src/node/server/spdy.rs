//! The streams of a command, as a container runtime's own server has them: SPDY/3.1, of which so
//! much is spoken as such servers need. Unlike in their WebSockets, a stream can end here by itself,
//! so that a command learns that there is no more standard input.
//!
//! ```text
//! control  1 | version 3 | type    flags | length    what the type says
//! data     0 | stream              flags | length    octets
//! ```
//! A stream's headers travel as one zlib stream for the connection, with a dictionary that SPDY
//! defines. Ours are not compressed: nothing of the dictionary is needed to write such a stream but
//! its checksum. Those of the other side say nothing that is needed, and are not read.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

/// The subprotocol in which the last stream says how the command ended, as a `Status`.
pub(super) const PROTOCOL: &str = "v4.channel.k8s.io";
/// What a connection is upgraded to.
pub(super) const UPGRADE: &str = "SPDY/3.1";

/// The longest frame that is taken: servers send 32 KiB at once.
const FRAME_MAX: usize = 1 << 20;
/// What a frame begins with.
const HEADER: usize = 8;

const SYN_STREAM: u32 = 1;
const SYN_REPLY: u32 = 2;
const RST_STREAM: u32 = 3;
const PING: u32 = 6;
const GOAWAY: u32 = 7;
/// A frame is the last of its stream, from its side.
const FIN: u8 = 1;

/// One of a command's streams, by the number that the WebSocket's subprotocols give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Channel {
    /// What the command reads.
    Stdin = 0,
    /// What it writes.
    Stdout = 1,
    /// What it complains about.
    Stderr = 2,
    /// How it ended.
    Error = 3,
    /// The size of its terminal.
    Resize = 4,
}

impl Channel {
    const ALL: [Self; 5] = [Self::Stdin, Self::Stdout, Self::Stderr, Self::Error, Self::Resize];

    /// By its number.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| *channel as u8 == number)
    }

    /// The stream's id: a client's are odd, and grow.
    fn stream(self) -> u32 {
        2 * u32::from(self as u8) + 1
    }

    fn of_stream(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| channel.stream() == id)
    }

    /// What it is called where it is opened.
    fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Error => "error",
            Self::Resize => "resize",
        }
    }
}

/// A frame, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Opens a stream.
    Open(Channel),
    /// The stream is open on the other side, too.
    Opened(Channel),
    /// Octets of a stream, which may be the last ones.
    Data { channel: Channel, last: bool, data: Bytes },
    /// The stream is given up.
    Reset(Channel),
    /// Is to be sent back.
    Ping(u32),
    /// There is nothing more to come.
    GoAway,
    /// Anything else.
    Other,
}

/// Frames from octets, and back.
#[derive(Debug, Default)]
pub(super) struct Codec {
    /// Whether the stream of headers has begun.
    begun: bool,
}

impl Decoder for Codec {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Frame>> {
        let Some(mut header) = buffer.get(..HEADER) else { return Ok(None) };
        let (first, second) = (header.get_u32(), header.get_u32());
        let (is_last, length) = (second >> 24 & u32::from(FIN) != 0, second & 0x00ff_ffff);
        let length = length as usize;
        if length > FRAME_MAX {
            let message = format!("a frame of {length} octets, of which {FRAME_MAX} are taken");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        if buffer.len() < HEADER + length {
            buffer.reserve(HEADER + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(HEADER);
        let body = buffer.split_to(length).freeze();
        if first >> 31 == 0 {
            let data = |channel| Frame::Data { channel, last: is_last, data: body };
            return Ok(Some(Channel::of_stream(first).map_or(Frame::Other, data)));
        }
        Ok(Some(control(first & 0xffff, &body)))
    }
}

/// A control frame; one that is too short, or of a stream that nobody opened, is of no concern.
fn control(kind: u32, body: &[u8]) -> Frame {
    let Some(word) = body.first_chunk::<4>().map(|octets| u32::from_be_bytes(*octets)) else {
        return Frame::Other;
    };
    let channel = Channel::of_stream(word & (u32::MAX >> 1));
    match (kind, channel) {
        (SYN_REPLY, Some(channel)) => Frame::Opened(channel),
        (RST_STREAM, Some(channel)) => Frame::Reset(channel),
        (PING, _) => Frame::Ping(word),
        (GOAWAY, _) => Frame::GoAway,
        _ => Frame::Other,
    }
}

impl Encoder<Frame> for Codec {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, buffer: &mut BytesMut) -> io::Result<()> {
        match frame {
            Frame::Open(channel) => {
                let mut body = BytesMut::new();
                body.put_u32(channel.stream());
                body.put_u32(0); // belongs to no other
                body.put_u16(0); // priority
                self.put_headers(&[("streamtype", channel.name())], &mut body);
                put_control(SYN_STREAM, &body, buffer);
            }
            Frame::Data { channel, last, data } => {
                buffer.put_u32(channel.stream());
                put_length(if last { FIN } else { 0 }, data.len(), buffer);
                buffer.put(data);
            }
            Frame::Ping(id) => put_control(PING, &id.to_be_bytes(), buffer),
            Frame::Opened(_) | Frame::Reset(_) | Frame::GoAway | Frame::Other => {}
        }
        Ok(())
    }
}

fn put_control(kind: u32, body: &[u8], buffer: &mut BytesMut) {
    buffer.put_u32(0x8003_0000 | kind);
    put_length(0, body.len(), buffer);
    buffer.put(body);
}

#[expect(clippy::cast_possible_truncation, reason = "what is sent is a message of at most 1 MiB")]
fn put_length(flags: u8, length: usize, buffer: &mut BytesMut) {
    buffer.put_u32(u32::from(flags) << 24 | length as u32 & 0x00ff_ffff);
}

impl Codec {
    /// Headers, as the next part of the connection's zlib stream (RFC 1950, RFC 1951).
    #[expect(clippy::cast_possible_truncation, reason = "a header or two of a few octets")]
    fn put_headers(&mut self, headers: &[(&str, &str)], body: &mut BytesMut) {
        let mut block = BytesMut::new();
        block.put_u32(headers.len() as u32);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.put_u32(text.len() as u32);
            block.put(text.as_bytes());
        }
        if !self.begun {
            // Deflate with a window of 32 KiB; with a dictionary; its Adler-32.
            body.put_slice(&[0x78, 0x20]);
            body.put_u32(0xe3c6_a7c2);
            self.begun = true;
        }
        // A stored block; and an empty one, by which readers know that they have all there is.
        for stored in [&block[..], &[]] {
            body.put_u8(0);
            body.put_u16_le(stored.len() as u16);
            body.put_u16_le(!(stored.len() as u16));
            body.put(stored);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(codec: &mut Codec, frame: Frame) -> BytesMut {
        let mut buffer = BytesMut::new();
        codec.encode(frame, &mut buffer).unwrap();
        buffer
    }

    #[test]
    fn streams_are_opened_in_one_stream_of_headers() {
        let mut codec = Codec::default();
        let first = encoded(&mut codec, Frame::Open(Channel::Stdin));
        let begin = [0x80, 3, 0, 1, 0, 0, 0, 53, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x78, 0x20];
        assert_eq!(first[..20], begin);
        assert_eq!(first.len(), 8 + 53);
        let second = encoded(&mut codec, Frame::Open(Channel::Error));
        assert_eq!((second[7], second[11]), (47, 7), "the beginning is said once");
        assert_eq!(second[18..23], [0, 27, 0, 228, 255], "a stored block and its length");
        assert_eq!(second[23..], *b"\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05error\0\0\0\xff\xff");
    }

    #[test]
    fn data_comes_back_whole_however_it_is_cut() {
        let mut codec = Codec::default();
        let data = Bytes::from_static(b"text");
        let sent = [
            Frame::Data { channel: Channel::Stdout, last: false, data: data.clone() },
            Frame::Ping(2),
            Frame::Data { channel: Channel::Stdin, last: true, data: Bytes::new() },
        ];
        let mut wire = BytesMut::new();
        for frame in sent.clone() {
            codec.encode(frame, &mut wire).unwrap();
        }
        let (mut buffer, mut received) = (BytesMut::new(), Vec::new());
        for octet in wire {
            buffer.put_u8(octet);
            received.extend(codec.decode(&mut buffer).unwrap());
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn what_a_server_says_is_understood_or_of_no_concern() {
        let cases: [(&[u8], Frame); 7] = [
            (&[0x80, 3, 0, 2, 0, 0, 0, 6, 0, 0, 0, 1, 9, 9], Frame::Opened(Channel::Stdin)),
            (&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 5], Frame::Reset(Channel::Error)),
            (&[0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0], Frame::GoAway),
            (&[0x80, 3, 0, 2, 0, 0, 0, 4, 0, 0, 0, 99], Frame::Other),
            (&[0x80, 3, 0, 2, 0, 0, 0, 0], Frame::Other),
            (&[0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0], Frame::Other),
            (&[0, 0, 0, 12, 0, 0, 0, 1, 7], Frame::Other),
        ];
        for (wire, frame) in cases {
            let mut buffer = BytesMut::from(wire);
            assert_eq!(Codec::default().decode(&mut buffer).unwrap(), Some(frame), "{wire:?}");
            assert!(buffer.is_empty());
        }
        let mut long = BytesMut::from(&[0, 0, 0, 3, 0, 0x10, 0, 1][..]);
        assert!(Codec::default().decode(&mut long).is_err(), "a frame of more than 1 MiB");
    }
}
