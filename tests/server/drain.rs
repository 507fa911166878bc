//! The end of a server.

use runs_gateway::server::Limits;
use tokio::{net::TcpStream, time::Instant};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::{Gateway, code, data, millis, soon, status};

#[tokio::test]
async fn a_drain_is_announced_then_refuses_then_ends_what_is_left_as_unavailable() {
    let limits = Limits {
        drain_delay: millis(1500),
        drain_timeout: millis(500),
        ..Limits::default()
    };
    let mut gateway = Gateway::start(limits).await;
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
    let idle = gateway.client().await;
    let mut client = gateway.client().await;
    let pending = client.call("/test.Script/Stream", &[]).await.unwrap();
    let events = gateway.call().await.stream();
    let mut answer = pending.head().await.unwrap();

    let began = Instant::now();
    gateway.shutdown.cancel();

    // Announced: health says so, and calls are still taken, on new connections too.
    assert_eq!(
        soon(watched.message()).await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );
    for service in ["", "test.Script"] {
        let check = health
            .check(HealthCheckRequest {
                service: service.to_owned(),
            })
            .await
            .unwrap();
        assert_eq!(
            check.into_inner().status(),
            ServingStatus::NotServing,
            "{service}"
        );
    }
    let mut late = gateway.client().await;
    let pending = late.call("/test.Script/Unary", &[]).await.unwrap();
    gateway.call().await.answer(status(Code::Ok));
    assert_eq!(pending.code_in_head().await, Code::Ok);

    // Then connections without a call close, those that watch health stop, and no new ones are
    // accepted; the stream goes on.
    let health_alone = soon(watched.message()).await;
    assert!(matches!(health_alone, Ok(None)), "{health_alone:?}");
    soon(idle.closed).await.unwrap().unwrap();
    assert!(began.elapsed() >= millis(1500));
    assert!(TcpStream::connect(gateway.address).await.is_err());
    events.send(data("late")).await.unwrap();
    assert_eq!(answer.data().await.unwrap(), "late");

    // Then it ends.
    assert_eq!(code(&answer.trailers().await), Code::Unavailable);
    assert!(began.elapsed() >= millis(1500 + 500));
    soon(events.closed()).await;
    soon(client.closed).await.unwrap().unwrap();
    soon(gateway.served).await.unwrap();
}

#[tokio::test]
async fn a_drain_is_over_as_soon_as_the_last_call_is() {
    let mut gateway = Gateway::start(Limits {
        drain_delay: millis(0),
        ..Limits::default()
    })
    .await;
    let mut client = gateway.client().await;
    let pending = client.call("/test.Script/Unary", &[]).await.unwrap();
    let call = gateway.call().await;

    gateway.shutdown.cancel();
    call.answer(status(Code::Ok));

    assert_eq!(pending.code_in_head().await, Code::Ok);
    let began = Instant::now();
    soon(gateway.served).await.unwrap();
    assert!(began.elapsed() < Limits::default().drain_timeout / 2);
}

#[tokio::test]
async fn a_caller_that_reads_nothing_does_not_hold_a_drain_beyond_its_timeout() {
    let limits = Limits {
        drain_delay: millis(0),
        drain_timeout: millis(200),
        ..Limits::default()
    };
    let mut gateway = Gateway::start(limits).await;
    let mut client = crate::harness::Client::connect(
        gateway.address,
        h2::client::Builder::new().initial_window_size(0),
    )
    .await;
    let pending = client.call("/test.Script/Stream", &[]).await.unwrap();
    let events = gateway.call().await.stream();
    events.send(data("never read")).await.unwrap();
    let _unread = pending.head().await.unwrap();

    gateway.shutdown.cancel();

    soon(gateway.served).await.unwrap();
    assert!(
        events.is_closed(),
        "the handler's side is gone when serve returns"
    );
}
