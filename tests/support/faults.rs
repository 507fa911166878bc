//! A TCP proxy that breaks what passes through it: connections refused and reset, bytes delayed,
//! held back, or cut in the middle; and from time to time an outage, in which nobody is let in.
//!
//! Must hold: but for the outages, the same seed breaks the n-th connection the same way, as far as
//! its bytes come in the same pieces. Whoever uses it prints the seed.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

/// There is an outage at the end of each of these.
const PERIOD: Duration = Duration::from_secs(2);

/// The time until then.
const CALM: Duration = Duration::from_millis(1_500);

/// A proxy that serves until it is dropped.
pub(crate) struct Faults {
    address: SocketAddr,
    injected: Arc<AtomicUsize>,
    _accepting: AbortOnDropHandle<()>,
}

impl Faults {
    /// Stands before `upstream`.
    pub(crate) async fn before(upstream: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let injected = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&injected);
        let accepting = tokio::spawn(async move {
            let mut random = Random(seed);
            let began = Instant::now();
            loop {
                let (client, _) = listener.accept().await.expect("a listening socket accepts");
                if began.elapsed().as_millis() % PERIOD.as_millis() > CALM.as_millis() {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let _ = client.set_zero_linger();
                    continue;
                }
                let faults = [(); 3].map(|()| Dice {
                    random: Random(random.next()),
                    injected: Arc::clone(&counted),
                });
                tokio::spawn(serve(client, upstream, faults));
            }
        });
        Self {
            address,
            injected,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How much was broken so far.
    pub(crate) fn injected(&self) -> usize {
        self.injected.load(Ordering::Relaxed)
    }
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Closed,
    Reset,
}

async fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    [mut at_first, forth, back]: [Dice; 3],
) {
    if at_first.falls(80) {
        let _ = client.set_zero_linger();
        return;
    }
    let Ok(mut upstream) = TcpStream::connect(upstream).await else {
        return;
    };
    let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
    let end = {
        let ((from_client, to_client), (from_upstream, to_upstream)) =
            (client.split(), upstream.split());
        tokio::select! {
            end = pass(from_client, to_upstream, forth) => end,
            end = pass(from_upstream, to_client, back) => end,
        }
    };
    if end == End::Reset {
        let _ = (client.set_zero_linger(), upstream.set_zero_linger());
    }
}

/// Passes on what comes, until it ends or is broken.
async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut dice: Dice,
) -> End {
    let mut piece = vec![0; 16 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut piece).await else {
            return End::Closed;
        };
        let cut = dice.falls(15);
        let passed = if cut { dice.below(count) } else { count };
        if dice.falls(20) {
            sleep(Duration::from_millis(dice.below(40) as u64)).await;
        } else if dice.falls(4) {
            sleep(Duration::from_millis(dice.below(2_000) as u64)).await;
        }
        if to.write_all(&piece[..passed]).await.is_err() {
            return End::Closed;
        }
        if cut {
            return if dice.falls(500) {
                End::Reset
            } else {
                End::Closed
            };
        }
    }
}

/// What decides over one direction of one connection.
struct Dice {
    random: Random,
    injected: Arc<AtomicUsize>,
}

impl Dice {
    /// True for so many of a thousand.
    fn falls(&mut self, of_thousand: usize) -> bool {
        let falls = self.below(1_000) < of_thousand;
        self.injected
            .fetch_add(usize::from(falls), Ordering::Relaxed);
        falls
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.random.next() >> 33).unwrap_or_default() % limit
    }
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
