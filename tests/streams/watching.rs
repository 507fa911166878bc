//! `WatchRun`: one poller for all who watch a run.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use http::HeaderMap;
use runs_gateway::{
    runs::{PollLimits, SharedResume, StreamLimits, StreamedEvent, Streams},
    telemetry::Telemetry,
    upstream::{
        AuthStyle, Caller, Client, HttpVersion, RENEWAL, RequestLimits, RetryLimits,
        Upstream as Target, UpstreamFiles,
    },
    v1::{Run, RunEvent, RunStatus, WatchRunRequest},
};
use tokio::{sync::Notify, time::Instant};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Streaming};

use crate::{
    script::{
        FAST, NEVER, cancel, error, hear, list, millis, name, next, polled, polled_any, resume,
        resume_after, run, run_of, soon, step, verdict, watch,
    },
    support::{
        gateway::{Gateway, spawn_gateway},
        upstream::{Answer, Upstream},
    },
};

async fn watched(
    gateway: &Gateway,
    request: impl tonic::IntoRequest<WatchRunRequest>,
) -> Streaming<RunEvent> {
    soon(gateway.runs().watch_run(request))
        .await
        .expect("a stream")
        .into_inner()
}

/// A request for a run's changes, by somebody.
fn by(credential: &str, run_id: &str) -> Request<WatchRunRequest> {
    let mut request = Request::new(WatchRunRequest {
        run_id: run_id.into(),
        ..watch()
    });
    request.metadata_mut().insert(
        "authorization",
        format!("Bearer {credential}").parse().expect("a value"),
    );
    request
}

/// Streams without a gateway around them, so that a test knows when a watcher has joined.
async fn streams(upstream: &Upstream, poll: PollLimits) -> Streams {
    let target = Target {
        base: upstream.url().parse().expect("a URL"),
        auth: AuthStyle::Bearer,
        key: None,
        key_command: None,
        headers: HeaderMap::new(),
        connect_timeout: Duration::from_secs(5),
        answer_timeout: Duration::from_secs(60),
        max_answer_bytes: 1 << 20,
        max_event_bytes: 1 << 20,
        http: HttpVersion::Negotiated,
        ping_interval: None,
        ping_timeout: Duration::from_secs(10),
        requests: RequestLimits::default(),
        kept_connections: 16,
        retry: RetryLimits::default(),
        files: UpstreamFiles::default(),
        reload_interval: Duration::from_secs(5),
        renewal: RENEWAL,
    };
    let client = Client::new(&target, &Telemetry::default())
        .await
        .expect("a client");
    Streams::new(
        client,
        StreamLimits {
            poll,
            ..StreamLimits::default()
        },
    )
    .expect("a log in memory")
}

fn never() -> PollLimits {
    let hour = Duration::from_secs(3600);
    PollLimits {
        floor: hour,
        ceiling: hour,
        ..PollLimits::default()
    }
}

/// Goes on with a future as far as it comes without waiting.
async fn pending(mut future: Pin<&mut impl Future>) {
    let poll = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await;
    assert!(poll, "it should have had to wait");
}

#[tokio::test]
async fn a_watcher_sees_the_first_state_and_each_change_to_the_terminal_one() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    for status in [
        "queued",
        "queued",
        "in_progress",
        "pondering",
        "pondering",
        "requires_action",
        "in_progress",
        "completed",
    ] {
        upstream.push(polled(status));
    }
    let heard = hear(watched(&gateway, watch()).await).await;
    // What the contract does not know is no end.
    let expected = [
        "run.queued*",
        "run.in_progress*",
        "other*",
        "run.requires_action*",
        "run.in_progress*",
        "run.completed*",
    ];
    assert_eq!(heard.names(), expected);
    assert_eq!(heard.status.code(), Code::Ok);
    assert!(run_of(&heard.events[2]).extra_json.contains("pondering"));
    let route = |request: &crate::support::upstream::Recorded| {
        format!("{} {}", request.method, request.target)
    };
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| route(request) == "GET /threads/thread_1/runs/run_1")
    );
    gateway.drain().await;
}

