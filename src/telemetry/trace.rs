//! Spans, and their export by OTLP.
//!
//! A call is a server span to its last byte, each upstream request a client span below it.
//! Attributes are those of OpenTelemetry's semantic conventions for rpc and http (1.45) and for
//! generative AI (0.1.0): ids, models and counts, never what was said. The context comes in and goes on as W3C
//! `traceparent` and `tracestate`; that it goes on is the configuration's to allow, like all
//! metadata.
//!
//! Without an exporter there are no spans: the caller's context is passed on as it came, and only
//! its trace id is read, for the log.

use std::{
    fmt, mem,
    sync::{Mutex, PoisonError},
};

use http::{HeaderMap, Method as HttpMethod, StatusCode};
use opentelemetry::{
    Context, KeyValue, TraceId,
    propagation::TextMapPropagator as _,
    trace::{
        SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use tonic::Code;

use super::{
    methods::{Method, UNKNOWN, code_name, error_type},
    tokens::OPERATION,
};
use crate::v1::Run;

/// How traces are exported, as far as the exporter does not read it from the standard variables by
/// itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traces {
    /// The protocol.
    pub protocol: OtlpProtocol,
    /// The variables name the service.
    pub is_named: bool,
}

/// The protocols of OTLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// Protobuf over gRPC.
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// Makes spans, or does not.
pub struct Tracer(Option<Exporting>);

struct Exporting {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// Attributes of every client span: where the upstream is.
    upstream: Vec<KeyValue>,
    /// The context goes on to the upstream.
    propagates: bool,
}

impl Tracer {
    /// No spans.
    pub fn off() -> Self {
        Self(None)
    }

    /// Exports spans as `traces` says; all else (endpoint, headers, sampler, batches) the exporter
    /// reads from the standard `OTEL_*` variables. `upstream` is where requests go; with
    /// `propagates` they carry the context. Has to be called in a runtime.
    ///
    /// Fails if the variables make no exporter.
    pub fn exporting(
        traces: &Traces,
        upstream: &url::Url,
        propagates: bool,
    ) -> Result<Self, String> {
        // The HTTP exporter's client takes whatever provider the process has. A second installation
        // changes nothing and is no error.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let exporter = match traces.protocol {
            OtlpProtocol::Grpc => SpanExporter::builder().with_tonic().build(),
            OtlpProtocol::Http => SpanExporter::builder().with_http().build(),
        };
        let exporter = exporter.map_err(|error| format!("traces cannot be exported: {error}"))?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_attribute(version);
        let resource = if traces.is_named {
            resource
        } else {
            resource.with_service_name("runs-gateway")
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        let address = upstream.host_str().unwrap_or_default().to_owned();
        let port = i64::from(upstream.port_or_known_default().unwrap_or_default());
        let upstream = vec![
            KeyValue::new("server.address", address),
            KeyValue::new("server.port", port),
        ];
        Ok(Self(Some(Exporting {
            tracer: provider.tracer("runs-gateway"),
            provider,
            upstream,
            propagates,
        })))
    }

    /// A call of `method` begins; `unknown` is what was asked for, if it is not served.
    pub(super) fn server(
        &self,
        method: &Method,
        unknown: Option<&str>,
        headers: &HeaderMap,
    ) -> Server {
        let traced = headers.contains_key("traceparent");
        if self.0.is_none() && !traced {
            return Server::of(Context::new());
        }
        let parent = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let Some(Exporting { tracer, .. }) = &self.0 else {
            return Server::of(parent);
        };
        let mut attributes = vec![
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method.name.clone()),
        ];
        if let Some(path) = unknown {
            attributes.push(KeyValue::new("rpc.method_original", path.to_owned()));
        }
        // A name has to be one of few.
        let is_unknown = method.name == UNKNOWN;
        let name = if is_unknown { "grpc" } else { &method.name }.to_owned();
        let span = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        let span = tracer.build_with_context(span, &parent);
        Server::of(parent.with_span(span))
    }

    /// A request to the upstream begins, for a call or, if there is no `parent`, for a poller.
    pub(super) fn client(
        &self,
        parent: Option<&Server>,
        method: &HttpMethod,
        route: &'static str,
        attempt: u32,
    ) -> Client {
        let Some(Exporting {
            tracer,
            upstream,
            propagates,
            ..
        }) = &self.0
        else {
            return Client(None);
        };
        let mut attributes = upstream.clone();
        attributes.push(KeyValue::new("http.request.method", method.to_string()));
        attributes.push(KeyValue::new("url.template", route));
        if attempt > 0 {
            attributes.push(KeyValue::new(
                "http.request.resend_count",
                i64::from(attempt),
            ));
        }
        let span = SpanBuilder::from_name(format!("{method} {route}"))
            .with_kind(SpanKind::Client)
            .with_attributes(attributes);
        let root = Context::new();
        let parent = parent.map_or(&root, |parent| &parent.context);
        let span = tracer.build_with_context(span, parent);
        Client(Some((parent.with_span(span), *propagates)))
    }

    /// Sends what has not been exported yet.
    pub(super) fn shutdown(&self) {
        if let Some(Err(error)) = self
            .0
            .as_ref()
            .map(|exporting| exporting.provider.shutdown())
        {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "Tracer({})",
            if self.0.is_some() { "exporting" } else { "off" }
        )
    }
}

