//! What breaks upstream. Given where a stream is cut, or how a submit fails, the conversation goes
//! on by what the run itself says; the outputs of a round are submitted once, and once more only if
//! the run still asks for the same calls.

use serde_json::{Value, json};
use tonic::Code;

use crate::{
    harness::{
        Caller, DONE, Script, asks, assert_resumable, completes, error_info, outputs, refusal, run,
        state, within,
    },
    support::{
        gateway::{spawn_gateway, spawn_retrying_gateway},
        upstream::Answer,
    },
};

const FAST: &[&str] = &[
    "--poll-floor",
    "10ms",
    "--poll-ceiling",
    "20ms",
    "--done-timeout",
    "50ms",
    "--stream-idle-timeout",
    "200ms",
    "--answer-timeout",
    "300ms",
    "--poll-failure-timeout",
    "300ms",
];

const ONE_RETRY: [&str; 4] = ["--max-retries", "1", "--retry-pause", "1ms"];

fn delta(text: &str) -> String {
    let content = json!([{ "index": 0, "type": "text", "text": { "value": text } }]);
    let data =
        json!({ "id": "msg_1", "object": "thread.message.delta", "delta": { "content": content } });
    format!("event: thread.message.delta\ndata: {data}\n\n")
}

fn step(id: &str, status: &str) -> Value {
    json!({ "id": id, "object": "thread.run.step", "run_id": "run_1", "thread_id": "thread_1", "status": status, "type": "tool_calls" })
}

fn step_event(id: &str, status: &str) -> String {
    format!(
        "event: thread.run.step.{status}\ndata: {}\n\n",
        step(id, status)
    )
}

/// How a stream ends where it should not.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Reset,
    Closed,
    Silent,
}