#[tokio::test]
async fn steps_are_watched_only_if_asked_for_on_all_pages_and_once_more_at_the_end() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let page = |steps: &[String], last: &str| {
        let page = list(steps).replace(
            r#""has_more":false"#,
            &format!(r#""has_more":true,"last_id":"{last}""#),
        );
        Answer::json(200, page)
    };
    let [first, second] = ["step_1", "step_2"].map(|id| move |status: &str| step(id, status, ""));
    upstream.push(polled("in_progress"));
    upstream.push(Answer::json(200, list(&[first("in_progress")])));
    upstream.push(polled("in_progress"));
    upstream.push(page(&[first("completed")], "step_1"));
    upstream.push(Answer::json(200, list(&[second("in_progress")])));
    upstream.push(polled("completed"));
    // One that does not say where its page ends.
    upstream.push(page(&[first("completed")], ""));
    upstream.push(Answer::json(200, list(&[second("completed")])));

    let heard = hear(
        watched(
            &gateway,
            WatchRunRequest {
                include_steps: true,
                ..watch()
            },
        )
        .await,
    )
    .await;
    let expected = [
        "step.in_progress*",
        "run.in_progress*",
        "step.completed*",
        "step.in_progress*",
        "step.completed*",
        "run.completed*",
    ];
    assert_eq!(
        (heard.names(), heard.status.code()),
        (expected.map(String::from).to_vec(), Code::Ok)
    );
    let lists = upstream
        .requests()
        .into_iter()
        .map(|request| request.target)
        .filter(|target| target.contains("/steps"));
    let list = "/threads/thread_1/runs/run_1/steps?limit=100&order=asc";
    let after = format!("{list}&after=step_1");
    assert_eq!(
        lists.collect::<Vec<_>>(),
        [list, list, &after, list, &after]
    );
    gateway.drain().await;
}

