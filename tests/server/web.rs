//! Calls from pages in browsers: gRPC-Web, CORS, and the limits of HTTP/1.1.

use bytes::Bytes;
use http::{HeaderName, Request};
use http_body_util::BodyExt as _;
use runs_gateway::{
    reloadable::Reloadable,
    server::{Access, Limits, Tokens, Web},
};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    harness::{Gateway, data, millis, soon, status},
    page::{Page, code},
};

const APP: (&str, &str) = ("origin", "https://app.example");
const BINARY: (&str, &str) = ("content-type", "application/grpc-web+proto");
const TEXT: (&str, &str) = ("content-type", "application/grpc-web-text");
const STREAM: &str = "/test.Script/Stream";

fn web(origins: &[&str]) -> Option<Web> {
    let origins = origins
        .iter()
        .map(|origin| origin.parse().unwrap())
        .collect();
    Web::new(
        origins,
        &[HeaderName::from_static("idempotency-key")],
        &["x-request-id"],
    )
}

async fn gateway(limits: Limits) -> Gateway {
    Gateway::start_for(
        web(&["https://app.example", "http://localhost:5173"]),
        Access::default(),
        limits,
    )
    .await
}

#[tokio::test]
async fn a_page_gets_each_message_as_it_comes_and_the_trailers_as_last_frame() {
    let mut gateway = gateway(Limits::default()).await;
    let mut page = Page::open(gateway.address).await;
    // Two calls on one connection: as bytes, and as base64 with every frame encoded by itself.
    let calls = [
        (BINARY, "\0\0\0\0\x05asked", ["one", "two"]),
        (TEXT, "AAAAAAVhc2tlZA==", ["b25l", "dHdv"]),
    ];
    for (content_type, asked, [one, two]) in calls {
        page.call(
            STREAM,
            &[content_type, APP, ("x-grpc-web", "1")],
            asked.as_bytes(),
        )
        .await;
        let mut call = gateway.call().await;
        assert_eq!(call.request.headers()["content-type"], "application/grpc");
        assert_eq!(
            soon(call.request.body_mut().collect())
                .await
                .unwrap()
                .to_bytes(),
            "\0\0\0\0\x05asked"
        );
        let events = call.stream();

        let head = page.head().await;
        assert_eq!(head.status, 200);
        assert!(
            head.headers["content-type"]
                .to_str()
                .unwrap()
                .starts_with(content_type.1),
            "{head:?}"
        );
        assert_eq!(head.headers["access-control-allow-origin"], APP.1);
        assert_eq!(head.headers["vary"], "origin");
        // The second message is sent only when the first one has come.
        events.send(data("one")).await.unwrap();
        assert_eq!(page.chunk().await.unwrap(), one);
        events.send(data("two")).await.unwrap();
        assert_eq!(page.chunk().await.unwrap(), two);
        let trailers = Status::ok("").into_http::<()>().into_parts().0.headers;
        events
            .send(http_body::Frame::trailers(trailers))
            .await
            .unwrap();
        let last = page.chunk().await.unwrap();
        if content_type == BINARY {
            assert_eq!(code(&last), Code::Ok);
        } else {
            assert!(
                last.starts_with(b"gA"),
                "a frame of trailers in base64: {last:?}"
            );
        }
        assert_eq!(page.chunk().await, None);
    }
}

#[tokio::test]
async fn an_error_without_messages_is_in_the_head_with_its_details_and_may_be_read() {
    let mut gateway = gateway(Limits::default()).await;
    let mut page = Page::open(gateway.address).await;
    page.call("/test.Script/Unary", &[BINARY, APP], b"").await;
    let error = Status::with_details(Code::NotFound, "no run", Bytes::from_static(b"details"));
    gateway.call().await.answer(error.into_http());

    let head = page.head().await;
    assert_eq!(
        (&head.headers["grpc-status"], &head.headers["grpc-message"]),
        (&"5".parse().unwrap(), &"no%20run".parse().unwrap())
    );
    let shown = head.headers["access-control-expose-headers"]
        .to_str()
        .unwrap();
    for name in [
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
        "x-request-id",
    ] {
        assert!(
            shown.split(", ").any(|header| header == name),
            "{name}: {shown}"
        );
    }
    assert_eq!(head.headers["grpc-status-details-bin"], "ZGV0YWlscw");
}

