//! What a collector of traces receives, by the real protocol.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use runs_gateway::{
    server::{Access, Limits, Routes, Served, routes, serve},
    telemetry::Telemetry,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status};

use crate::{
    all, create, event, events, failed, get, run, runs, stream,
    support::{
        program::Running,
        upstream::{Answer, Upstream},
    },
    with,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector: gRPC, and the same over HTTP.
#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("no panic").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    pub(crate) async fn start_grpc(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (routes, health) =
            routes(Routes::default().with(TraceServiceServer::new(self.clone())));
        let served = Served {
            routes,
            health,
            access: Access::default(),
            tls: None,
            web: None,
            telemetry: Telemetry::default(),
            detached: TaskTracker::new(),
        };
        tokio::spawn(serve(
            listener,
            served,
            Limits::default(),
            CancellationToken::new(),
        ));
        url
    }

    async fn start_http(&self) -> String {
        let collector = self.clone();
        let receive = move |body: axum::body::Bytes| async move {
            let request = ExportTraceServiceRequest::decode(body).expect("the protocol's message");
            collector.0.lock().expect("no panic").push(request);
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let routes = axum::Router::new().route("/v1/traces", axum::routing::post(receive));
        tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let service = hyper_util::service::TowerToHyperService::new(routes.clone());
                let io = hyper_util::rt::TokioIo::new(stream);
                connections.spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service),
                );
            }
        });
        url
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().expect("no panic");
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| scope.spans.clone())
            .collect()
    }

    pub(crate) fn resource(&self) -> HashMap<String, String> {
        let requests = self.0.lock().expect("no panic");
        attributes(
            &requests[0].resource_spans[0]
                .resource
                .as_ref()
                .expect("a resource")
                .attributes,
        )
    }
}

/// Attributes by key, of which each stands once.
pub(crate) fn attributes(attributes: &[KeyValue]) -> HashMap<String, String> {
    let text = |attribute: &KeyValue| match attribute
        .value
        .as_ref()
        .and_then(|value| value.value.as_ref())
    {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    let by_key: HashMap<_, _> = attributes
        .iter()
        .map(|attribute| (attribute.key.clone(), text(attribute)))
        .collect();
    assert_eq!(
        by_key.len(),
        attributes.len(),
        "a key stands twice: {attributes:?}"
    );
    by_key
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from_digit(digit.into(), 16).expect("a digit"))
        .collect()
}

#[tokio::test]
async fn a_call_is_a_span_below_its_callers_and_each_upstream_request_one_below_it() {
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::default();
        let url = if protocol == "grpc" {
            collector.start_grpc().await
        } else {
            collector.start_http().await
        };
        let upstream = Upstream::start().await;
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ];
        let gateway = Running::start_in(
            &["--upstream-url", &upstream.url(), "--retry-pause", "1ms"],
            &environment,
        )
        .await;
        upstream.push(Answer::json(503, r#"{"error":{"message":"SECRET"}}"#));
        upstream.push(Answer::json(200, failed()));
        let context = format!("00-{TRACE}-{PARENT}-01");
        let metadata = [("traceparent", &*context), ("tracestate", "vendor=x")];
        runs(&gateway)
            .get_run(with(get(), &metadata))
            .await
            .expect("answered at the second attempt");
        gateway.stop("-TERM").await;

        let spans = collector.spans();
        let calls: Vec<_> = spans
            .iter()
            .filter(|span| span.kind() == SpanKind::Server)
            .collect();
        let requests: Vec<_> = spans
            .iter()
            .filter(|span| span.kind() == SpanKind::Client)
            .collect();
        assert_eq!(
            (calls.len(), requests.len()),
            (1, 2),
            "{protocol}: {spans:?}"
        );
        let call = calls[0];
        assert_eq!(call.name, "runsgateway.v1.RunService/GetRun");
        assert_eq!(
            (hex(&call.trace_id), hex(&call.parent_span_id)),
            (TRACE.into(), PARENT.into())
        );
        let said = attributes(&call.attributes);
        let expected = [
            ("rpc.system.name", "grpc"),
            ("rpc.method", "runsgateway.v1.RunService/GetRun"),
            ("rpc.status_code", "OK"),
            ("gen_ai.operation.name", "invoke_agent"),
            ("gen_ai.provider.name", "unknown"),
            ("gen_ai.conversation.id", "thread_1"),
            ("gen_ai.agent.id", "asst_1"),
            ("gen_ai.response.id", "run_1"),
            ("gen_ai.request.model", "gpt-4o"),
            ("gen_ai.usage.input_tokens", "30"),
            ("gen_ai.usage.output_tokens", "5"),
        ];
        for (name, value) in expected {
            assert_eq!(
                said.get(name).map(String::as_str),
                Some(value),
                "{name} in {said:?}"
            );
        }
        for (attempt, (request, status)) in requests.iter().zip(["503", "200"]).enumerate() {
            assert_eq!(request.name, "GET /threads/{thread_id}/runs/{run_id}");
            assert_eq!(
                (hex(&request.trace_id), &request.parent_span_id),
                (TRACE.into(), &call.span_id)
            );
            let said = attributes(&request.attributes);
            assert_eq!(
                (
                    &*said["http.request.method"],
                    &*said["http.response.status_code"]
                ),
                ("GET", status)
            );
            assert_eq!(said["server.port"], upstream.address().port().to_string());
            assert_eq!(
                said.get("http.request.resend_count"),
                (attempt > 0).then(|| "1".to_owned()).as_ref()
            );
            let sent = upstream.requests()[attempt]
                .header("traceparent")
                .expect("a context")
                .to_owned();
            assert_eq!(sent, format!("00-{TRACE}-{}-01", hex(&request.span_id)));
            assert_eq!(
                upstream.requests()[attempt].header("tracestate"),
                Some("vendor=x")
            );
        }
        assert_eq!(collector.resource()["service.name"], "runs-gateway");
        assert!(!format!("{spans:?}").contains("SECRET"));
    }
}