#[tokio::test]
async fn who_watches_the_run_alone_neither_sees_steps_that_another_asked_for_nor_waits_for_them() {
    #[derive(Clone, Copy)]
    struct Now(&'static str, u16);
    let now = Arc::new(Mutex::new(Now("in_progress", 200)));
    let state = Arc::clone(&now);
    let upstream = Upstream::answering(move |request| {
        let Now(status, steps) = *state.lock().expect("no panic");
        match (request.target.contains("/steps"), steps) {
            (false, _) => polled(status),
            (true, 200) => Answer::json(200, list(&[step("step_1", status, "")])),
            (true, refused) => Answer::json(refused, error("server_error")),
        }
    })
    .await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let mut with_steps = watched(
        &gateway,
        WatchRunRequest {
            include_steps: true,
            ..watch()
        },
    )
    .await;
    assert_eq!(name(&next(&mut with_steps).await), "step.in_progress*");
    assert_eq!(name(&next(&mut with_steps).await), "run.in_progress*");
    let mut alone = watched(&gateway, watch()).await;
    assert_eq!(name(&next(&mut alone).await), "run.in_progress*");

    *now.lock().expect("no panic") = Now("completed", 503);
    let heard = hear(alone).await;
    assert_eq!(
        (heard.names(), heard.status.code()),
        (vec!["run.completed*".to_owned()], Code::Ok)
    );

    *now.lock().expect("no panic") = Now("completed", 200);
    let heard = hear(with_steps).await;
    let rest = ["step.completed*", "run.completed*"]
        .map(String::from)
        .to_vec();
    assert_eq!((heard.names(), heard.status.code()), (rest, Code::Ok));
    gateway.drain().await;
}

#[tokio::test]
async fn a_thousand_watchers_of_a_run_cost_two_fetches_and_one_poller() {
    let upstream = Upstream::start().await;
    let streams = streams(&upstream, never()).await;
    let (caller, request) = (Caller::default(), watch());
    let open = || {
        Box::pin(streams.watch_run(
            &caller,
            &request,
            SharedResume::default(),
            std::future::pending(),
        ))
    };
    let held = Arc::new(Notify::new());
    upstream.push(
        Answer::json(200, run("queued"))
            .step(crate::support::upstream::Step::Wait(Arc::clone(&held)))
            .chunked(),
    );
    upstream.push(polled("in_progress"));

    // Half of them before the first fetch begins, half while it is under way.
    let mut early: Vec<_> = (0..500).map(|_| open()).collect();
    for watcher in &mut early {
        pending(watcher.as_mut()).await;
    }
    upstream.wait_for_requests(1).await;
    let mut late: Vec<_> = (0..500).map(|_| open()).collect();
    for watcher in &mut late {
        pending(watcher.as_mut()).await;
    }
    held.notify_one();

    let mut watching = Vec::new();
    for watcher in early.into_iter().chain(late) {
        let mut events = soon(watcher).await.expect("a run");
        let first = soon(events.events.next())
            .await
            .expect("a state")
            .expect("no error");
        watching.push((events, streamed(&first)));
    }
    assert_eq!(upstream.requests().len(), 2);
    // Who joined while the first fetch was under way did not get what it gave: it may be older than
    // what they did before.
    assert!(
        watching[500..]
            .iter()
            .all(|(_, first)| first == "run.in_progress*")
    );

    // A change is one fetch, and all see it.
    upstream.push(polled("completed"));
    streams.touched("thread_1", "run_1");
    for (events, _) in &mut watching {
        let mut last = String::new();
        while let Some(event) = soon(events.events.next()).await {
            last = streamed(&event.expect("no error"));
        }
        assert_eq!(last, "run.completed*");
    }
    assert_eq!(upstream.requests().len(), 3);
}

#[tokio::test]
async fn the_last_watcher_to_leave_stops_the_poller_and_the_next_to_come_starts_anew() {
    let hold = Arc::new(AtomicBool::new(false));
    let silent = Arc::clone(&hold);
    let answer = move |_: &_| {
        if silent.load(Ordering::Relaxed) {
            Answer::never()
        } else {
            polled("in_progress")
        }
    };
    let upstream = Upstream::answering(answer).await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    for _ in 0..3 {
        let mut watchers = [
            watched(&gateway, watch()).await,
            watched(&gateway, watch()).await,
        ];
        for watcher in &mut watchers {
            assert_eq!(name(&next(watcher).await), "run.in_progress*");
        }
        let [first, last] = watchers;
        drop(first);
        upstream
            .wait_for_requests(upstream.requests().len() + 5)
            .await;
        hold.store(true, Ordering::Relaxed);
        let asked = upstream.requests().len();
        let connection = upstream.wait_for_requests(asked + 1).await[asked].connection;
        drop(last);
        assert!(upstream.closed(connection).await.by_client);
        assert_eq!(upstream.requests().len(), asked + 1);
        hold.store(false, Ordering::Relaxed);
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_write_through_the_gateway_is_seen_at_once() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &NEVER).await;
    upstream.push(polled("in_progress"));
    let mut stream = watched(&gateway, watch()).await;
    assert_eq!(name(&next(&mut stream).await), "run.in_progress*");
    upstream.push(polled("cancelling"));
    upstream.push(polled("cancelled"));
    soon(gateway.runs().cancel_run(cancel()))
        .await
        .expect("a run");
    assert_eq!(hear(stream).await.names(), ["run.cancelled*"]);
    gateway.drain().await;
}

#[tokio::test]
async fn callers_of_one_credential_share_a_poller_and_others_do_not() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &NEVER).await;
    let mut streams = Vec::new();
    for (credential, trace) in [("a", "1"), ("b", "2"), ("a", "3")] {
        let mut request = by(credential, "run_1");
        request
            .metadata_mut()
            .insert("traceparent", trace.parse().expect("a value"));
        upstream.push(polled("in_progress"));
        let mut stream = watched(&gateway, request).await;
        next(&mut stream).await;
        streams.push(stream);
    }
    // One fetch for each poller.
    upstream.push(polled("cancelling"));
    upstream.push(polled("cancelled"));
    upstream.push(polled("cancelled"));
    soon(gateway.runs().cancel_run(cancel()))
        .await
        .expect("a run");
    for stream in streams {
        assert_eq!(hear(stream).await.names(), ["run.cancelled*"]);
    }
    let polls = upstream
        .requests()
        .into_iter()
        .filter(|request| request.method == "GET");
    let mut credentials: Vec<_> = polls
        .map(|poll| {
            poll.header("authorization")
                .expect("a credential")
                .to_owned()
        })
        .collect();
    credentials[3..].sort();
    assert_eq!(
        credentials,
        ["Bearer a", "Bearer b", "Bearer a", "Bearer a", "Bearer b"]
    );
    gateway.drain().await;
}

