//! Writes of which nobody knows whether they took idempotency: the run is asked. Tool outputs are
//! sent once more only if it still waits for them.

use std::time::Duration;

use crate::{
    call::Call,
    faults::{QUICK, RUN},
    support::{
        gateway::spawn_retrying_gateway,
        upstream::{Answer, Upstream},
    },
};

const UNKNOWN: &str = "Unknown OUTCOME_UNKNOWN";

/// What the upstream says, request by request.
type Answers = &'static [fn() -> Answer];

type Metadata = &'static [(&'static str, &'static str)];

fn script(upstream: &Upstream, answers: Answers) {
    for answer in answers {
        upstream.push(answer());
    }
}

fn waiting(call: &str) -> Answer {
    let required = format!(
        r#"{{"type":"submit_tool_outputs","submit_tool_outputs":{{"tool_calls":[{{"id":"{call}","type":"function"}}]}}}}"#
    );
    Answer::json(
        200,
        format!(
            r#"{{"id":"run_1","object":"thread.run","status":"requires_action","required_action":{required}}}"#
        ),
    )
}

fn still() -> Answer {
    waiting("call_1")
}

fn next_round() -> Answer {
    waiting("call_2")
}

fn lost() -> Answer {
    Answer::cut_before_answer()
}

fn run() -> Answer {
    Answer::json(200, RUN)
}

fn status(status: u16) -> Answer {
    Answer::json(status, r#"{"error":{"message":"no"}}"#)
}

fn conflict() -> Answer {
    Answer::json(
        400,
        r#"{"error":{"message":"Runs in status \"completed\" do not accept tool outputs."}}"#,
    )
}

fn not_cancellable() -> Answer {
    Answer::json(
        400,
        r#"{"error":{"message":"Cannot cancel run with status 'cancelling'."}}"#,
    )
}

fn in_status(status: &str) -> Answer {
    Answer::json(
        200,
        format!(r#"{{"id":"run_1","object":"thread.run","status":"{status}"}}"#),
    )
}

fn cancelling() -> Answer {
    in_status("cancelling")
}

fn cancelled() -> Answer {
    in_status("cancelled")
}

#[tokio::test]
async fn a_submit_in_doubt_is_settled_by_reading_the_run() {
    let s = "POST";
    let g = "GET";
    #[rustfmt::skip]
    let rows: [(&str, Answers, &str, &[&str]); 17] = [
        ("arrives", &[run], "Ok", &[s]),
        ("arrived, the answer was lost", &[lost, run], "Ok", &[s, g]),
        ("arrived, and the run waits for others", &[lost, next_round], "Ok", &[s, g]),
        ("did not arrive", &[lost, still, run], "Ok", &[s, g, s]),
        ("did not arrive, as a gateway between says", &[|| status(502), still, run], "Ok", &[s, g, s]),
        ("did not arrive in time", &[|| status(504), still, run], "Ok", &[s, g, s]),
        ("failed after it was taken", &[|| status(500), run], "Ok", &[s, g]),
        ("was lost twice, and arrived the second time", &[lost, still, lost, run], "Ok", &[s, g, s, g]),
        ("was lost twice", &[lost, still, lost, still], UNKNOWN, &[s, g, s, g]),
        ("arrived late", &[lost, still, conflict, run], "Ok", &[s, g, s, g]),
        ("is in doubt, and then refused", &[lost, still, || status(422)], UNKNOWN, &[s, g, s]),
        ("is in doubt, and the run cannot be read", &[lost, || status(404)], UNKNOWN, &[s, g]),
        ("is in doubt, and the run can be read at the second attempt", &[lost, || status(503), run], "Ok", &[s, g, g]),
        ("is in doubt, not to be retried", &[|| status(503).header("x-should-retry", "false"), still], UNKNOWN, &[s, g]),
        ("was refused, then arrives", &[|| status(429), run], "Ok", &[s, s]),
        ("conflicts", &[conflict], "FailedPrecondition STATE_CONFLICT", &[s]),
        ("is wrong", &[|| status(400)], "InvalidArgument INVALID_REQUEST", &[s]),
    ];
    for (what, answers, ended, asked) in rows {
        let upstream = Upstream::start().await;
        let gateway = spawn_retrying_gateway(&upstream.url(), &QUICK).await;
        script(&upstream, answers);
        assert_eq!(
            Call::Submit.on(gateway.channel()).await.to_string(),
            ended,
            "a submit that {what}"
        );
        let requests = upstream.requests();
        let methods: Vec<_> = requests
            .iter()
            .map(|request| request.method.as_str())
            .collect();
        assert_eq!(methods, asked, "a submit that {what}");
        gateway.drain().await;
    }
}

#[tokio::test]
async fn without_time_or_leave_to_retry_a_submit_in_doubt_stays_so() {
    let cases: [(Metadata, Option<Duration>, Answers); 2] = [
        (&[("x-envoy-attempt-count", "2")], None, &[lost, still]),
        // The look itself would come too late.
        (
            &[],
            Some(Duration::from_secs(9)),
            &[|| status(503).header("retry-after", "10")],
        ),
    ];
    for (metadata, deadline, answers) in cases {
        let upstream = Upstream::start().await;
        let gateway = spawn_retrying_gateway(&upstream.url(), &QUICK).await;
        script(&upstream, answers);
        assert_eq!(
            Call::Submit
                .with(gateway.channel(), metadata, deadline)
                .await
                .to_string(),
            UNKNOWN
        );
        gateway.drain().await;
    }
}

#[tokio::test]
async fn a_cancellation_whose_repeat_is_refused_is_settled_by_reading_the_run() {
    const CONFLICT: &str = "FailedPrecondition STATE_CONFLICT";
    const REPEATED: Metadata = &[("grpc-previous-rpc-attempts", "1")];
    let (s, g) = ("POST", "GET");
    #[rustfmt::skip]
    let rows: [(&str, Metadata, Answers, &str, &[&str]); 7] = [
        ("took effect, the answer was lost", &[], &[lost, not_cancellable, cancelling], "Ok", &[s, s, g]),
        ("took effect at once, though it failed", &[], &[|| status(500), not_cancellable, cancelled], "Ok", &[s, s, g]),
        ("took effect, and whoever sent it did not learn of it", REPEATED, &[not_cancellable, cancelling], "Ok", &[s, g]),
        ("came too late", &[], &[lost, not_cancellable, run], CONFLICT, &[s, s, g]),
        ("is refused, and the run cannot be read", &[], &[lost, not_cancellable, || status(404)], CONFLICT, &[s, s, g]),
        ("is not the first", &[], &[not_cancellable], CONFLICT, &[s]),
        ("was lost and then is not allowed", &[], &[lost, || status(403)], "PermissionDenied PERMISSION_DENIED", &[s, s]),
    ];
    for (what, metadata, answers, ended, asked) in rows {
        let upstream = Upstream::start().await;
        let gateway = spawn_retrying_gateway(&upstream.url(), &QUICK).await;
        script(&upstream, answers);
        let told = Call::Cancel.with(gateway.channel(), metadata, None).await;
        assert_eq!(told.to_string(), ended, "a cancellation that {what}");
        let requests = upstream.requests();
        let methods: Vec<_> = requests
            .iter()
            .map(|request| request.method.as_str())
            .collect();
        assert_eq!(methods, asked, "a cancellation that {what}");
        gateway.drain().await;
    }
}