#[tokio::test]
async fn a_stream_is_a_span_to_its_last_byte_and_a_failed_call_says_why() {
    let collector = Collector::default();
    let url = collector.start_grpc().await;
    let upstream = Upstream::start().await;
    let environment = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*url),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_SERVICE_NAME", "my-gateway"),
    ];
    let gateway = Running::start_in(&["--upstream-url", &upstream.url()], &environment).await;
    upstream.push(events());
    all(runs(&gateway).stream_create_run(stream()).await).await;
    upstream.push(Answer::cut_before_answer());
    runs(&gateway)
        .create_run(create())
        .await
        .expect_err("the outcome is not known");
    gateway.stop("-TERM").await;

    let spans = collector.spans();
    let named = |name: &str| {
        spans
            .iter()
            .find(|span| span.name.ends_with(name))
            .unwrap_or_else(|| panic!("{name} in {spans:?}"))
    };
    let (call, request) = (
        named("/StreamCreateRun"),
        named("POST /threads/{thread_id}/runs"),
    );
    assert!(
        call.end_time_unix_nano >= request.end_time_unix_nano
            && request.parent_span_id == call.span_id
    );
    assert_eq!(
        attributes(&call.attributes)["gen_ai.usage.output_tokens"],
        "5"
    );
    let failed = named("/CreateRun");
    assert_eq!(attributes(&failed.attributes)["error.type"], "UNKNOWN");
    assert_eq!(failed.status.as_ref().expect("a status").code, 2);
    assert_eq!(collector.resource()["service.name"], "my-gateway");
    let text = format!("{spans:?}");
    assert!(
        !text.contains("SECRET") && !text.contains("PROMPT"),
        "{text}"
    );
}

#[tokio::test]
async fn a_span_tells_its_run_once_however_often_it_was_seen_and_has_room_for_the_end() {
    let collector = Collector::default();
    let url = collector.start_grpc().await;
    let upstream = Upstream::start().await;
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ];
    let gateway = Running::start_in(&["--upstream-url", &upstream.url()], &environment).await;
    let seen = (0..50).map(|_| event("thread.run.in_progress", &run("in_progress", "")));
    upstream.push(Answer::sse(seen.chain([
        event("thread.run.failed", &failed()),
        event("done", "[DONE]"),
    ])));
    assert_eq!(
        all(runs(&gateway).stream_create_run(stream()).await)
            .await
            .len(),
        52
    );
    gateway.stop("-TERM").await;

    let spans = collector.spans();
    let call = spans
        .iter()
        .find(|span| span.kind() == SpanKind::Server)
        .expect("a span");
    let said = attributes(&call.attributes);
    for (name, value) in [
        ("gen_ai.response.id", "run_1"),
        ("gen_ai.usage.output_tokens", "5"),
        ("rpc.status_code", "OK"),
    ] {
        assert_eq!(
            said.get(name).map(String::as_str),
            Some(value),
            "{name} in {said:?}"
        );
    }
    assert_eq!(call.dropped_attributes_count, 0);
}

#[tokio::test]
async fn what_is_not_sampled_is_not_exported_but_its_context_goes_on() {
    let collector = Collector::default();
    let url = collector.start_grpc().await;
    let upstream = Upstream::start().await;
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ];
    let gateway = Running::start_in(&["--upstream-url", &upstream.url()], &environment).await;
    upstream.push(Answer::json(200, failed()));
    runs(&gateway)
        .get_run(with(
            get(),
            &[("traceparent", &format!("00-{TRACE}-{PARENT}-01"))],
        ))
        .await
        .expect("an answer");
    let sent = upstream.requests()[0]
        .header("traceparent")
        .expect("a context")
        .to_owned();
    assert!(
        sent.starts_with(&format!("00-{TRACE}-")) && sent.ends_with("-00"),
        "{sent}"
    );
    gateway.stop("-TERM").await;
    assert!(collector.spans().is_empty());
}
