//! Messages with descriptors over a Unix socket (`SCM_RIGHTS`): a length of four octets, big endian,
//! and JSON; descriptors come with the first octet.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::{io::Interest, net::UnixStream, sync::Mutex};

use super::message::Message;

/// Octets of a message.
const MESSAGE_MAX: usize = 64 * 1024;
/// Descriptors of a message; the kernel takes 253.
pub(super) const DESCRIPTORS_MAX: usize = 64;
/// Room for them beside the data.
const CONTROL: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));
/// Octets that are read at once.
const CHUNK: usize = 4096;

/// One end of the line.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    received: Mutex<Received>,
    sending: Mutex<()>,
}

/// What has come and was not asked for yet.
#[derive(Debug, Default)]
struct Received {
    octets: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Channel {
    /// Over this stream, of which nothing else is read.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, received: Mutex::default(), sending: Mutex::default() }
    }

    /// Sends a message with the descriptors that belong to it.
    pub(super) async fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        debug_assert_eq!(message.descriptors(), descriptors.len());
        let body = serde_json::to_vec(message)?;
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &body].concat();
        let _whole = self.sending.lock().await;
        let (mut rest, mut descriptors) = (&framed[..], descriptors);
        while !rest.is_empty() {
            let sent = self.stream.async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); CONTROL];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !descriptors.is_empty()
                    && !control.push(SendAncillaryMessage::ScmRights(descriptors))
                {
                    return Err(io::Error::other("more descriptors than a message takes"));
                }
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                Ok(sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, flags)?)
            });
            rest = &rest[sent.await?..];
            descriptors = &[];
        }
        Ok(())
    }

    /// The next message with its descriptors; `None` where the other end is closed. When it is
    /// cancelled nothing is lost.
    pub(super) async fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut received = self.received.lock().await;
        loop {
            if let Some(message) = received.next()? {
                return Ok(Some(message));
            }
            let this = &mut *received;
            let read = self.stream.async_io(Interest::READABLE, || read(&self.stream, this));
            if read.await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Reads what there is; how many octets.
fn read(stream: impl AsFd, into: &mut Received) -> io::Result<usize> {
    let mut chunk = [0; CHUNK];
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let read = recvmsg(stream, &mut [IoSliceMut::new(&mut chunk)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            into.descriptors.extend(descriptors);
        }
    }
    if read.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("descriptors were lost: too many files are open"));
    }
    into.octets.extend_from_slice(&chunk[..read.bytes]);
    Ok(read.bytes)
}

impl Received {
    /// The first message, where it is there whole.
    fn next(&mut self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let Some((length, rest)) = self.octets.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MESSAGE_MAX {
            return Err(io::Error::other("a message is longer than any"));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message: Message = serde_json::from_slice(body)?;
        self.octets.drain(..4 + length);
        let count = message.descriptors();
        if count > self.descriptors.len() {
            return Err(io::Error::other("a message came without its descriptors"));
        }
        Ok(Some((message, self.descriptors.drain(..count).collect())))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream as Pair,
    };

    use super::*;

    #[tokio::test]
    async fn descriptors_come_with_their_message() {
        let (one, other) = UnixStream::pair().unwrap();
        let (one, other) = (Channel::new(one), Channel::new(other));
        let pairs: Vec<_> = (0..3).map(|_| Pair::pair().unwrap()).collect();
        let ends: Vec<_> = pairs.iter().map(|(end, _)| end.as_fd()).collect();
        one.send(&Message::Serving, &[]).await.unwrap();
        one.send(&Message::Sockets { count: 2 }, &ends[..2]).await.unwrap();
        one.send(&Message::Connection, &ends[2..]).await.unwrap();
        drop(one);
        let mut descriptors = Vec::new();
        for expected in [Message::Serving, Message::Sockets { count: 2 }, Message::Connection] {
            let (message, mut came) = other.receive().await.unwrap().unwrap();
            assert_eq!((&message, came.len()), (&expected, expected.descriptors()));
            descriptors.append(&mut came);
        }
        assert!(other.receive().await.unwrap().is_none(), "closed");
        for (number, descriptor) in (0..).zip(descriptors) {
            Pair::from(descriptor).write_all(&[number]).unwrap();
            let mut said = [9];
            (&pairs[usize::from(number)].1).read_exact(&mut said).unwrap();
            assert_eq!(said, [number]);
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error() {
        use tokio::io::AsyncWriteExt as _;
        for octets in
            [&b"GET / HTTP/1.1\r\n"[..], b"\0\0\0\x02{}", b"\0\0\0\x18{\"kind\":\"connection\"   }"]
        {
            let (mut one, other) = UnixStream::pair().unwrap();
            one.write_all(octets).await.unwrap();
            assert!(Channel::new(other).receive().await.is_err(), "{octets:?}");
        }
    }
}