#[tokio::test]
async fn a_stream_that_is_cut_says_why_in_its_last_frame() {
    // By its deadline, on a connection that goes on; by a drain, after which the connection is
    // closed.
    let limits = Limits {
        drain_delay: millis(0),
        drain_timeout: millis(200),
        ..Limits::default()
    };
    let mut gateway = gateway(limits).await;
    let mut page = Page::open(gateway.address).await;
    for (timeout, cut) in [("300m", Code::DeadlineExceeded), ("60S", Code::Unavailable)] {
        page.call(STREAM, &[BINARY, APP, ("grpc-timeout", timeout)], b"")
            .await;
        let events = gateway.call().await.stream();
        assert_eq!(page.head().await.status, 200);
        events.send(data("one")).await.unwrap();
        assert_eq!(page.chunk().await.unwrap(), "one");
        if cut == Code::Unavailable {
            gateway.shutdown.cancel();
        }
        assert_eq!(code(&page.chunk().await.unwrap()), cut);
        assert_eq!(page.chunk().await, None);
        soon(events.closed()).await;
    }
    assert_eq!(page.rest().await, b"");
    soon(gateway.served).await.unwrap();
}

#[tokio::test]
async fn a_page_that_leaves_ends_its_call() {
    let mut gateway = gateway(Limits::default()).await;
    // Behind a request that is read, and behind the beginning of the next one, which is not.
    for next in ["", "POST"] {
        let mut page = Page::open(gateway.address).await;
        page.call(STREAM, &[BINARY, APP], b"").await;
        let events = gateway.call().await.stream();
        page.write(next).await;
        page.head().await;
        drop(page);
        soon(events.closed()).await;
    }
}

#[tokio::test]
async fn a_stream_of_messages_needs_http2() {
    let gateway = gateway(Limits::default()).await;
    let mut page = Page::open(gateway.address).await;
    let path = "/runsgateway.v1.RunService/ConverseRun";
    page.call(path, &[BINARY, APP], b"").await;
    let headers = page.head().await.headers;
    assert_eq!(crate::harness::code(&headers), Code::Unimplemented);
    let said = headers["grpc-message"].to_str().unwrap();
    assert!(said.ends_with("HTTP/2"), "{said}");
}

#[tokio::test]
async fn a_page_that_reads_nothing_slows_its_call_and_does_not_hold_a_drain() {
    let limits = Limits {
        drain_delay: millis(0),
        drain_timeout: millis(200),
        ..Limits::default()
    };
    let mut gateway = gateway(limits).await;
    let mut page = Page::open(gateway.address).await;
    page.call(STREAM, &[BINARY, APP], b"").await;
    let events = gateway.call().await.stream();
    let megabyte = || http_body::Frame::data(Bytes::from(vec![0; 1 << 20]));
    // The sockets take some of it; then nothing goes on.
    while tokio::time::timeout(millis(500), events.send(megabyte()))
        .await
        .is_ok()
    {}
    gateway.shutdown.cancel();
    soon(gateway.served).await.unwrap();
    assert!(events.is_closed());
}

#[tokio::test]
async fn a_browser_that_asks_first_is_told_what_a_named_origin_may_send_and_others_are_told_nothing()
 {
    let preflight = |origin: &str| {
        format!(
            "OPTIONS {STREAM} HTTP/1.1\r\nhost: gateway\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n\
             access-control-request-headers: content-type,x-grpc-web\r\n\r\n"
        )
    };
    let gateway = gateway(Limits::default()).await;
    let mut page = Page::open(gateway.address).await;
    for origin in ["https://app.example", "http://localhost:5173"] {
        page.write(preflight(origin)).await;
        let head = page.head().await;
        assert_eq!(
            (head.status, &head.headers["access-control-allow-origin"]),
            (204, &origin.parse().unwrap())
        );
        assert_eq!(head.headers["access-control-allow-methods"], "POST");
        assert_eq!(head.headers["access-control-max-age"], "7200");
        let allowed = head.headers["access-control-allow-headers"]
            .to_str()
            .unwrap();
        for name in [
            "authorization",
            "content-type",
            "grpc-timeout",
            "idempotency-key",
            "x-grpc-web",
            "x-user-agent",
        ] {
            assert!(
                allowed.split(", ").any(|header| header == name),
                "{name}: {allowed}"
            );
        }
    }
    for origin in [
        "https://app.example:8443",
        "http://app.example",
        "https://evil.example",
        "https://app.example.evil",
        "null",
    ] {
        page.write(preflight(origin)).await;
        let head = page.head().await;
        assert_eq!((head.status, head.told()), (403, vec![]), "{origin}");
    }
    let any = Gateway::start_for(web(&["*"]), Access::default(), Limits::default()).await;
    let mut page = Page::open(any.address).await;
    page.write(preflight("https://evil.example")).await;
    assert_eq!(
        page.head().await.headers["access-control-allow-origin"],
        "https://evil.example"
    );
}

