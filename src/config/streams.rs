//! The flags of the limits of streams. What each means, and why its default is right for most,
//! stands with [`StreamLimits`], [`CreateLimits`] and [`PollLimits`].

use clap::Args;
use humantime::Duration;

use super::{Invalid, event_log::EventLogArgs};
use crate::runs::{CreateLimits, PollLimits, StreamLimits};

/// The flags. A duration is written `500ms`, `30s`, `10m`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Streams")]
pub(super) struct StreamArgs {
    /// Live event streams of the upstream at a time; one more is refused.
    #[arg(long, default_value_t = StreamLimits::default().live)]
    max_live_streams: usize,

    /// How long the upstream may be silent on a live stream before the gateway looks at the run
    /// itself.
    #[arg(long, default_value_t = StreamLimits::default().idle.into())]
    stream_idle_timeout: Duration,

    /// How long to wait for the upstream's `done` after a run's last event.
    #[arg(long, default_value_t = StreamLimits::default().linger.into())]
    done_timeout: Duration,

    /// How long `WaitRun` waits when nobody says how long.
    #[arg(long, default_value_t = StreamLimits::default().wait.into())]
    max_wait: Duration,

    /// How long the cancellation of a run whose caller left may take.
    #[arg(long, default_value_t = StreamLimits::default().cancel_timeout.into())]
    cancel_timeout: Duration,

    /// The most tool outputs that are held for a conversation, in bytes.
    #[arg(long, default_value_t = StreamLimits::default().held_output_bytes)]
    max_held_output_bytes: usize,

    /// The shortest time between two polls of a run.
    #[arg(long, default_value_t = PollLimits::default().floor.into())]
    poll_floor: Duration,

    /// The longest time between two polls of a run.
    #[arg(long, default_value_t = PollLimits::default().ceiling.into())]
    poll_ceiling: Duration,

    /// Polls a second, of all runs together.
    #[arg(long, default_value_t = PollLimits::default().rate, value_parser = clap::value_parser!(u32).range(1..))]
    poll_rate: u32,

    /// Runs polled at a time; one more is refused.
    #[arg(long, default_value_t = PollLimits::default().runs)]
    max_polled_runs: usize,

    /// How long polls may fail before watches end.
    #[arg(long, default_value_t = PollLimits::default().patience.into())]
    poll_failure_timeout: Duration,

    /// The most that the steps of one polled run may take, in bytes.
    #[arg(long, default_value_t = PollLimits::default().step_bytes)]
    max_polled_step_bytes: usize,

    /// Creates that wait for the active run of one thread (`on_active_run`); one more is refused.
    #[arg(long, default_value_t = CreateLimits::default().active_run_queue)]
    active_run_queue: usize,

    /// How long a create waits for an active run that requires action.
    #[arg(long, default_value_t = CreateLimits::default().action_wait.into())]
    active_run_action_wait: Duration,

    /// How long a create with a `request_id` whose answer was lost is looked for.
    #[arg(long, default_value_t = CreateLimits::default().look.into())]
    request_id_look: Duration,

    /// Creates with a `request_id` that a replica remembers, for ten minutes; the oldest are forgotten.
    #[arg(long, default_value_t = CreateLimits::default().request_ids)]
    max_request_ids: usize,

    #[command(flatten)]
    event_log: EventLogArgs,
}

impl TryFrom<StreamArgs> for StreamLimits {
    type Error = Invalid;

    fn try_from(args: StreamArgs) -> Result<Self, Invalid> {
        Ok(Self {
            live: args.max_live_streams,
            idle: *args.stream_idle_timeout,
            linger: *args.done_timeout,
            wait: *args.max_wait,
            cancel_timeout: *args.cancel_timeout,
            held_output_bytes: args.max_held_output_bytes,
            poll: PollLimits {
                floor: *args.poll_floor,
                ceiling: (*args.poll_ceiling).max(*args.poll_floor),
                rate: args.poll_rate,
                runs: args.max_polled_runs,
                step_bytes: args.max_polled_step_bytes,
                patience: *args.poll_failure_timeout,
            },
            creates: CreateLimits {
                active_run_queue: args.active_run_queue,
                action_wait: *args.active_run_action_wait,
                look: *args.request_id_look,
                request_ids: args.max_request_ids,
            },
            store: args.event_log.store()?,
            log: args.event_log.limits(),
        })
    }
}