#[tokio::test]
async fn the_upstreams_wish_for_the_next_poll_is_met_within_bounds() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(
        &upstream.url(),
        &["--poll-floor", "100ms", "--poll-ceiling", "400ms"],
    )
    .await;
    let wishes = [("200", 200), ("1", 100), ("3600000", 400), ("200", 200)];
    for (wish, _) in wishes {
        upstream.push(polled("in_progress").header("openai-poll-after-ms", wish));
    }
    upstream.push(polled("completed"));
    hear(watched(&gateway, watch()).await).await;
    let requests = upstream.requests();
    for (pair, (wish, least)) in requests.windows(2).zip(wishes) {
        let pause = pair[1].at - pair[0].at;
        println!("asked for {wish} ms, paused {pause:?}");
        assert!(pause >= millis(least));
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_429_slows_all_pollers_of_its_credential_and_no_others() {
    let (slow, over) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (slowed, ended) = (Arc::clone(&slow), Arc::clone(&over));
    let upstream = Upstream::answering(move |request| {
        if request.target.ends_with("run_a") && slowed.swap(false, Ordering::Relaxed) {
            return Answer::json(429, error("rate_limit_exceeded"))
                .header("retry-after-ms", "1000");
        }
        let over = ended.load(Ordering::Relaxed);
        polled_any(request, if over { "completed" } else { "in_progress" })
    })
    .await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let mut streams = Vec::new();
    for (credential, run_id) in [("1", "run_a"), ("1", "run_b"), ("2", "run_c")] {
        let mut stream = watched(&gateway, by(credential, run_id)).await;
        next(&mut stream).await;
        streams.push(stream);
    }
    slow.store(true, Ordering::Relaxed);
    // Two of the slowed credential may have been under way, so of many requests that follow the
    // most are the other's.
    while slow.load(Ordering::Relaxed) {
        upstream
            .wait_for_requests(upstream.requests().len() + 1)
            .await;
    }
    upstream
        .wait_for_requests(upstream.requests().len() + 20)
        .await;
    over.store(true, Ordering::Relaxed);
    for stream in streams {
        assert_eq!(hear(stream).await.names(), ["run.completed*"]);
    }

    let requests = upstream.requests();
    let last = |run_id: &str| {
        requests
            .iter()
            .rfind(|request| request.target.ends_with(run_id))
            .expect("a poll")
            .at
    };
    let of = |run_id: &'static str| {
        requests
            .iter()
            .filter(move |request| request.target.ends_with(run_id))
    };
    // The last of run_a came after its answer of 429, which the one before it got.
    let limited = of("run_a")
        .rev()
        .nth(1)
        .expect("a poll that was refused")
        .at;
    assert!(last("run_a") - limited >= millis(1000));
    assert!(last("run_b") - limited >= millis(1000));
    let between = |run_id| {
        of(run_id)
            .filter(|request| request.at > limited && request.at - limited < millis(1000))
            .count()
    };
    println!(
        "in the second after the 429: {} polls of the same credential, {} of another",
        between("run_b"),
        between("run_c")
    );
    assert!(between("run_b") <= 1);
    assert!(between("run_c") >= 3);
    gateway.drain().await;
}

