//! One call: its deadline, its end, its log line.

use std::time::Duration;

use runs_gateway::server::{CallContext, Limits, Termination};
use tokio::time::{Instant, timeout};
use tonic::{Code, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::{Client, Gateway, code, data, log, millis, soon, status};

#[tokio::test]
async fn a_call_without_an_answer_at_its_deadline_is_answered_deadline_exceeded_and_its_handler_dropped()
 {
    let mut gateway = Gateway::start(Limits::default()).await;
    let mut client = gateway.client().await;

    let pending = client
        .call("/test.Script/Unary", &[("grpc-timeout", "100m")])
        .await
        .unwrap();
    let mut call = gateway.call().await;

    assert_eq!(pending.code_in_head().await, Code::DeadlineExceeded);
    soon(call.answer.closed()).await;
}

#[tokio::test]
async fn a_stream_still_open_at_its_deadline_ends_with_deadline_exceeded_in_its_trailers() {
    let mut gateway = Gateway::start(Limits::default()).await;
    let mut client = gateway.client().await;

    let pending = client
        .call("/test.Script/Stream", &[("grpc-timeout", "500m")])
        .await
        .unwrap();
    let events = gateway.call().await.stream();
    events.send(data("one")).await.unwrap();
    let mut answer = pending.head().await.unwrap();

    assert_eq!(answer.data().await.unwrap(), "one");
    assert_eq!(code(&answer.trailers().await), Code::DeadlineExceeded);
    soon(events.closed()).await;
}

#[tokio::test]
async fn a_handler_with_always_more_to_say_is_cut_at_the_deadline_too() {
    let mut gateway = Gateway::start(Limits::default()).await;
    let mut client = gateway.client().await;

    let pending = client
        .call("/test.Script/Stream", &[("grpc-timeout", "200m")])
        .await
        .unwrap();
    let events = gateway.call().await.stream();
    let says = tokio::spawn(async move { while events.send(data("more")).await.is_ok() {} });

    assert_eq!(
        code(&pending.head().await.unwrap().trailers().await),
        Code::DeadlineExceeded
    );
    soon(says).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_reads_nothing_does_not_keep_a_handler_beyond_the_deadline() {
    let mut gateway = Gateway::start(Limits::default()).await;
    let mut client = Client::connect(
        gateway.address,
        h2::client::Builder::new().initial_window_size(0),
    )
    .await;

    let pending = client
        .call("/test.Script/Stream", &[("grpc-timeout", "500m")])
        .await
        .unwrap();
    let events = gateway.call().await.stream();
    events.send(data("never read")).await.unwrap();
    let _unread = pending.head().await.unwrap();

    soon(events.closed()).await;
}

#[tokio::test]
async fn a_handler_is_told_the_deadline_instead_of_the_header_and_never_one_beyond_the_longest() {
    let longest = Duration::from_secs(60);
    let mut gateway = Gateway::start(Limits {
        deadline: longest,
        ..Limits::default()
    })
    .await;
    let mut client = gateway.client().await;

    for (header, expected) in [
        ("5S", Some(Duration::from_secs(5))),
        ("99999999H", Some(longest)),
        ("", None),
    ] {
        let headers = [("grpc-timeout", header)];
        let before = Instant::now();
        let pending = client
            .call(
                "/test.Script/Unary",
                if header.is_empty() { &[] } else { &headers },
            )
            .await
            .unwrap();
        let call = gateway.call().await;
        let after = Instant::now();

        assert!(!call.request.headers().contains_key("grpc-timeout"));
        let told = call
            .request
            .extensions()
            .get::<CallContext>()
            .unwrap()
            .deadline;
        match expected {
            None => assert_eq!(told, None),
            Some(time) => assert!(
                (before + time..=after + time).contains(&told.unwrap()),
                "{header}"
            ),
        }
        call.answer(status(Code::Ok));
        assert_eq!(pending.code_in_head().await, Code::Ok);
    }
}

#[tokio::test]
async fn a_call_with_a_malformed_timeout_reaches_no_handler() {
    let gateway = Gateway::start(Limits::default()).await;
    let mut client = gateway.client().await;

    for header in ["soon", "1", "123456789S", "-1S"] {
        let pending = client
            .call("/test.Script/Unary", &[("grpc-timeout", header)])
            .await
            .unwrap();
        assert_eq!(
            pending.code_in_head().await,
            Code::InvalidArgument,
            "{header}"
        );
    }
    assert!(!gateway.has_calls());
}

#[tokio::test]
async fn a_call_whose_deadline_has_passed_already_reaches_no_handler() {
    let gateway = Gateway::start(Limits::default()).await;
    let mut client = gateway.client().await;
    for _ in 0..20 {
        let pending = client
            .call("/test.Script/Unary", &[("grpc-timeout", "0n")])
            .await
            .unwrap();
        assert_eq!(pending.code_in_head().await, Code::DeadlineExceeded);
    }
    assert!(!gateway.has_calls());
}

#[tokio::test]
async fn a_method_that_is_not_there_is_unimplemented() {
    let gateway = Gateway::start(Limits::default()).await;
    let mut client = gateway.client().await;
    for path in [
        "/runsgateway.v1.RunService/NoSuchMethod",
        "/no.such.Service/Method",
        "/",
        "/grpc.health.v1.Health/No",
    ] {
        let pending = client.call(path, &[]).await.unwrap();
        assert_eq!(pending.code_in_head().await, Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_answer_or_within_it_makes_the_handler_be_dropped() {
    let mut gateway = Gateway::start(Limits::default()).await;
    let mut client = gateway.client().await;

    let pending = client.call("/test.Script/Unary", &[]).await.unwrap();
    let mut call = gateway.call().await;
    drop(pending);
    soon(call.answer.closed()).await;

    let pending = client.call("/test.Script/Stream", &[]).await.unwrap();
    let events = gateway.call().await.stream();
    drop(pending.head().await.unwrap());
    soon(events.closed()).await;
}

#[tokio::test]
async fn a_handler_that_panics_is_an_internal_error_of_its_call_alone() {
    let mut gateway = Gateway::start(Limits::default()).await;
    let mut client = gateway.client().await;

    let other = client.call("/test.Script/Unary", &[]).await.unwrap();
    let waiting = gateway.call().await;
    let pending = client.call("/test.Script/Panic", &[]).await.unwrap();
    gateway.call().await.answer(status(Code::Ok));

    assert_eq!(pending.code_in_head().await, Code::Internal);
    waiting.answer(status(Code::Ok));
    assert_eq!(other.code_in_head().await, Code::Ok);
}

#[tokio::test]
async fn a_handler_may_say_what_its_call_answers_when_it_is_cut() {
    let mut gateway = Gateway::start(Limits::default()).await;
    let pending = gateway
        .client()
        .await
        .call("/test.Script/Unary", &[("grpc-timeout", "100m")])
        .await
        .unwrap();

    let call = gateway.call().await;
    let termination_status = &call
        .request
        .extensions()
        .get::<CallContext>()
        .unwrap()
        .termination_status;
    termination_status.set(|cut| Status::unknown(format!("sent, and then: {cut:?}")));

    let answer = pending.head().await.unwrap();
    assert_eq!(code(&answer.head), Code::Unknown);
    assert_eq!(
        answer.head["grpc-message"],
        format!("sent,%20and%20then:%20{:?}", Termination::Deadline)
    );
}

#[tokio::test]
async fn one_call_too_many_on_all_connections_is_refused_at_once_and_health_and_reflection_still_answer()
 {
    let mut gateway = Gateway::start(Limits {
        // One of them is kept for another caller.
        calls: 3,
        ..Limits::default()
    })
    .await;
    let (mut one, mut other) = (gateway.client().await, gateway.client().await);
    let unary = one.call("/test.Script/Unary", &[]).await.unwrap();
    let waits = gateway.call().await;
    let stream = one.call("/test.Script/Stream", &[]).await.unwrap();
    let events = gateway.call().await.stream();
    let answer = stream.head().await.unwrap();

    for client in [&mut one, &mut other] {
        let refused = client
            .call("/test.Script/Unary", &[])
            .await
            .unwrap()
            .head()
            .await
            .unwrap();
        assert_eq!(code(&refused.head), Code::Unavailable);
        assert_eq!(refused.head["grpc-retry-pushback-ms"], "1000");
    }
    assert!(!gateway.has_calls());
    let check = HealthClient::new(gateway.channel().await)
        .check(HealthCheckRequest::default())
        .await
        .unwrap();
    assert_eq!(check.into_inner().status(), ServingStatus::Serving);
    let reflection = other
        .call(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(
        code(&reflection.head().await.unwrap().trailers().await),
        Code::Ok
    );

    // An end gives a place back, and so does leaving.
    waits.answer(status(Code::Ok));
    assert_eq!(unary.code_in_head().await, Code::Ok);
    let pending = other.call("/test.Script/Unary", &[]).await.unwrap();
    let waits = gateway.call().await;
    drop(answer);
    soon(events.closed()).await;
    let last = other.call("/test.Script/Unary", &[]).await.unwrap();
    gateway.call().await.answer(status(Code::Ok));
    assert_eq!(last.code_in_head().await, Code::Ok);
    drop((pending, waits));
}

#[tokio::test]
async fn streams_of_health_and_reflection_are_as_many_as_connections_and_a_check_always_answers() {
    let gateway = Gateway::start(Limits {
        connections: 4,
        ..Limits::default()
    })
    .await;
    let mut health = HealthClient::new(gateway.channel().await);
    let mut watches = Vec::new();
    // One address alone does not take them all.
    for _ in 0..3 {
        watches.push(health.watch(HealthCheckRequest::default()).await.unwrap());
    }
    // One more is served, and the oldest gives way.
    watches.push(health.watch(HealthCheckRequest::default()).await.unwrap());
    let mut watches: Vec<_> = watches.into_iter().map(Response::into_inner).collect();
    for watch in &mut watches {
        let first = soon(watch.message()).await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
    }
    let gave_way = soon(watches[0].message()).await.unwrap_err();
    assert_eq!(gave_way.code(), Code::Unavailable);
    assert!(
        timeout(millis(100), watches[1].message()).await.is_err(),
        "others go on"
    );
    let check = health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(check.into_inner().status(), ServingStatus::Serving);

    // Leaving gives the place back, once the server has seen it.
    drop(watches);
    soon(async { while health.watch(HealthCheckRequest::default()).await.is_err() {} }).await;
}

#[tokio::test]
async fn a_call_of_age_ends_as_unavailable_read_or_unread_and_so_does_a_watch_of_health() {
    let mut gateway = Gateway::start(Limits {
        call_age: Some(millis(400)),
        ..Limits::default()
    })
    .await;
    let mut health = HealthClient::new(gateway.channel().await);
    let mut watched = health
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        soon(watched.message()).await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    let began = Instant::now();
    let mut client = gateway.client().await;
    let stream = client.call("/test.Script/Stream", &[]).await.unwrap();
    let call = gateway.call().await;
    call.request
        .extensions()
        .get::<CallContext>()
        .unwrap()
        .termination_status
        .set(|cut| Status::unavailable(format!("{cut:?}")));
    let events = call.stream();
    events.send(data("one")).await.unwrap();
    let mut answer = stream.head().await.unwrap();
    assert_eq!(answer.data().await.unwrap(), "one");

    let mut deaf = Client::connect(
        gateway.address,
        h2::client::Builder::new().initial_window_size(0),
    )
    .await;
    let pending = deaf.call("/test.Script/Stream", &[]).await.unwrap();
    let unread = gateway.call().await.stream();
    unread.send(data("never read")).await.unwrap();
    let _unread = pending.head().await.unwrap();
    // A deadline before the age is what cuts.
    let pending = client
        .call("/test.Script/Unary", &[("grpc-timeout", "100m")])
        .await
        .unwrap();
    let _waits = gateway.call().await;
    assert_eq!(pending.code_in_head().await, Code::DeadlineExceeded);

    let trailers = answer.trailers().await;
    assert_eq!(
        (code(&trailers), &trailers["grpc-message"]),
        (Code::Unavailable, &"Closing".parse().unwrap())
    );
    assert!(began.elapsed() >= millis(360), "{:?}", began.elapsed());
    soon(events.closed()).await;
    soon(unread.closed()).await;
    let aged = soon(watched.message()).await.unwrap_err();
    assert_eq!(aged.code(), Code::Unavailable);
}

#[tokio::test]
async fn an_answer_that_nobody_reads_gives_its_place_back_at_its_deadline() {
    let mut gateway = Gateway::start(Limits {
        calls: 1,
        ..Limits::default()
    })
    .await;
    let mut deaf = Client::connect(
        gateway.address,
        h2::client::Builder::new().initial_window_size(0),
    )
    .await;
    let deadline = [("grpc-timeout", "200m")];
    let pending = deaf.call("/test.Script/Unary", &deadline).await.unwrap();
    let unread = gateway.call().await.stream();
    let large = http_body::Frame::data(vec![b'x'; 100_000].into());
    unread.send(large).await.unwrap();
    let _unread = pending.head().await.unwrap();
    soon(unread.closed()).await;
    // There is one place, and it is free.
    let mut client = gateway.client().await;
    let pending = client.call("/test.Script/Unary", &[]).await.unwrap();
    soon(gateway.call()).await.answer(status(Code::Ok));
    assert_eq!(pending.code_in_head().await, Code::Ok);
}

#[tokio::test]
async fn each_call_is_one_log_line_with_its_method_and_code_and_leaving_is_cancelled() {
    let mut gateway = Gateway::start(Limits {
        drain_delay: millis(0),
        ..Limits::default()
    })
    .await;
    let mut client = gateway.client().await;

    let pending = client.call("/test.Script/Answered", &[]).await.unwrap();
    gateway.call().await.answer(status(Code::NotFound));
    pending.head().await.unwrap();

    let pending = client.call("/test.Script/Streamed", &[]).await.unwrap();
    let events = gateway.call().await.stream();
    events
        .send(http_body::Frame::trailers(
            status(Code::Ok).into_parts().0.headers,
        ))
        .await
        .unwrap();
    pending.head().await.unwrap().trailers().await;

    let pending = client.call("/test.Script/LeftBefore", &[]).await.unwrap();
    let mut call = gateway.call().await;
    drop(pending);
    soon(call.answer.closed()).await;

    let pending = client.call("/test.Script/LeftWithin", &[]).await.unwrap();
    let events = gateway.call().await.stream();
    drop(pending.head().await.unwrap());
    soon(events.closed()).await;

    gateway.shutdown.cancel();
    soon(gateway.served).await.unwrap();
    let lines = log().lines();
    let of_method = |method| {
        lines
            .iter()
            .filter(move |line| line["fields"]["rpc.method"] == format!("test.Script/{method}"))
    };
    let methods = ["Answered", "LeftBefore", "LeftWithin", "Streamed"];
    let ended: Vec<_> = methods
        .into_iter()
        .flat_map(of_method)
        .map(summary)
        .collect();
    assert_eq!(
        ended,
        [
            "INFO test.Script/Answered NOT_FOUND",
            "INFO test.Script/LeftBefore CANCELLED",
            "INFO test.Script/LeftWithin CANCELLED",
            "INFO test.Script/Streamed OK",
        ]
    );
}

fn summary(line: &serde_json::Value) -> String {
    assert_eq!(line["fields"]["message"], "call ended");
    assert!(line["fields"]["duration_ms"].as_f64().unwrap() > 0.0);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let fields = &line["fields"];
    [&line["level"], &fields["rpc.method"], &fields["code"]]
        .map(text)
        .join(" ")
}

#[tokio::test]
async fn what_is_not_grpc_is_refused_before_its_handler() {
    let mut gateway = Gateway::start(Limits::default()).await;
    let mut client = gateway.client().await;
    let request = |content_type: Option<&str>| {
        let request = http::Request::post("http://gateway/test.Script/Unary");
        content_type
            .into_iter()
            .fold(request, |request, it| request.header("content-type", it))
            .body(())
            .unwrap()
    };
    for other in [
        None,
        Some("text/plain"),
        Some("application/json"),
        Some("application/grpcx"),
        Some("application/grpc-web"),
    ] {
        let answer = client
            .send(request(other))
            .await
            .unwrap()
            .head()
            .await
            .unwrap();
        assert_eq!(
            (answer.status.as_u16(), code(&answer.head)),
            (415, Code::InvalidArgument),
            "{other:?}"
        );
    }
    assert!(!gateway.has_calls());
    for grpc in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc;charset=utf-8",
    ] {
        let pending = client.send(request(Some(grpc))).await.unwrap();
        gateway.call().await.answer(status(Code::Ok));
        assert_eq!(pending.code_in_head().await, Code::Ok, "{grpc}");
    }
}

#[tokio::test]
async fn a_call_takes_its_place_with_its_message_for_which_there_is_a_time() {
    let mut gateway = Gateway::start(Limits {
        calls: 2,
        message: millis(500),
        ..Limits::default()
    })
    .await;
    let mut client = gateway.client().await;
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(client.begin("/test.Script/Unary").await);
    }
    let pending = client.call("/test.Script/Unary", &[]).await.unwrap();
    gateway.call().await.answer(status(Code::Ok));
    assert_eq!(pending.code_in_head().await, Code::Ok);
    for (pending, _body) in waiting {
        assert_eq!(pending.code_in_head().await, Code::DeadlineExceeded);
    }
    assert!(!gateway.has_calls());
}

#[tokio::test]
async fn a_call_whose_message_has_not_come_gives_way() {
    let mut gateway = Gateway::start(Limits {
        // Four calls of a stream's size, of which one caller may have three.
        held_bytes: (4 * 48) << 10,
        ..Limits::default()
    })
    .await;
    let mut client = gateway.client().await;
    let (first, _body) = client.begin("/test.Script/Unary").await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let pending = client.call("/test.Script/Unary", &[]).await.unwrap();
        open.push((pending, gateway.call().await));
    }
    assert_eq!(first.code_in_head().await, Code::Unavailable);
    let refused = client.call("/test.Script/Unary", &[]).await.unwrap();
    assert_eq!(refused.code_in_head().await, Code::Unavailable);
}