/// The span of a call; without an exporter, the context that the caller sent.
pub(super) struct Server {
    context: Context,
    /// What the run that was seen last is told by. Set at the end: the span would keep what is set
    /// before beside it, and has room for so much.
    run: Mutex<Vec<KeyValue>>,
}

impl Server {
    fn of(context: Context) -> Self {
        Self {
            context,
            run: Mutex::default(),
        }
    }

    /// The trace that the call belongs to.
    pub(super) fn trace_id(&self) -> Option<String> {
        let trace = self.context.span().span_context().trace_id();
        (trace != TraceId::INVALID).then(|| trace.to_string())
    }

    /// The run that the call is about.
    pub(super) fn saw(&self, run: &Run, provider: &str) {
        if !self.context.span().is_recording() {
            return;
        }
        let texts = [
            ("gen_ai.operation.name", OPERATION),
            ("gen_ai.provider.name", provider),
            ("gen_ai.conversation.id", &*run.thread_id),
            ("gen_ai.agent.id", &*run.assistant_id),
            ("gen_ai.response.id", &*run.id),
            ("gen_ai.request.model", &*run.model),
        ];
        let usage = run.usage.as_ref();
        let numbers = [
            (
                "gen_ai.usage.input_tokens",
                usage.and_then(|usage| usage.prompt_tokens),
            ),
            (
                "gen_ai.usage.output_tokens",
                usage.and_then(|usage| usage.completion_tokens),
            ),
        ];
        let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
        let texts = texts.map(|(name, text)| KeyValue::new(name, text.to_owned()));
        let numbers = numbers
            .into_iter()
            .filter_map(|(name, number)| Some(KeyValue::new(name, number?)));
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = texts.chain(numbers).collect();
    }

    /// The call is over.
    pub(super) fn ended(&self, code: Code, error: Option<&str>) {
        let span = self.context.span();
        if !span.is_recording() {
            return;
        }
        span.set_attributes(mem::take(
            &mut *self.run.lock().unwrap_or_else(PoisonError::into_inner),
        ));
        span.set_attribute(KeyValue::new("rpc.status_code", code_name(code)));
        if let Some(kind) = error_type(code) {
            span.set_attribute(KeyValue::new("error.type", kind));
            span.set_status(Status::error(error.unwrap_or_default().to_owned()));
        }
        span.end();
    }
}

/// The span of an upstream request, and whether its context goes on.
pub(super) struct Client(Option<(Context, bool)>);

impl Client {
    /// Writes the context into a request's headers, in place of the caller's.
    pub(super) fn inject(&self, headers: &mut HeaderMap) {
        if let Some((context, true)) = &self.0 {
            TraceContextPropagator::new().inject_context(context, &mut HeaderInjector(headers));
        }
    }

    /// The request is over.
    pub(super) fn ended(&self, status: Option<StatusCode>, error: Option<&'static str>) {
        let Some((context, _)) = &self.0 else { return };
        let span = context.span();
        if let Some(status) = status {
            span.set_attribute(KeyValue::new(
                "http.response.status_code",
                i64::from(status.as_u16()),
            ));
        }
        let failed = status.filter(|status| status.is_client_error() || status.is_server_error());
        if let Some(kind) = error
            .map(str::to_owned)
            .or_else(|| failed.map(|status| status.as_str().to_owned()))
        {
            span.set_attribute(KeyValue::new("error.type", kind));
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Client").finish_non_exhaustive()
    }
}