#[tokio::test]
async fn what_cannot_pass_ends_the_watch_and_what_can_is_borne_for_a_time() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let refusals = [
        (404, Code::NotFound, "NOT_FOUND"),
        (401, Code::Unauthenticated, "INVALID_API_KEY"),
        (403, Code::PermissionDenied, "PERMISSION_DENIED"),
    ];
    for (status, code, reason) in refusals {
        // At the start it is an answer; later the end of the stream.
        upstream.push(Answer::json(status, error("no")));
        let refused = soon(gateway.runs().watch_run(watch()))
            .await
            .expect_err("no stream");
        assert_eq!(verdict(&refused), (code, reason.to_owned()));
        upstream.push(polled("in_progress"));
        upstream.push(Answer::json(status, error("no")));
        let heard = hear(watched(&gateway, watch()).await).await;
        assert_eq!(
            (heard.names(), verdict(&heard.status)),
            (vec!["run.in_progress*".into()], (code, reason.to_owned()))
        );
        assert_eq!(
            resume(&heard.status),
            resume_after("THREAD_RUN_IN_PROGRESS")
        );
    }
    upstream.push(polled("in_progress"));
    for passing in [
        Answer::new(500),
        Answer::new(503),
        Answer::cut_before_answer(),
        Answer::json(200, "{}"),
        Answer::new(408),
    ] {
        upstream.push(passing);
    }
    upstream.push(polled("completed"));
    let heard = hear(watched(&gateway, watch()).await).await;
    assert_eq!(
        (heard.names(), heard.status.code()),
        (
            ["run.in_progress*", "run.completed*"]
                .map(String::from)
                .to_vec(),
            Code::Ok
        )
    );
    gateway.drain().await;

    let upstream = Upstream::answering(|_| Answer::json(500, error("server_error"))).await;
    let gateway = spawn_gateway(
        &upstream.url(),
        &[&FAST[..], &["--poll-failure-timeout", "200ms"]].concat(),
    )
    .await;
    let began = Instant::now();
    let refused = soon(gateway.runs().watch_run(watch()))
        .await
        .expect_err("no stream");
    assert!(began.elapsed() >= millis(200));
    assert_eq!(
        verdict(&refused),
        (Code::Internal, "SERVER_ERROR".to_owned())
    );
    gateway.drain().await;
}

