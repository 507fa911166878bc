//! The nine calls as data, so that a test can be a table.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Value as Field};
use runs_gateway::{
    json::{self, Document},
    v1::{
        self, CancelRunRequest, CreateRunRequest, CreateThreadAndRunRequest, GetRunRequest,
        GetRunStepRequest, ListRunStepsRequest, ListRunsRequest, ModifyRunRequest, SortOrder,
        SubmitToolOutputsRequest, run_service_client::RunServiceClient,
        run_step_service_client::RunStepServiceClient,
    },
};
use serde_json::Value;
use tonic::{Request, Response, Status, metadata::MetadataMap, transport::Channel};

use crate::support::upstream::Answer;

macro_rules! calls {
    ($($rpc:ident($request:ident) -> $answer:ident by $client:ident.$method:ident;)*) => {
        /// One call.
        #[derive(Debug, Clone)]
        #[expect(clippy::large_enum_variant, reason = "a test has few of them")]
        pub(crate) enum Call {
            $($rpc($request),)*
        }

        $(impl From<$request> for Call {
            fn from(request: $request) -> Self {
                Self::$rpc(request)
            }
        })*

        impl Call {
            /// The RPC's name.
            pub(crate) fn rpc(&self) -> &'static str {
                match self {
                    $(Self::$rpc(_) => stringify!($rpc),)*
                }
            }

            /// The request as a message that can be looked through.
            pub(crate) fn reflect(&self) -> DynamicMessage {
                match self {
                    $(Self::$rpc(request) => reflect(stringify!($request), request),)*
                }
            }

            /// Makes the call, with metadata.
            pub(crate) async fn with(&self, gateway: impl Into<Channel>, metadata: &[(&'static str, &str)]) -> Result<Answered, Status> {
                let channel = gateway.into();
                match self {
                    $(Self::$rpc(request) => {
                        let mut request = Request::new(request.clone());
                        for (name, value) in metadata {
                            request.metadata_mut().append(*name, value.parse().expect("a value"));
                        }
                        $client::new(channel).$method(request).await.map(|response| Answered::new(stringify!($answer), response))
                    })*
                }
            }
        }
    };
}

calls! {
    CreateRun(CreateRunRequest) -> Run by RunServiceClient.create_run;
    CreateThreadAndRun(CreateThreadAndRunRequest) -> Run by RunServiceClient.create_thread_and_run;
    ListRuns(ListRunsRequest) -> ListRunsResponse by RunServiceClient.list_runs;
    GetRun(GetRunRequest) -> Run by RunServiceClient.get_run;
    ModifyRun(ModifyRunRequest) -> Run by RunServiceClient.modify_run;
    SubmitToolOutputs(SubmitToolOutputsRequest) -> Run by RunServiceClient.submit_tool_outputs;
    CancelRun(CancelRunRequest) -> Run by RunServiceClient.cancel_run;
    ListRunSteps(ListRunStepsRequest) -> ListRunStepsResponse by RunStepServiceClient.list_run_steps;
    GetRunStep(GetRunStepRequest) -> RunStep by RunStepServiceClient.get_run_step;
}

/// One of each, as REST: method, target, body.
pub(crate) const ALL: [(&str, &str, &str); 9] = [
    (
        "POST",
        "/threads/thread_1/runs",
        r#"{"assistant_id":"asst_1"}"#,
    ),
    ("POST", "/threads/runs", r#"{"assistant_id":"asst_1"}"#),
    ("GET", "/threads/thread_1/runs", ""),
    ("GET", "/threads/thread_1/runs/run_1", ""),
    ("POST", "/threads/thread_1/runs/run_1", "{}"),
    (
        "POST",
        "/threads/thread_1/runs/run_1/submit_tool_outputs",
        r#"{"tool_outputs":[{"tool_call_id":"call_1"}]}"#,
    ),
    ("POST", "/threads/thread_1/runs/run_1/cancel", ""),
    ("GET", "/threads/thread_1/runs/run_1/steps", ""),
    ("GET", "/threads/thread_1/runs/run_1/steps/step_1", ""),
];

impl Call {
    /// The call that makes a REST request. `target` is path and query, from `/threads` on.
    pub(crate) fn rest(method: &str, target: &str, body: &str) -> Self {
        let (path, query) = parts(target);
        let one = |name: &str| {
            query
                .iter()
                .find(|(it, _)| it == name)
                .map(|(_, value)| value.clone())
                .unwrap_or_default()
        };
        let limit = Some(one("limit"))
            .filter(|it| !it.is_empty())
            .map(|it| it.parse().expect("a number"));
        let order = match &*one("order") {
            "" => SortOrder::Unspecified,
            "asc" => SortOrder::Asc,
            "desc" => SortOrder::Desc,
            other => panic!("order {other}"),
        }
        .into();
        let (after, before) = (one("after"), one("before"));
        let include = query
            .iter()
            .filter(|(name, _)| name == "include[]")
            .map(|(_, value)| value.clone())
            .collect();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let id = |at: usize| path[at].to_owned();
        match (method, &path[..]) {
            ("POST", ["threads", "runs"]) => CreateThreadAndRunRequest {
                thread_and_run: decode(body),
                ..CreateThreadAndRunRequest::default()
            }
            .into(),
            ("POST", ["threads", _, "runs"]) => CreateRunRequest {
                thread_id: id(1),
                run: decode(body),
                include,
                ..CreateRunRequest::default()
            }
            .into(),
            ("GET", ["threads", _, "runs"]) => ListRunsRequest {
                thread_id: id(1),
                limit,
                order,
                after,
                before,
            }
            .into(),
            ("GET", ["threads", _, "runs", _]) => GetRunRequest {
                thread_id: id(1),
                run_id: id(3),
            }
            .into(),
            ("POST", ["threads", _, "runs", _]) => ModifyRunRequest {
                thread_id: id(1),
                run_id: id(3),
                run: decode(body),
            }
            .into(),
            ("POST", ["threads", _, "runs", _, "submit_tool_outputs"]) => {
                SubmitToolOutputsRequest {
                    thread_id: id(1),
                    run_id: id(3),
                    tool_outputs: decode(body),
                }
                .into()
            }
            ("POST", ["threads", _, "runs", _, "cancel"]) => CancelRunRequest {
                thread_id: id(1),
                run_id: id(3),
            }
            .into(),
            ("GET", ["threads", _, "runs", _, "steps"]) => ListRunStepsRequest {
                thread_id: id(1),
                run_id: id(3),
                limit,
                order,
                after,
                before,
                include,
            }
            .into(),
            ("GET", ["threads", _, "runs", _, "steps", _]) => GetRunStepRequest {
                thread_id: id(1),
                run_id: id(3),
                step_id: id(5),
                include,
            }
            .into(),
            other => panic!("not one of the nine operations: {other:?}"),
        }
    }

    /// A read: doing it twice is harmless.
    pub(crate) fn get_run() -> Self {
        Self::rest("GET", "/threads/thread_1/runs/run_1", "")
    }

    /// A write: doing it twice is harm.
    pub(crate) fn create_run() -> Self {
        Self::rest(
            "POST",
            "/threads/thread_1/runs",
            r#"{"assistant_id":"asst_1"}"#,
        )
    }

    /// One of each.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        ALL.iter()
            .map(|(method, target, body)| Self::rest(method, target, body))
    }

    /// Makes the call.
    pub(crate) async fn on(&self, gateway: impl Into<Channel>) -> Result<Answered, Status> {
        self.with(gateway, &[]).await
    }
}

fn decode<M: Document>(body: &str) -> Option<M> {
    json::decode(body.as_bytes())
        .map_err(|error| panic!("{error}: {body}"))
        .ok()
}

/// A call's answer.
#[derive(Debug)]
pub(crate) struct Answered {
    /// Encoded again.
    pub(crate) json: Value,
    /// Every `extra_json` that is not empty, by path.
    pub(crate) extra: Vec<(String, String)>,
    pub(crate) metadata: MetadataMap,
}

impl Answered {
    fn new<M: Document + Message>(name: &str, response: Response<M>) -> Self {
        let (metadata, message, _) = response.into_parts();
        let text = json::encode(&message).expect("an answer can be written");
        let mut extra = Vec::new();
        walk(&reflect(name, &message), "", &mut |path, field, value| {
            if field.name() == "extra_json" {
                extra.push((
                    path.to_owned(),
                    value.as_str().unwrap_or_default().to_owned(),
                ));
            }
        });
        Self {
            json: serde_json::from_slice(&text).expect("JSON"),
            extra,
            metadata,
        }
    }
}

/// The contract.
pub(crate) fn contract() -> DescriptorPool {
    DescriptorPool::decode(v1::DESCRIPTOR).expect("the contract's descriptors")
}

fn reflect(name: &str, message: &impl Message) -> DynamicMessage {
    let descriptor = contract()
        .get_message_by_name(&format!("runsgateway.v1.{name}"))
        .expect(name);
    DynamicMessage::decode(descriptor, &*message.encode_to_vec()).expect("the same message")
}

/// Shows every field that is set, depth first: the path of its message, the field, its value.
pub(crate) fn walk(
    message: &DynamicMessage,
    path: &str,
    show: &mut impl FnMut(&str, &FieldDescriptor, &Field),
) {
    for (field, value) in message.fields() {
        show(path, &field, value);
        let path = if path.is_empty() {
            field.name().to_owned()
        } else {
            format!("{path}.{}", field.name())
        };
        let values = if let Field::List(values) = value {
            values
        } else {
            std::slice::from_ref(value)
        };
        for message in values.iter().filter_map(Field::as_message) {
            walk(message, &path, show);
        }
    }
}

/// An answer that suits any call: a list, and the resource that the target names.
pub(crate) fn agreed(target: &str) -> Answer {
    let (path, _) = parts(target);
    let threads = path.iter().position(|segment| segment == "threads");
    let at = |behind: usize| threads.and_then(|threads| path.get(threads + behind));
    let id = at(5).or_else(|| at(3)).map_or("x", String::as_str);
    Answer::json(200, serde_json::json!({"id": id, "data": []}).to_string())
}

/// Path segments and query pairs of a target, decoded.
pub(crate) fn parts(target: &str) -> (Vec<String>, Vec<(String, String)>) {
    let decoded = |text: &str| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8()
            .expect("UTF-8")
            .into_owned()
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pair = |pair: &str| {
        pair.split_once('=')
            .map(|(name, value)| (decoded(name), decoded(value)))
    };
    let query = query
        .split('&')
        .filter(|it| !it.is_empty())
        .map(|it| pair(it).expect("name=value"))
        .collect();
    (path.split('/').skip(1).map(decoded).collect(), query)
}

/// Without what the contract says is the same as nothing: members that are `null`, an empty list or
/// an empty object. Numbers as numbers.
pub(crate) fn bare(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let nothing = |value: &Value| {
                value.is_null()
                    || value.as_array().is_some_and(Vec::is_empty)
                    || value.as_object().is_some_and(serde_json::Map::is_empty)
            };
            let members = members.into_iter().map(|(name, value)| (name, bare(value)));
            Value::Object(members.filter(|(_, value)| !nothing(value)).collect())
        }
        Value::Array(values) => values.into_iter().map(bare).collect(),
        // An integer of a fraction's notation is that integer. What lies beyond these bounds is
        // compared as it is.
        Value::Number(number) => match number.as_f64() {
            Some(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
                #[expect(clippy::cast_possible_truncation, reason = "it was just checked")]
                let integer = number as i64;
                integer.into()
            }
            _ => Value::Number(number),
        },
        other => other,
    }
}