#[tokio::test]
async fn what_a_page_may_not_send_reaches_no_handler() {
    let mut gateway = gateway(Limits::default()).await;
    let mut page = Page::open(gateway.address).await;
    let evil = ("origin", "https://evil.example");
    let refused: [(&[(&str, &str)], u16); 5] = [
        // Its browser would not have asked if it took the gateway for the page's own server.
        (&[BINARY, evil], 403),
        (&[("content-type", "text/plain"), evil], 403),
        (&[("content-type", "text/plain"), APP], 415),
        (&[("content-type", "application/grpc"), APP], 415),
        (&[APP], 415),
    ];
    for (headers, status) in refused {
        page.call(STREAM, headers, b"").await;
        let head = page.head().await;
        assert_eq!(head.status, status, "{headers:?}");
        assert_eq!(head.told().is_empty(), status == 403, "{headers:?}");
    }
    // Who is no browser sends no origin, and is told nothing that only browsers ask for.
    page.call("/test.Script/Unary", &[BINARY], b"").await;
    assert!(!gateway.has_calls(), "only this one");
    gateway.call().await.answer(status(Code::Ok));
    let head = page.head().await;
    assert_eq!((head.status, head.told()), (200, vec![]));
}

#[tokio::test]
async fn a_page_is_admitted_by_its_token_like_any_caller_and_asks_first_without_it() {
    let secret = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let tokens = Reloadable::fixed(Tokens::parse(secret.as_bytes()).unwrap());
    let access = Access {
        tokens: Some(tokens),
        ..Access::default()
    };
    let gateway = Gateway::start_for(web(&[APP.1]), access, Limits::default()).await;
    let mut page = Page::open(gateway.address).await;
    let path = "/runsgateway.v1.RunService/GetRun";

    page.write(format!(
        "OPTIONS {path} HTTP/1.1\r\nhost: gateway\r\norigin: {}\r\naccess-control-request-method: POST\r\n\r\n",
        APP.1
    ))
    .await;
    assert_eq!(page.head().await.status, 204);
    // No such method is served here: it is looked for once the caller is admitted.
    for (token, code) in [
        ("Bearer secret", Code::Unimplemented),
        ("Bearer other", Code::Unauthenticated),
    ] {
        page.call(path, &[BINARY, APP, ("authorization", token)], &[0; 5])
            .await;
        assert_eq!(
            crate::harness::code(&page.head().await.headers),
            code,
            "{token}"
        );
    }
}

#[tokio::test]
async fn over_http2_pages_and_other_callers_share_a_connection() {
    let mut gateway = gateway(Limits::default()).await;
    let mut client = gateway.client().await;

    let plain = client
        .call(STREAM, &[("origin", "https://evil.example")])
        .await
        .unwrap();
    let events = gateway.call().await.stream();
    events.send(data("one")).await.unwrap();
    let mut answer = plain.head().await.unwrap();
    assert_eq!(answer.data().await.unwrap(), "one");
    events
        .send(http_body::Frame::trailers(
            status(Code::Ok).into_parts().0.headers,
        ))
        .await
        .unwrap();
    assert_eq!(crate::harness::code(&answer.trailers().await), Code::Ok);

    let request = || Request::post(format!("http://gateway{STREAM}")).header(APP.0, APP.1);
    let pending = client
        .send(request().header(BINARY.0, BINARY.1).body(()).unwrap())
        .await
        .unwrap();
    let events = gateway.call().await.stream();
    drop(events.send(data("one")).await);
    let mut answer = pending.head().await.unwrap();
    assert_eq!(answer.head["access-control-allow-origin"], APP.1);
    assert_eq!(answer.data().await.unwrap(), "one");
    events
        .send(http_body::Frame::trailers(
            status(Code::Aborted).into_parts().0.headers,
        ))
        .await
        .unwrap();
    assert_eq!(code(&answer.data().await.unwrap()), Code::Aborted);

    let pending = client
        .send(
            request()
                .header("content-type", "text/plain")
                .body(())
                .unwrap(),
        )
        .await
        .unwrap();
    assert_eq!(pending.head().await.unwrap().status, 415);
    assert!(!gateway.has_calls());
}