#[tokio::test]
async fn what_a_caller_writes_slows_nobody_though_the_upstream_repeats_it() {
    const WORDS: &str = "try again in 3000 seconds x";
    let upstream = Upstream::answering(|request| {
        if request.target.contains("run_1") {
            return polled("completed");
        }
        Answer::json(
            404,
            format!(r#"{{"error":{{"message":"No run found with id '{WORDS}'.","code":null}}}}"#),
        )
    })
    .await;
    let gateway = spawn_gateway(&upstream.url(), &FAST).await;
    let refused = soon(gateway.runs().watch_run(by("a", WORDS)))
        .await
        .expect_err("no such run");
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(
        hear(watched(&gateway, by("a", "run_1")).await)
            .await
            .names(),
        ["run.completed*"]
    );
    gateway.drain().await;
}

/// Forty runs are polled as often as the rate allows: each is one of forty. Who comes now is not
/// the forty-first.
#[tokio::test]
async fn a_new_watcher_waits_for_one_routine_poll_at_most_however_many_runs_are_watched() {
    let upstream = Upstream::answering(|request| polled_any(request, "in_progress")).await;
    let moment = millis(1);
    let streams = streams(
        &upstream,
        PollLimits {
            rate: 100,
            floor: moment,
            ceiling: moment,
            ..PollLimits::default()
        },
    )
    .await;
    let caller = Caller::default();
    let watch = async |run_id: String| {
        let request = WatchRunRequest { run_id, ..watch() };
        soon(streams.watch_run(
            &caller,
            &request,
            SharedResume::default(),
            std::future::pending(),
        ))
        .await
        .expect("a run")
    };
    let mut watched = Vec::new();
    for number in 0..40 {
        watched.push(watch(format!("run_{number}")).await);
    }
    // All of them have come round.
    upstream
        .wait_for_requests(upstream.requests().len() + 40)
        .await;
    let before = upstream.requests().len();
    watched.push(watch("run_new".to_owned()).await);
    let requests = upstream.requests();
    let waited = requests[before..]
        .iter()
        .take_while(|request| !request.target.ends_with("run_new"))
        .count();
    // One holds the slot, one waits for it, and one may have been sent and not yet seen.
    assert!(waited <= 3, "{waited}");
}

#[tokio::test]
async fn a_slow_watcher_may_miss_states_but_not_the_last() {
    let upstream = Upstream::start().await;
    let streams = streams(
        &upstream,
        PollLimits {
            floor: millis(2),
            ceiling: millis(5),
            ..PollLimits::default()
        },
    )
    .await;
    upstream.push(polled("queued"));
    let mut slow = soon(streams.watch_run(
        &Caller::default(),
        &watch(),
        SharedResume::default(),
        std::future::pending(),
    ))
    .await
    .expect("a run");
    assert_eq!(
        streamed(
            &soon(slow.events.next())
                .await
                .expect("an event")
                .expect("no error")
        ),
        "run.queued*"
    );
    for status in ["in_progress", "requires_action", "in_progress", "completed"] {
        upstream.push(polled(status));
    }
    let mut quick = soon(streams.watch_run(
        &Caller::default(),
        &watch(),
        SharedResume::default(),
        std::future::pending(),
    ))
    .await
    .expect("a run");
    while let Some(event) = soon(quick.events.next()).await {
        event.expect("no error");
    }
    let last = soon(slow.events.next())
        .await
        .expect("an event")
        .expect("no error");
    let status = last.run().map(Run::status);
    assert_eq!(status, Some(RunStatus::Completed));
    assert!(soon(slow.events.next()).await.is_none());
}

#[tokio::test]
async fn only_so_many_runs_are_polled_and_who_leaves_before_its_turn_takes_none() {
    let upstream = Upstream::answering(|request| polled_any(request, "in_progress")).await;
    let streams = streams(
        &upstream,
        PollLimits {
            rate: 2,
            // One caller alone gets 30 of them.
            runs: 44,
            ..never()
        },
    )
    .await;
    let caller = Caller::default();
    let of = |number: usize| WatchRunRequest {
        run_id: format!("run_{number}"),
        ..watch()
    };
    let requests: Vec<_> = (0..32).map(of).collect();
    let first = soon(streams.watch_run(
        &caller,
        &requests[0],
        SharedResume::default(),
        std::future::pending(),
    ))
    .await
    .expect("a run");

    let began = Instant::now();
    {
        let mut others: Vec<_> = requests[1..30]
            .iter()
            .map(|request| {
                Box::pin(streams.watch_run(
                    &caller,
                    request,
                    SharedResume::default(),
                    std::future::pending(),
                ))
            })
            .collect();
        for watcher in &mut others {
            pending(watcher.as_mut()).await;
        }
        let refused = streams
            .watch_run(
                &caller,
                &requests[30],
                SharedResume::default(),
                std::future::pending(),
            )
            .await;
        assert_eq!(
            verdict(&refused.err().expect("no place").status()),
            (Code::Unavailable, "GATEWAY_OVERLOADED".to_owned())
        );
        // A run that is polled already takes no more places.
        let mut joined = pin!(streams.watch_run(
            &caller,
            &requests[1],
            SharedResume::default(),
            std::future::pending()
        ));
        pending(joined.as_mut()).await;
        tokio::task::yield_now().await;
    }
    drop(
        soon(streams.watch_run(
            &caller,
            &requests[31],
            SharedResume::default(),
            std::future::pending(),
        ))
        .await
        .expect("a run"),
    );
    // Two a second: 29 turns more would have been 15 seconds.
    assert!(began.elapsed() < millis(5000), "{:?}", began.elapsed());
    assert!(began.elapsed() >= millis(400), "{:?}", began.elapsed());
    drop(first);
}

/// The name of an event that was not sent.
fn streamed(event: &StreamedEvent) -> String {
    name(event.message().expect("it was not recorded"))
}
