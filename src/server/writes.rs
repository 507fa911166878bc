//! What a connection writes while it is polled once, as one write.
//!
//! HTTP/2 flushes after every piece of a body, and many calls that have something to say at the
//! same time share a connection: 16 answers would be 16 system calls. Here a flush is only marked;
//! [`Writes::polled`] polls the connection, which takes all frames that are ready, and then writes
//! them. Nothing is delayed by that: the write follows in the same turn.
//!
//! Must hold: nothing stays behind. What was taken is written when the poll ends, or the socket is
//! full and wakes the connection when it is not; a shutdown waits for it. Above [`ENOUGH`] bytes no
//! more is taken before it is written: a peer that does not read is felt as before.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As much as one write is worth waiting for, in bytes: a TLS record, and no large part of a
/// socket's buffer.
const ENOUGH: usize = 16 << 10;

/// The write side of a connection whose other half, [`Gathered`], the HTTP library has.
pub(super) struct Writes<T>(Arc<Mutex<Buffered<T>>>);

/// A connection whose writes are gathered until [`Writes::polled`] writes them.
pub(super) struct Gathered<T>(Arc<Mutex<Buffered<T>>>);

struct Buffered<T> {
    io: T,
    taken: Vec<u8>,
    /// How much of it is written.
    written: usize,
    /// Writing has failed.
    broken: Option<io::ErrorKind>,
}

/// The two halves of `io`.
pub(super) fn gathered<T>(io: T) -> (Gathered<T>, Writes<T>) {
    let shared = Arc::new(Mutex::new(Buffered {
        io,
        taken: Vec::new(),
        written: 0,
        broken: None,
    }));
    (Gathered(Arc::clone(&shared)), Writes(shared))
}

impl<T: AsyncWrite + Unpin> Writes<T> {
    /// Polls the connection, and writes what that gave.
    pub(super) async fn polled<F: Future>(&self, mut connection: Pin<&mut F>) -> F::Output {
        poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            let mut buffered = lock(&self.0);
            if buffered.broken.is_none()
                && let Poll::Ready(Err(error)) = buffered.poll_flush(cx)
            {
                buffered.taken = Vec::new();
                buffered.broken = Some(error.kind());
                // The connection learns of it by its next read or write.
                cx.waker().wake_by_ref();
            }
            polled
        })
        .await
    }
}

impl<T: AsyncWrite + Unpin> Buffered<T> {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.taken.len() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.taken[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        // An idle connection holds nothing: there are thousands of them.
        (self.taken, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Writes all, down to what TLS holds.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl<T> Buffered<T> {
    fn check(&self) -> io::Result<()> {
        self.broken.map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut buffered = lock(&self.0);
        buffered.check()?;
        let length = slices.iter().map(|slice| slice.len()).sum();
        if buffered.taken.len() + length > ENOUGH {
            ready!(buffered.poll_write_out(cx))?;
            if length > ENOUGH {
                return Pin::new(&mut buffered.io).poll_write_vectored(cx, slices);
            }
        }
        if buffered.taken.capacity() == 0 {
            buffered.taken.reserve_exact(ENOUGH);
        }
        for slice in slices {
            buffered.taken.extend_from_slice(slice);
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Done by [`Writes::polled`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffered = lock(&self.0);
        buffered.check()?;
        ready!(buffered.poll_flush(cx))?;
        Pin::new(&mut buffered.io).poll_shutdown(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buffered = lock(&self.0);
        buffered.check()?;
        Pin::new(&mut buffered.io).poll_read(cx, buffer)
    }
}

fn lock<T>(shared: &Mutex<Buffered<T>>) -> MutexGuard<'_, Buffered<T>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{future::pending, pin::pin};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn what_one_poll_writes_is_one_write_and_nothing_is_kept() {
        let (ours, mut theirs) = duplex(1 << 20);
        let (mut gathered, writes) = gathered(ours);
        let mut connection = pin!(async {
            for piece in [b"one ", b"two ", b"six "] {
                gathered.write_all(piece).await.expect("open");
                gathered.flush().await.expect("open");
            }
            pending::<()>().await;
        });
        let mut read = [0; 64];
        let length = tokio::select! {
            () = writes.polled(connection.as_mut()) => unreachable!(),
            length = theirs.read(&mut read) => length.expect("open"),
        };
        assert_eq!(&read[..length], b"one two six ");
        assert_eq!(lock(&writes.0).taken.capacity(), 0);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_felt_and_gets_all_once_it_reads() {
        let (ours, mut theirs) = duplex(1 << 10);
        let (mut gathered, writes) = gathered(ours);
        let text: Vec<u8> = (0..100_000_u32)
            .map(|number| number.to_be_bytes()[3])
            .collect();
        let taken = Arc::new(Mutex::new(0));
        let mut connection = pin!(async {
            for piece in text.chunks(700).chain([&text[..3 * ENOUGH]]) {
                gathered.write_all(piece).await.expect("open");
                gathered.flush().await.expect("open");
                *taken.lock().expect("no panic") += piece.len();
            }
            gathered.shutdown().await.expect("open");
        });
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        assert!(
            pin!(writes.polled(connection.as_mut()))
                .poll(cx)
                .is_pending()
        );
        let felt = *taken.lock().expect("no panic");
        assert!((ENOUGH / 2..=ENOUGH + (1 << 10)).contains(&felt), "{felt}");

        let mut read = Vec::new();
        let ((), length) = tokio::join!(
            writes.polled(connection.as_mut()),
            theirs.read_to_end(&mut read)
        );
        length.expect("open");
        assert!(
            read == [&text[..], &text[..3 * ENOUGH]].concat(),
            "not what was written"
        );
    }

    #[tokio::test]
    async fn the_connection_learns_that_nobody_can_be_written_to() {
        let (ours, theirs) = duplex(1 << 10);
        let (mut gathered, writes) = gathered(ours);
        drop(theirs);
        let connection = pin!(async {
            gathered.write_all(b"hello").await.expect("taken");
            gathered.flush().await.expect("taken");
            tokio::task::yield_now().await;
            gathered.read_u8().await.expect_err("it is broken").kind()
        });
        assert_eq!(writes.polled(connection).await, io::ErrorKind::BrokenPipe);
    }
}
