//! What a caller sends can never change which endpoint is called, and what is wrong is refused
//! before anything is sent.

use runs_gateway::v1::{
    CreateRunRequest, CreateThreadAndRunRequest, ListRunStepsRequest, ListRunsRequest,
    ModifyRunRequest, RunSpec, SubmitToolOutputsRequest, Tool, ToolOutput, ToolOutputs,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    call::{ALL, Call, parts},
    support::{
        gateway::{Gateway, spawn_gateway},
        upstream::{Recorded, Upstream},
    },
};

/// The field that the call is refused for. The status must say so in every way that callers look
/// at.
async fn refusal(call: &Call, gateway: &Gateway) -> String {
    let status = call.on(gateway).await.expect_err("a refusal");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!(
        (&*info.reason, &*info.domain),
        ("INVALID_FIELD", "runsgateway.v1")
    );
    let violations = status
        .get_details_bad_request()
        .expect("BadRequest")
        .field_violations;
    let [violation] = &violations[..] else {
        panic!("{violations:?}")
    };
    assert_eq!(
        status.message(),
        format!("{}: {}", violation.field, violation.description)
    );
    violation.field.clone()
}

#[tokio::test]
async fn an_id_is_one_segment_of_one_request_or_is_refused_by_name() {
    let (long, too_long, too_long_encoded) =
        ("x".repeat(10_000), "x".repeat(70_000), "é".repeat(2_000));
    let refused = ["", ".", "..", &too_long, &too_long_encoded];
    let sent = [
        "a/b", "/", "../x", "a?b", "a#b", "é", "%2e%2e", "%2F", "a\\b", " ", "a\nb", "a\r\nb",
        "\0", "...", "runs", &long,
    ];
    let upstream = Upstream::answering(Recorded::agreed).await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let mut requests = 0;
    for id in refused.into_iter().chain(sent) {
        for (at, ordinary) in Call::all().enumerate() {
            let (method, target, _) = ALL[at];
            for field in ordinary.ids() {
                let mut call = ordinary.clone();
                call.set(&field, id);
                let own = field.replace("id", "1");
                let path: Vec<_> = target
                    .split('/')
                    .skip(1)
                    .map(|it| if it == own { id } else { it }.to_owned())
                    .collect();
                // A word that stands there in another call's route would make it that call.
                let another = ALL.iter().any(|(_, other, _)| {
                    *other != target && other.split('/').skip(1).eq(path.iter())
                });
                if refused.contains(&id) || another {
                    assert_eq!(refusal(&call, &gateway).await, field, "{id:.20}");
                } else {
                    call.on(&gateway)
                        .await
                        .unwrap_or_else(|status| panic!("{field} {id:?}: {status}"));
                    requests += 1;
                    let requests = upstream.requests();
                    let seen = requests.last().expect("a request");
                    assert_eq!(
                        (&*seen.method, parts(&seen.target)),
                        (method, (path, vec![])),
                        "{field} of {}",
                        call.rpc()
                    );
                    assert!(!seen.target.contains('#'), "{}", seen.target);
                }
                assert_eq!(
                    upstream.requests().len(),
                    requests,
                    "{field} {id:?} of {}",
                    call.rpc()
                );
            }
        }
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_wrong_field_is_named_and_nothing_is_sent() {
    let run = |run: RunSpec| {
        Call::from(CreateRunRequest {
            thread_id: "t".into(),
            run: Some(run),
            include: Vec::new(),
            ..CreateRunRequest::default()
        })
    };
    let extra = |extra: &str| {
        run(RunSpec {
            assistant_id: "a".into(),
            extra_json: extra.into(),
            ..RunSpec::default()
        })
    };
    let page = |limit, order| {
        Call::from(ListRunsRequest {
            thread_id: "t".into(),
            limit,
            order,
            ..ListRunsRequest::default()
        })
    };
    let steps = |limit, order| {
        Call::from(ListRunStepsRequest {
            thread_id: "t".into(),
            run_id: "r".into(),
            limit,
            order,
            ..ListRunStepsRequest::default()
        })
    };
    let cursors = |after: &str, before: &str| {
        let (after, before) = (after.to_owned(), before.to_owned());
        Call::from(ListRunsRequest {
            thread_id: "t".into(),
            after,
            before,
            ..ListRunsRequest::default()
        })
    };
    let including = |include| {
        Call::from(CreateRunRequest {
            thread_id: "t".into(),
            run: Some(RunSpec::default()),
            include,
            ..CreateRunRequest::default()
        })
    };
    let table = vec![
        (page(Some(0), 0), "limit"),
        (page(Some(-1), 0), "limit"),
        (page(Some(101), 0), "limit"),
        (page(Some(i32::MIN), 0), "limit"),
        (steps(Some(101), 0), "limit"),
        (page(None, 3), "order"),
        (page(None, -1), "order"),
        (steps(None, 99), "order"),
        (cursors("x", &"x".repeat(70_000)), "before"),
        (cursors(&"/".repeat(4_000), "x"), "after"),
        (including(vec!["x".repeat(70_000)]), "include"),
        (including(vec!["x".into(); 4_000]), "include"),
        (
            CreateRunRequest {
                thread_id: "t".into(),
                ..CreateRunRequest::default()
            }
            .into(),
            "run",
        ),
        (
            CreateThreadAndRunRequest::default().into(),
            "thread_and_run",
        ),
        (
            ModifyRunRequest {
                thread_id: "t".into(),
                run_id: "r".into(),
                run: None,
            }
            .into(),
            "run",
        ),
        (
            SubmitToolOutputsRequest {
                thread_id: "t".into(),
                run_id: "r".into(),
                tool_outputs: None,
            }
            .into(),
            "tool_outputs",
        ),
        (extra("["), "run.extra_json"),
        (extra("[]"), "run.extra_json"),
        (extra("null"), "run.extra_json"),
        (extra("{}{}"), "run.extra_json"),
        (extra(r#"{"a":1}, "assistant_id":"b""#), "run.extra_json"),
        (extra(r#"{"assistant_id":"b"}"#), "run.extra_json"),
        (extra(r#"{"\u0061ssistant_id":"b"}"#), "run.extra_json"),
        (extra(r#"{"stream":true}"#), "run.extra_json"),
        (extra(r#"{"stre\u0061m":false}"#), "run.extra_json"),
        (
            run(RunSpec {
                tools: vec![Tool {
                    r#type: 99,
                    ..Tool::default()
                }],
                ..RunSpec::default()
            }),
            "run.tools[0].type",
        ),
        (
            run(RunSpec {
                temperature: Some(f64::NAN),
                ..RunSpec::default()
            }),
            "run.temperature",
        ),
        (
            run(RunSpec {
                top_p: Some(f64::INFINITY),
                ..RunSpec::default()
            }),
            "run.top_p",
        ),
        (
            SubmitToolOutputsRequest {
                thread_id: "t".into(),
                run_id: "r".into(),
                tool_outputs: Some(ToolOutputs {
                    tool_outputs: vec![
                        ToolOutput::default(),
                        ToolOutput {
                            extra_json: "1".into(),
                            ..ToolOutput::default()
                        },
                    ],
                    ..ToolOutputs::default()
                }),
            }
            .into(),
            "tool_outputs.tool_outputs[1].extra_json",
        ),
    ];
    // Whatever arrives there is unscripted and fails the test.
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (call, field) in table {
        assert_eq!(refusal(&call, &gateway).await, field, "{call:?}");
    }
    gateway.drain().await;
    assert_eq!(upstream.accepted(), 0, "not even a connection was needed");
}
