//! What is counted of creates that are repeated, and of creates that wait.

use runs_gateway::v1::{ActiveRunPolicy, CreateRunRequest, run_service_client::RunServiceClient};

use crate::{
    calls::{Create, run},
    killed::start,
    model::{Fault, Model},
    support::program::Running,
};

/// Numbers that a gateway tells of itself.
async fn numbers<const N: usize>(gateway: &Running, names: [&str; N]) -> [usize; N] {
    let (_, text) = gateway.ask_admin("/metrics").await;
    names.map(|name| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let mut values = lines.filter_map(|value| value.trim().parse().ok());
        values.next().unwrap_or_else(|| panic!("no {name}"))
    })
}

#[tokio::test]
async fn what_becomes_of_calls_with_a_request_id_is_counted() {
    const OUTCOMES: [&str; 3] = [
        "runs_gateway_request_ids_total{outcome=\"repeated\"}",
        "runs_gateway_request_ids_total{outcome=\"found\"}",
        "runs_gateway_request_ids_total{outcome=\"unsettled\"}",
    ];
    let model = Model::start().await;
    let first = start(&model, None).await;
    let call = |gateway: &Running, id: &'static str| {
        let channel = gateway.channel.clone();
        async move { Create::Message.call(channel, id, "one").await }
    };
    call(&first, "made").await.expect("made");
    assert_eq!(numbers(&first, OUTCOMES).await, [0, 0, 0]);
    call(&first, "made").await.expect("made before");
    assert_eq!(numbers(&first, OUTCOMES).await, [1, 0, 0]);
    model.fail([Fault::ResetAfter, Fault::ResetBefore]);
    call(&first, "lost").await.expect("found");
    assert_eq!(numbers(&first, OUTCOMES).await, [1, 1, 0]);
    call(&first, "not made")
        .await
        .expect_err("looked for in vain");
    assert_eq!(numbers(&first, OUTCOMES).await, [1, 1, 1]);
    // By its mark.
    let second = start(&model, None).await;
    call(&second, "made").await.expect("made before");
    assert_eq!(numbers(&second, OUTCOMES).await, [1, 0, 0]);
    for gateway in [first, second] {
        gateway.stop("-9").await;
    }
}

#[tokio::test]
async fn creates_that_wait_are_counted_while_they_do_and_once_each() {
    const WAITS: [&str; 2] = [
        "runs_gateway_waiting_creates ",
        "runs_gateway_waited_creates_total ",
    ];
    let model = Model::start().await;
    let active = model.state().begin_run("thread_1");
    model.state().polls = usize::MAX;
    let gateway = start(&model, None).await;
    let wait = |text: &'static str| {
        let mut runs = RunServiceClient::new(gateway.channel.clone());
        let request = CreateRunRequest {
            on_active_run: ActiveRunPolicy::Wait.into(),
            ..run("", text)
        };
        tokio::spawn(async move { runs.create_run(request).await })
    };
    assert_eq!(numbers(&gateway, WAITS).await, [0, 0]);
    let [kept, gone] = [wait("kept"), wait("gone")];
    while numbers(&gateway, WAITS).await != [2, 2] {}
    gone.abort();
    while numbers(&gateway, WAITS).await != [1, 2] {}
    model.state().polls = 1;
    model.state().set("thread_1", &active, "completed");
    kept.await.expect("no panic").expect("a run");
    assert_eq!(numbers(&gateway, WAITS).await, [0, 2]);
    gateway.stop("-9").await;
}
