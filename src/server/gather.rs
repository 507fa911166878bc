//! Writes of one turn, gathered into one.
//!
//! Many calls share a connection, and each that has something to say makes HTTP/2 flush. A flush here first lets everything that is ready now have its
//! turn, by coming back once the run queue has gone round, and again as long as a turn adds something; then all of it is one write. No timer is
//! involved: when nothing else is ready the write follows at once.
//!
//! Must hold: nothing stays behind. What is gathered has a waker under way, or is being written. Above [`ENOUGH`] bytes nothing is deferred, and no more
//! is taken before it is written: a peer that does not read is felt as before.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As much as one write is worth waiting for, in bytes: a TLS record, and no large part of a socket's buffer.
const ENOUGH: usize = 16 << 10;

/// A connection whose writes are gathered.
pub(super) struct Gather<T> {
    io: T,
    gathered: Vec<u8>,
    /// How much of it is written.
    written: usize,
    /// How much there was when the flush was last deferred.
    deferred: usize,
}

impl<T: AsyncWrite + Unpin> Gather<T> {
    pub(super) fn new(io: T) -> Self {
        Self { io, gathered: Vec::new(), written: 0, deferred: 0 }
    }

    /// Makes room for `more` bytes, by writing if there is too little.
    fn poll_room(&mut self, cx: &mut Context<'_>, more: usize) -> Poll<io::Result<()>> {
        if self.gathered.is_empty() || self.gathered.len() + more <= ENOUGH {
            Poll::Ready(Ok(()))
        } else {
            self.poll_write_out(cx)
        }
    }

    /// Writes all that is gathered.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.gathered[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        // An idle connection holds nothing: there are thousands of them.
        self.gathered = Vec::new();
        (self.written, self.deferred) = (0, 0);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gather<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        ready!(self.poll_room(cx, length))?;
        if length >= ENOUGH {
            return Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        }
        for slice in slices {
            self.gathered.extend_from_slice(slice);
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gathered = self.gathered.len();
        if gathered > self.deferred && gathered < ENOUGH && self.written == 0 {
            self.deferred = gathered;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_write_out(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gather<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_written_in_one_turn_is_read_as_one_and_nothing_is_kept() {
        let (ours, mut theirs) = duplex(1 << 20);
        let (mut ours, mut read) = (Gather::new(ours), [0; 64]);
        for _ in 0..3 {
            ours.write_all(b"one ").await.expect("open");
            ours.write_all(b"two").await.expect("open");
            let (flushed, length) = tokio::join!(ours.flush(), theirs.read(&mut read));
            flushed.expect("open");
            assert_eq!(&read[..length.expect("open")], b"one two");
            assert_eq!(ours.gathered.capacity(), 0);
        }
    }

    #[tokio::test]
    async fn a_flush_waits_while_turns_add_something_and_no_longer() {
        let (ours, mut theirs) = duplex(1 << 20);
        let mut ours = Gather::new(ours);
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        for part in [&b"one "[..], b"two "] {
            assert!(Pin::new(&mut ours).poll_write(cx, part).is_ready());
            assert!(Pin::new(&mut ours).poll_flush(cx).is_pending());
        }
        assert!(Pin::new(&mut ours).poll_flush(cx).is_ready());
        assert!(Pin::new(&mut ours).poll_flush(cx).is_ready(), "there is nothing to wait for");
        let mut read = [0; 64];
        let length = theirs.read(&mut read).await.expect("open");
        assert_eq!(&read[..length], b"one two ");
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_felt() {
        let (ours, mut theirs) = duplex(1 << 10);
        let mut ours = Gather::new(ours);
        let text: Vec<u8> = (0..100_000_u32).map(|number| number.to_be_bytes()[3]).collect();
        let mut sent = 0;
        let taken = std::future::poll_fn(|cx| {
            while sent < text.len() {
                match Pin::new(&mut ours).poll_write(cx, &text[sent..(sent + 700).min(text.len())]) {
                    Poll::Ready(written) => sent += written.expect("open"),
                    Poll::Pending => break,
                }
            }
            Poll::Ready(sent)
        })
        .await;
        assert!(taken <= ENOUGH + (1 << 10), "{taken}");
        let rest = text[taken..].to_vec();
        let writing = tokio::spawn(async move {
            ours.write_all(&rest).await?;
            ours.shutdown().await
        });
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.expect("open");
        writing.await.expect("no panic").expect("open");
        assert_eq!(read, text);
    }
}