impl Cut {
    fn after(self, said: &[String]) -> Answer {
        let answer = Answer::sse(said.to_vec());
        match self {
            // A reset may take what was not read yet with it: the last thing said may be lost, too.
            Self::Reset => answer.cut(),
            Self::Closed => answer.close(),
            Self::Silent => answer.wait(&std::sync::Arc::default()),
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_in_any_phase_does_not_end_the_conversation() {
    let (queued, works) = (state("queued", &[]), state("in_progress", &[]));
    let (asks_a, asks_b) = (
        state("requires_action", &["a"]),
        state("requires_action", &["b"]),
    );
    let (waits_a, waits_b) = (
        run("requires_action", &["a"]),
        run("requires_action", &["b"]),
    );
    // What each of the three answers says; the one that lacks `done` is cut.
    let whole = |said: &[&String]| -> Vec<String> {
        said.iter()
            .map(|it| (*it).clone())
            .chain([DONE.to_owned()])
            .collect()
    };
    let first = whole(&[&queued, &works, &asks_a]);
    let second = whole(&[&works, &asks_b]);
    let third = whole(&[&works, &state("completed", &[])]);
    let phases: Vec<(&str, usize, Vec<String>)> = vec![
        ("after created", 0, vec![queued.clone()]),
        (
            "mid-deltas",
            0,
            vec![queued.clone(), works.clone(), delta("Hel"), delta("lo")],
        ),
        (
            "inside of an event",
            0,
            vec![
                queued.clone(),
                "event: thread.run.in_progress\ndata: {\"id\"".to_owned(),
            ],
        ),
        (
            "after requires_action before done",
            0,
            vec![queued.clone(), asks_a.clone()],
        ),
        ("right after the submit's head", 1, vec![]),
        ("mid second round", 1, vec![works.clone(), delta("Hel")]),
        (
            "at the second requires_action",
            1,
            vec![works.clone(), asks_b.clone()],
        ),
        ("right after the last submit's head", 2, vec![]),
        ("before the last state", 2, vec![works.clone()]),
        (
            "after the last state",
            2,
            vec![works.clone(), state("completed", &[])],
        ),
    ];
    for (phase, at, said) in phases {
        for cut in [Cut::Reset, Cut::Closed, Cut::Silent] {
            let answer = |number: usize, whole: &[String]| {
                if number == at {
                    cut.after(&said)
                } else {
                    Answer::sse(whole.to_vec())
                }
            };
            let script = Script::new([
                (answer(0, &first), waits_a.clone()),
                (answer(1, &second), waits_b.clone()),
                (answer(2, &third), run("completed", &[])),
            ])
            .await;
            let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
            let started = Caller::say_first(&gateway, [crate::harness::start(None)]).await;
            let Ok(mut caller) = started else {
                // A reset may overtake all that was said, the head too.
                assert!(matches!(cut, Cut::Reset) && at == 0, "{phase}, {cut:?}");
                continue;
            };
            caller.say(outputs(&[("a", "1")]));
            let mut asked = Vec::new();
            let last = loop {
                let event = match caller.next().await {
                    Ok(Some(event)) => event,
                    Ok(None) => break asked.pop(),
                    Err(status) => panic!("{phase}, {cut:?}: {status:?}"),
                };
                let event = crate::harness::name(&event);
                if event.ends_with("run_requires_action") {
                    asked.push(event.clone());
                    if asked.len() == 2 {
                        caller.say(outputs(&[("b", "2")]));
                    }
                }
                if event.ends_with("run_completed") {
                    asked.push(event);
                }
            };
            assert!(
                last.is_some_and(|last| last.ends_with("run_completed")),
                "{phase}, {cut:?}"
            );
            assert_eq!(
                asked.len(),
                2,
                "{phase}, {cut:?}: each round is asked for once: {asked:?}"
            );
            assert_eq!(script.submits().len(), 2, "{phase}, {cut:?}");
            gateway.drain().await;
            script.finish();
        }
    }
}

#[tokio::test]
async fn before_the_run_has_a_name_a_cut_has_an_unknown_outcome() {
    let thread =
        "event: thread.created\ndata: {\"id\":\"thread_1\",\"object\":\"thread\"}\n\n".to_owned();
    for (what, said) in [("nothing said", vec![]), ("the thread alone", vec![thread])] {
        let script = Script::new([(Cut::Closed.after(&said), run("queued", &[]))]).await;
        let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
        let (_, end) = Caller::start(&gateway).await.rest().await;
        let status = end.expect_err(what);
        assert_eq!(
            (status.code(), error_info(&status).0.as_str()),
            (Code::Unknown, "OUTCOME_UNKNOWN"),
            "{what}"
        );
        assert_eq!(
            status
                .metadata()
                .get("grpc-retry-pushback-ms")
                .expect("a pushback"),
            "-1",
            "{what}"
        );
        gateway.drain().await;
        script.finish();
    }
}

#[tokio::test]
async fn after_a_cut_nothing_is_told_twice_and_what_was_missed_is_named_once() {
    let said = [
        state("queued", &[]),
        step_event("step_1", "completed"),
        state("requires_action", &["a"]),
        DONE.to_owned(),
    ];
    let script = Script::new([
        (Answer::sse(said), run("requires_action", &["a"])),
        (
            Cut::Closed.after(&[state("in_progress", &[])]),
            run("in_progress", &[]),
        ),
        (Cut::Closed.after(&[]), run("completed", &[])),
    ])
    .await;
    script.show_steps([step("step_1", "completed"), step("step_2", "in_progress")]);
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let mut caller = Caller::start(&gateway).await;
    caller.until("run_requires_action").await;
    caller.say(outputs(&[("a", "1")]));
    // What polling shows: the first step and the run's status were told by the stream.
    for expected in ["run_in_progress", "~run_step_in_progress"] {
        assert_eq!(
            crate::harness::name(&caller.next().await.expect("no error").expect("no end")),
            expected
        );
    }
    script.show_steps([
        step("step_1", "completed"),
        step("step_2", "completed"),
        step("step_3", "completed"),
    ]);
    script.show(run("requires_action", &["b"]));
    caller.until("~gap").await;
    caller.until("~run_requires_action").await;
    caller.say(outputs(&[("b", "2")]));
    let (events, end) = caller.rest().await;
    assert!(
        end.is_ok() && events == ["~run_completed"],
        "the gap was named before: {events:?}, {end:?}"
    );
    gateway.drain().await;
    script.finish();
}

type Failure = fn() -> Answer;

#[tokio::test]
async fn a_submit_of_unknown_outcome_is_decided_by_the_run() {
    let failures: [(&str, Failure); 6] = [
        ("a reset after the request", Answer::cut_before_answer),
        ("502", || refusal(502, "Bad gateway")),
        ("503", || refusal(503, "Busy")),
        ("500", || refusal(500, "Oops")),
        ("no answer in time", Answer::never),
        ("an answer that is none", || Answer::new(200)),
    ];
    let ids = |script: &Script| -> Vec<Value> {
        script
            .submits()
            .iter()
            .map(|body| body["tool_outputs"][0]["tool_call_id"].clone())
            .collect()
    };
    let waits = || run("requires_action", &["a"]);
    for (failure, fails) in failures {
        // The run went on: what it asks for next is another round.
        let script = Script::new([
            (asks(&["a"]), waits()),
            (fails(), run("requires_action", &["b"])),
            (completes(), run("completed", &[])),
        ])
        .await;
        let gateway =
            spawn_retrying_gateway(&script.upstream.url(), &[FAST, &ONE_RETRY].concat()).await;
        let mut caller = Caller::start(&gateway).await;
        caller.say(outputs(&[("a", "1")]));
        caller.until("~run_requires_action").await;
        assert_eq!(ids(&script), ["a"], "{failure}, the run went on");
        caller.say(outputs(&[("b", "2")]));
        let (_, end) = caller.rest().await;
        assert!(end.is_ok(), "{failure}, the run went on: {end:?}");
        assert_eq!(ids(&script), ["a", "b"], "{failure}, the run went on");
        gateway.drain().await;
        script.finish();

        // The run still asks for the same call. The caller is not asked once more: it would run its
        // tool twice.
        let script = Script::new([
            (asks(&["a"]), waits()),
            (fails(), waits()),
            (completes(), run("completed", &[])),
        ])
        .await;
        let gateway =
            spawn_retrying_gateway(&script.upstream.url(), &[FAST, &ONE_RETRY].concat()).await;
        let mut caller = Caller::start(&gateway).await;
        caller.say(outputs(&[("a", "1")]));
        let (events, end) = caller.rest().await;
        assert!(end.is_ok(), "{failure}, the run still asks: {end:?}");
        assert_eq!(
            events[3..],
            ["run_in_progress", "run_completed", "done"],
            "{failure}"
        );
        assert_eq!(ids(&script), ["a", "a"], "{failure}, the run still asks");
        gateway.drain().await;
        script.finish();

        // And that fails, too. There is no third time.
        let script = Script::new([
            (asks(&["a"]), waits()),
            (fails(), waits()),
            (fails(), waits()),
        ])
        .await;
        let gateway =
            spawn_retrying_gateway(&script.upstream.url(), &[FAST, &ONE_RETRY].concat()).await;
        let mut caller = Caller::start(&gateway).await;
        caller.say(outputs(&[("a", "1")]));
        let (_, end) = caller.rest().await;
        let status = end.expect_err(failure);
        assert_resumable(&status, "THREAD_RUN_REQUIRES_ACTION");
        assert_eq!(script.submits().len(), 2, "{failure}");
        gateway.drain().await;
        script.finish();
    }
}

/// As for a unary submit: the upstream is asked no sooner than it wished and not again if it or a
/// flag says so, and a conflict is the first attempt's late arrival.
#[tokio::test]
async fn a_submit_in_doubt_is_sent_again_by_the_rules_of_a_unary_one() {
    let waits = || run("requires_action", &["a"]);
    let completed = || run("completed", &[]);
    let late = || {
        refusal(
            400,
            "Runs in status \"in_progress\" do not accept tool outputs.",
        )
    };
    let once = [
        (
            "429 and a time",
            refusal(429, "Slow down").header("retry-after", "120"),
            &ONE_RETRY[..],
            "RATE_LIMIT_EXCEEDED",
        ),
        (
            "503 and a time",
            refusal(503, "Busy").header("retry-after", "120"),
            &ONE_RETRY,
            "OUTCOME_UNKNOWN",
        ),
        (
            "not to be retried",
            refusal(503, "Busy").header("x-should-retry", "false"),
            &ONE_RETRY,
            "OUTCOME_UNKNOWN",
        ),
        (
            "retries are off",
            refusal(503, "Busy"),
            &["--max-retries", "0"],
            "OUTCOME_UNKNOWN",
        ),
    ];
    for (what, fails, flags, reason) in once {
        let script = Script::new([(asks(&["a"]), waits()), (fails, waits())]).await;
        let gateway = spawn_retrying_gateway(&script.upstream.url(), &[FAST, flags].concat()).await;
        let mut caller = Caller::start(&gateway).await;
        caller.say(outputs(&[("a", "1")]));
        let (_, end) = within("no wait for what is asked too late", caller.rest()).await;
        let status = end.expect_err(what);
        assert_eq!(error_info(&status).0, reason, "{what}");
        assert_resumable(&status, "THREAD_RUN_REQUIRES_ACTION");
        assert_eq!(script.submits().len(), 1, "{what}");
        gateway.drain().await;
        script.finish();
    }

    let script = Script::new([
        (asks(&["a"]), waits()),
        (Answer::cut_before_answer(), waits()),
        (late(), completed()),
    ])
    .await;
    let gateway =
        spawn_retrying_gateway(&script.upstream.url(), &[FAST, &ONE_RETRY].concat()).await;
    let mut caller = Caller::start(&gateway).await;
    caller.say(outputs(&[("a", "1")]));
    let (events, end) = caller.rest().await;
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(events.last().map(String::as_str), Some("~run_completed"));
    assert_eq!(script.submits().len(), 2);
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn a_run_that_takes_its_outputs_and_asks_for_them_again_gets_no_third_submit() {
    let script = Script::new([
        (asks(&["a"]), run("requires_action", &["a"])),
        (Cut::Closed.after(&[]), run("requires_action", &["a"])),
        (Cut::Closed.after(&[]), run("requires_action", &["a"])),
    ])
    .await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let mut caller = Caller::start(&gateway).await;
    caller.say(outputs(&[("a", "1")]));
    let (_, end) = caller.rest().await;
    let status = end.expect_err("no third submit");
    assert_eq!(
        (status.code(), error_info(&status).0.as_str()),
        (Code::Internal, "UNUSABLE_ANSWER")
    );
    assert_resumable(&status, "THREAD_RUN_REQUIRES_ACTION");
    gateway.drain().await;
    script.finish();
}

#[tokio::test]
async fn an_upstream_that_is_gone_for_good_ends_the_conversation_with_how_to_resume() {
    let script = Script::new([(
        Cut::Closed.after(&[state("queued", &[])]),
        json!("not a run"),
    )])
    .await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let (events, end) = within(
        "the poller's patience",
        Caller::start(&gateway).await.rest(),
    )
    .await;
    let status = end.expect_err("nothing to go on by");
    assert_eq!(events, ["run_queued"]);
    assert_resumable(&status, "THREAD_RUN_QUEUED");
    assert_eq!(
        status.message().matches("resume by").count(),
        1,
        "{status:?}"
    );
    gateway.drain().await;
    script.finish();

    let error =
        "event: error\ndata: {\"message\":\"The server had an error.\",\"type\":\"server_error\",\"code\":null}\n\n".to_owned();
    let script = Script::new([(
        Answer::sse([state("queued", &[]), error]),
        run("failed", &[]),
    )])
    .await;
    let gateway = spawn_gateway(&script.upstream.url(), FAST).await;
    let (_, end) = Caller::start(&gateway).await.rest().await;
    let status = end.expect_err("the upstream's own error");
    assert_eq!(
        (status.code(), &*error_info(&status).1["upstream_type"]),
        (Code::Internal, "server_error")
    );
    assert_resumable(&status, "THREAD_RUN_QUEUED");
    assert_eq!(
        status.message().matches("resume by").count(),
        1,
        "{status:?}"
    );
    gateway.drain().await;
    script.finish();
}
