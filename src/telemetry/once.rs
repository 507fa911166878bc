//! Log lines that peers can cause at will: one a second, with a count of what was not said.
//!
//! Must hold: however many connections fail, the log grows by a line a second at each place that
//! logs such failures.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// One place that logs.
#[derive(Debug, Default)]
pub struct OncePerSecond(Mutex<(Option<Instant>, u64)>);

impl OncePerSecond {
    /// If a line is due: how many were not said since the last one.
    pub fn due(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, suppressed) = &mut *state;
        let now = Instant::now();
        if last.is_some_and(|last| now - last < Duration::from_secs(1)) {
            *suppressed += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_a_second_says_how_many_were_not_said() {
        let lines = OncePerSecond::default();
        assert_eq!(lines.due(), Some(0));
        assert_eq!((lines.due(), lines.due()), (None, None));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(lines.due(), Some(2));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(lines.due(), Some(0));
    }
}
