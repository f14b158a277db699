//! Gathers what a connection writes in one turn of its task.
//!
//! A change that two hundred watches of a connection hear of is two hundred small frames, each
//! flushed by itself: as many TLS records and system calls. Here a flush waits for the end of the
//! [`Turn`]: the connection is asked once more after all others that are ready to run, and what
//! they all had to say leaves together. Nothing waits for longer than that. HTTP/1, which has one
//! thing to say at a time, is passed through.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered before they are written in any case: two TLS records.
const MOST: usize = 32 << 10;

/// A stream whose flushes wait for the end of the turn. Clones are the same stream.
pub(crate) struct Cork<S>(Arc<Mutex<Corked<S>>>);

struct Corked<S> {
    stream: S,
    gathered: BytesMut,
    /// Whether the stream may hold what was written to it: TLS takes more than its socket does.
    unflushed: bool,
    /// Whether anything was read: what comes first tells what is spoken.
    known: bool,
    /// Whether flushes wait for the end of the turn.
    gathers: bool,
}

/// What a client of HTTP/2 says first (RFC 9113, section 3.4), as far as it tells it apart.
const PREFACE: &[u8] = b"PRI ";

impl<S> Clone for Cork<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Cork<S> {
    /// A stream that is flushed by [`Turn`]s, once its client is known to speak HTTP/2.
    pub(crate) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Corked {
            stream,
            gathered: BytesMut::new(),
            unflushed: false,
            known: false,
            gathers: false,
        })))
    }

    /// Never contended while turns go on: stream and turns are one task's.
    fn lock(&self) -> MutexGuard<'_, Corked<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Writes what was gathered.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.gathered))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(written);
            self.unflushed = true;
        }
        // A connection that is silent holds no memory.
        self.gathered = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    fn flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(context))?;
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Whether something is still to be sent.
    fn owes(&self) -> bool {
        self.unflushed || !self.gathered.is_empty()
    }

    /// Makes room for more, if there is none.
    fn room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= MOST {
            ready!(self.drain(context))?;
        }
        Poll::Ready(Ok(MOST - self.gathered.len()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cork<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let mut corked = self.lock();
        ready!(Pin::new(&mut corked.stream).poll_read(context, buffer))?;
        corked.gathers |= !corked.known && buffer.filled()[before..].starts_with(PREFACE);
        corked.known = true;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cork<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut corked = self.lock();
        if !corked.gathers {
            ready!(corked.drain(context))?;
            return Pin::new(&mut corked.stream).poll_write_vectored(context, slices);
        }
        let mut room = ready!(corked.room(context))?;
        let mut taken = 0;
        for slice in slices {
            let part = &slice[..slice.len().min(room)];
            corked.gathered.extend_from_slice(part);
            room -= part.len();
            taken += part.len();
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut corked = self.lock();
        if corked.gathers { Poll::Ready(Ok(())) } else { corked.flush(context) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut corked = self.lock();
        ready!(corked.drain(context))?;
        Pin::new(&mut corked.stream).poll_shutdown(context)
    }
}

/// The turns of the task that drives a connection over a [`Cork`].
pub(crate) struct Turn<S> {
    cork: Cork<S>,
    /// Whether the others have had their chance since something was gathered.
    waited: bool,
}

impl<S: AsyncWrite + Unpin> Turn<S> {
    /// The turns of whoever drives what writes into `cork`.
    pub(crate) fn of(cork: Cork<S>) -> Self {
        Self { cork, waited: false }
    }

    /// Asks the connection, and writes what it has said by the end of the turn.
    pub(crate) fn poll<F, E>(
        &mut self,
        connection: Pin<&mut F>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), E>>
    where
        F: Future<Output = Result<(), E>>,
        E: From<io::Error>,
    {
        let ended = connection.poll(context);
        let mut corked = self.cork.lock();
        if ended.is_ready() {
            // Whoever took the stream over writes for itself from now on, this first.
            corked.gathers = false;
            let _ = corked.flush(context);
            return ended;
        }
        if !corked.owes() {
            self.waited = false;
        } else if self.waited || corked.gathered.is_empty() {
            self.waited = false;
            if let Poll::Ready(Err(reason)) = corked.flush(context) {
                return Poll::Ready(Err(reason.into()));
            }
        } else {
            self.waited = true;
            // Behind everybody else who is ready.
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Counts what is written to it.
    #[derive(Default)]
    struct Counted {
        writes: usize,
        bytes: usize,
        /// Whether it takes nothing for now.
        full: bool,
        /// Whether what it took is still on its way.
        holds: bool,
        flushed: usize,
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.full {
                return Poll::Pending;
            }
            self.writes += 1;
            self.bytes += bytes.len();
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.holds {
                return Poll::Pending;
            }
            self.flushed = self.bytes;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Of a client that speaks HTTP/2.
    fn cork<S>(stream: S) -> Cork<S> {
        let cork = Cork::new(stream);
        cork.lock().gathers = true;
        cork
    }

    fn context() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }

    /// Writes and flushes so many frames in one turn.
    fn turn(turn: &mut Turn<Counted>, cork: &mut Cork<Counted>, frames: usize) {
        let mut speaks = std::pin::pin!(std::future::poll_fn(|context| {
            for _ in 0..frames {
                assert!(Pin::new(&mut *cork).poll_write(context, &[7; 100]).is_ready());
                assert!(Pin::new(&mut *cork).poll_flush(context).is_ready());
            }
            Poll::<io::Result<()>>::Pending
        }));
        assert!(turn.poll(speaks.as_mut(), &mut context()).is_pending());
    }

    #[test]
    fn frames_of_two_turns_leave_in_one_write() {
        let mut cork = cork(Counted::default());
        let mut turns = Turn::of(cork.clone());
        turn(&mut turns, &mut cork, 3);
        assert_eq!(cork.lock().stream.writes, 0, "the others first");
        turn(&mut turns, &mut cork, 4);
        let corked = cork.lock();
        assert_eq!((corked.stream.writes, corked.stream.bytes), (1, 700));
        assert_eq!(corked.gathered.capacity(), 0, "silence costs no memory");
    }

    #[test]
    fn what_the_stream_holds_is_flushed_when_it_can_be() {
        let mut cork = cork(Counted { holds: true, ..Counted::default() });
        let mut turns = Turn::of(cork.clone());
        turn(&mut turns, &mut cork, 3);
        turn(&mut turns, &mut cork, 0);
        let sent = |cork: &Cork<Counted>| {
            let corked = cork.lock();
            (corked.stream.bytes, corked.stream.flushed)
        };
        assert_eq!(sent(&cork), (300, 0));
        // The socket takes more, which wakes the task; nobody has anything to say.
        cork.lock().stream.holds = false;
        turn(&mut turns, &mut cork, 0);
        assert_eq!(sent(&cork), (300, 300));
        assert!(!cork.lock().owes());
    }

    #[test]
    fn a_peer_that_reads_nothing_bounds_what_is_gathered() {
        let mut cork = cork(Counted { full: true, ..Counted::default() });
        let mut taken = 0;
        while let Poll::Ready(written) = Pin::new(&mut cork).poll_write(&mut context(), &[7; 5000])
        {
            taken += written.unwrap();
        }
        assert_eq!(taken, MOST);
    }

    #[tokio::test]
    async fn who_takes_the_stream_over_writes_for_itself() {
        let (ours, mut theirs) = duplex(1 << 16);
        let mut cork = cork(ours);
        let mut turns = Turn::of(cork.clone());
        cork.write_all(b"before ").await.unwrap();
        std::future::poll_fn(|context| {
            turns.poll(std::pin::pin!(std::future::ready(io::Result::Ok(()))), context)
        })
        .await
        .unwrap();
        cork.write_all(b"after").await.unwrap();
        let mut read = [0; 12];
        theirs.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"before after");
    }

    #[tokio::test]
    async fn only_http_2_is_gathered() {
        for (hello, gathers) in [("PRI * HTTP/2.0", true), ("GET / HTTP/1.1", false)] {
            let (ours, mut theirs) = duplex(1 << 16);
            let mut cork = Cork::new(ours);
            theirs.write_all(hello.as_bytes()).await.unwrap();
            cork.read_exact(&mut [0; 14]).await.unwrap();
            // What is in the middle of something tells nothing.
            theirs.write_all(b"PRI ").await.unwrap();
            cork.read_exact(&mut [0; 4]).await.unwrap();
            cork.write_all(b"answer").await.unwrap();
            assert_eq!(cork.lock().gathered.len(), if gathers { 6 } else { 0 }, "{hello}");
        }
    }

    #[tokio::test]
    async fn a_shutdown_writes_what_was_gathered() {
        let (ours, mut theirs) = duplex(1 << 16);
        let mut cork = cork(ours);
        cork.write_all(b"the last words").await.unwrap();
        cork.shutdown().await.unwrap();
        let mut read = String::new();
        theirs.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "the last words");
    }
}
