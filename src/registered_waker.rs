//! Whom a future will wake.
//!
//! A future that is pending wakes the task that polled it last. So a task that waits for several
//! things, and was woken by one of them, need not ask the others again: for every event of a stream
//! that would be two timers and a cancellation.
//!
//! Must hold: a task is registered only if the future really wakes it. One of tokio's that is polled
//! when the task's budget is spent wakes the task at once instead, and notes nothing.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::task::coop::has_budget_remaining;

/// The task that a future will wake when it is ready.
#[derive(Debug, Default)]
pub(crate) struct RegisteredWaker(Option<Waker>);

impl RegisteredWaker {
    /// Polls the future, always the same one.
    pub(crate) fn poll<F: Future + ?Sized>(
        &mut self,
        future: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let polled = future.poll(cx);
        self.0 = (polled.is_pending() && has_budget_remaining()).then(|| cx.waker().clone());
        polled
    }

    /// Whether it is this task, so that there is no need to poll.
    pub(crate) fn is(&self, cx: &Context<'_>) -> bool {
        self.0
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        pin::pin,
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use tokio::{
        task::{coop::poll_proceed, yield_now},
        time::sleep,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_future_is_polled_once_until_it_is_ready_and_wakes_its_task() {
        let polls = AtomicU32::new(0);
        let mut timer = pin!(async {
            let mut timer = pin!(sleep(Duration::from_secs(5)));
            poll_fn(|cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                timer.as_mut().poll(cx)
            })
            .await;
        });
        let mut others = pin!(sleep(Duration::from_secs(3)));
        let (mut registered, mut asked, mut other) = (RegisteredWaker::default(), 0, false);
        poll_fn(|cx| {
            asked += 1;
            other = other || others.as_mut().poll(cx).is_ready();
            // As its users do: whether it is due is known by other means.
            if registered.is(cx) && asked < 3 {
                Poll::Pending
            } else {
                registered.poll(timer.as_mut(), cx)
            }
        })
        .await;
        assert!(other);
        assert_eq!(
            (asked, polls.load(Ordering::Relaxed)),
            (3, 2),
            "it was woken by the other, and then by the one that it had not asked again"
        );
    }

    #[tokio::test]
    async fn a_task_without_budget_is_not_registered() {
        let mut timer = pin!(sleep(Duration::from_secs(60)));
        let mut registered = RegisteredWaker::default();
        poll_fn(|cx| {
            while let Poll::Ready(budget) = poll_proceed(cx) {
                budget.made_progress();
            }
            assert!(registered.poll(timer.as_mut(), cx).is_pending());
            assert!(!registered.is(cx));
            Poll::Ready(())
        })
        .await;
        // Polled anew, it has a budget again.
        yield_now().await;
        poll_fn(|cx| {
            assert!(registered.poll(timer.as_mut(), cx).is_pending());
            assert!(registered.is(cx));
            Poll::Ready(())
        })
        .await;
    }
}
