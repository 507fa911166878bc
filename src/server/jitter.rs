//! Times that are not all the same.

use std::time::Duration;

/// `time` ±10%: connections that began together do not end together.
pub(super) fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.9 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_ten_percent_and_differs() {
        let times: Vec<_> = (0..100)
            .map(|_| jittered(Duration::from_secs(100)))
            .collect();
        assert!(
            times
                .iter()
                .all(|time| (90..=110).contains(&time.as_secs())),
            "{times:?}"
        );
        let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        assert!(
            most.saturating_sub(*least) > Duration::from_secs(10),
            "{times:?}"
        );
    }
}