#[tokio::test]
async fn a_request_that_comes_too_slowly_or_is_too_long_is_not_waited_for() {
    let mut gateway = gateway(Limits {
        handshake: millis(300),
        ..Limits::default()
    })
    .await;
    let post = format!("POST {STREAM} HTTP/1.1\r\nhost: gateway\r\n");
    // Nothing, the start of a head, a head without its end; and then one of which a piece comes
    // every now and then.
    for start in ["", "P", &post] {
        let mut page = Page::open(gateway.address).await;
        page.write(start).await;
        assert_eq!(page.rest().await, b"", "{start:?}");
    }
    let mut page = Page::open(gateway.address).await;
    page.write(&post).await;
    let began = Instant::now();
    let (mut reads, mut writes) = tokio::io::split(page.into_inner());
    let drips = async {
        while tokio::io::AsyncWriteExt::write_all(&mut writes, b"a: b\r\n")
            .await
            .is_ok()
        {
            tokio::time::sleep(millis(50)).await;
        }
    };
    let closed = async { _ = tokio::io::AsyncReadExt::read(&mut reads, &mut [0; 64]).await };
    soon(async {
        tokio::select! { () = drips => {} () = closed => {} }
    })
    .await;
    assert!(began.elapsed() < millis(5000));

    // A second head, and a body that stops: the connection is closed after the answer.
    let mut page = Page::open(gateway.address).await;
    page.call("/test.Script/Unary", &[BINARY, APP], b"").await;
    gateway.call().await.answer(status(Code::Ok));
    assert_eq!(page.head().await.status, 200);
    assert_eq!(page.rest().await, b"");
    let mut page = Page::open(gateway.address).await;
    page.write(format!(
        "{post}content-type: {}\r\ncontent-length: 100\r\n\r\nhalf",
        BINARY.1
    ))
    .await;
    assert_eq!(
        crate::harness::code(&page.head().await.headers),
        Code::DeadlineExceeded
    );
    assert_eq!(page.rest().await, b"");

    let mut page = Page::open(gateway.address).await;
    page.call(STREAM, &[BINARY, APP, ("a", &"b".repeat(20 << 10))], b"")
        .await;
    assert_eq!(
        crate::harness::code(&page.head().await.headers),
        Code::ResourceExhausted
    );
    let mut page = Page::open(gateway.address).await;
    page.call(STREAM, &[BINARY, APP, ("a", &"b".repeat(100 << 10))], b"")
        .await;
    assert_eq!(page.head().await.status, 431);
    assert!(!gateway.has_calls());
}

#[tokio::test]
async fn base64_that_is_none_is_the_callers_mistake() {
    let gateway = gateway(Limits::default()).await;
    let mut page = Page::open(gateway.address).await;
    page.call(STREAM, &[TEXT, APP], b"!!!!").await;
    let head = page.head().await;
    assert_eq!(crate::harness::code(&head.headers), Code::InvalidArgument);
    assert!(!gateway.has_calls());
}

#[tokio::test]
async fn a_connection_of_age_or_of_a_draining_server_is_closed_after_the_answer_and_at_once_without_a_call()
 {
    let limits = Limits {
        age: Some(millis(500)),
        drain_delay: millis(0),
        ..Limits::default()
    };
    let aged = gateway(limits.clone()).await;
    let drained = gateway(Limits {
        age: None,
        ..limits
    })
    .await;
    for (mut gateway, drains) in [(aged, false), (drained, true)] {
        let mut idle = Page::open(gateway.address).await;
        idle.call("/test.Script/Unary", &[BINARY], b"").await;
        gateway.call().await.answer(status(Code::Ok));
        assert_eq!(idle.head().await.status, 200);
        let mut busy = Page::open(gateway.address).await;
        busy.call("/test.Script/Unary", &[BINARY], b"").await;
        let call = gateway.call().await;
        if drains {
            gateway.shutdown.cancel();
        }
        assert_eq!(idle.rest().await, b"");
        if !drains {
            // The busy one is younger.
            tokio::time::sleep(millis(700)).await;
        }
        call.answer(status(Code::Ok));
        let head = busy.head().await;
        assert_eq!(
            (head.status, &head.headers["connection"]),
            (200, &"close".parse().unwrap())
        );
        assert_eq!(busy.rest().await, b"");
    }
}

#[tokio::test]
async fn without_origins_a_browser_gets_no_answer() {
    assert!(web(&[]).is_none());
    let gateway = Gateway::start(Limits::default()).await;
    for request in [
        format!(
            "OPTIONS {STREAM} HTTP/1.1\r\nhost: gateway\r\norigin: {}\r\naccess-control-request-method: POST\r\n\r\n",
            APP.1
        ),
        format!(
            "POST {STREAM} HTTP/1.1\r\nhost: gateway\r\norigin: {}\r\ncontent-type: {}\r\ncontent-length: 0\r\n\r\n",
            APP.1, BINARY.1
        ),
    ] {
        let mut page = Page::open(gateway.address).await;
        page.write(request).await;
        assert_eq!(page.rest().await, b"");
    }
    assert!(!gateway.has_calls());
}
