//! The calls that are one REST request each, as data, so that a test can be a table.
//!
//! Must hold: what a call is comes from the contract alone (its RPC and the option `rest`), and a
//! new RPC without a row of [`ALL`] fails `requests.rs`.

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use prost::{Message, Name};
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MethodDescriptor, Value as Field,
    prost_types::method_options::IdempotencyLevel,
};
use serde_json::Value;
use tonic::{
    Request, Response, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    transport::Channel,
};

use crate::roots::{body, calls, rest, root};

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    rpc: MethodDescriptor,
    request: DynamicMessage,
}

/// One of each, as REST: method, target, body. An id is called like its field.
pub(crate) const ALL: [(&str, &str, &str); 23] = [
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
    ("POST", "/assistants", r#"{"model":"m"}"#),
    ("GET", "/assistants", ""),
    ("GET", "/assistants/assistant_1", ""),
    ("POST", "/assistants/assistant_1", "{}"),
    ("DELETE", "/assistants/assistant_1", ""),
    ("POST", "/threads", "{}"),
    ("GET", "/threads/thread_1", ""),
    ("POST", "/threads/thread_1", "{}"),
    ("DELETE", "/threads/thread_1", ""),
    (
        "POST",
        "/threads/thread_1/messages",
        r#"{"role":"user","content":"hello"}"#,
    ),
    ("GET", "/threads/thread_1/messages", ""),
    ("GET", "/threads/thread_1/messages/message_1", ""),
    ("POST", "/threads/thread_1/messages/message_1", "{}"),
    ("DELETE", "/threads/thread_1/messages/message_1", ""),
];

/// A request of the contract is the call that has it. (Streams have requests of their own.)
impl<M: Message + Name> From<M> for Call {
    fn from(request: M) -> Self {
        let rpc = calls()
            .into_iter()
            .find(|rpc| rpc.input().name() == M::NAME)
            .unwrap_or_else(|| panic!("{} is no call's request", M::NAME));
        let request = DynamicMessage::decode(rpc.input(), &*request.encode_to_vec());
        Self {
            rpc,
            request: request.expect("the same message"),
        }
    }
}

impl Call {
    /// The call that makes a REST request. `target` is path and query, from `/threads` or
    /// `/assistants` on.
    pub(crate) fn rest(method: &str, target: &str, body: &str) -> Self {
        let (path, query) = parts(target);
        // `/threads/runs` also looks like a thread: the route with fewer ids is meant.
        let rpc = calls()
            .into_iter()
            .filter(|rpc| rest(rpc, "method") == method && is_on(&rest(rpc, "path"), &path))
            .min_by_key(|rpc| rest(rpc, "path").matches('{').count())
            .unwrap_or_else(|| panic!("no call makes {method} {target}"));
        let mut call = Self {
            request: DynamicMessage::new(rpc.input()),
            rpc,
        };
        for (id, segment) in call.ids().into_iter().zip(call.id_segments(&path)) {
            call.set(&id, &segment);
        }
        for (name, value) in query {
            call.set(name.trim_end_matches("[]"), &value);
        }
        call.with_body(body)
    }

    /// The RPC's name.
    pub(crate) fn rpc(&self) -> &str {
        self.rpc.name()
    }

    /// The RPC.
    pub(crate) fn method(&self) -> &MethodDescriptor {
        &self.rpc
    }

    /// The request as a message that can be looked through.
    pub(crate) fn reflect(&self) -> &DynamicMessage {
        &self.request
    }

    /// The fields that are ids in the path, in order.
    pub(crate) fn ids(&self) -> Vec<String> {
        let path = rest(&self.rpc, "path");
        let id = |segment: &str| Some(segment.strip_prefix('{')?.strip_suffix('}')?.to_owned());
        path.split('/').filter_map(id).collect()
    }

    fn id_segments(&self, path: &[String]) -> Vec<String> {
        let route = rest(&self.rpc, "path");
        let segments = route.split('/').skip(1).zip(path);
        segments
            .filter(|(field, _)| field.starts_with('{'))
            .map(|(_, segment)| segment.clone())
            .collect()
    }

    /// Sets a field of the request from text, as a URL has it; of a list it adds one.
    pub(crate) fn set(&mut self, name: &str, text: &str) {
        let field = self
            .rpc
            .input()
            .get_field_by_name(name)
            .unwrap_or_else(|| panic!("{} has no {name}", self.rpc.input().name()));
        let value = match field.kind() {
            Kind::Int32 => Field::I32(text.parse().expect("a number")),
            Kind::Enum(of) => {
                let name = format!("SORT_ORDER_{}", text.to_uppercase());
                let value = of.get_value_by_name(&name).expect("an order");
                Field::EnumNumber(value.number())
            }
            _ => Field::String(text.to_owned()),
        };
        if field.is_list() {
            let list = self.request.get_field_mut(&field);
            list.as_list_mut().expect("a list").push(value);
        } else {
            self.request.set_field(&field, value);
        }
    }

    /// The same call with this body; none if it is empty.
    pub(crate) fn with_body(mut self, text: &str) -> Self {
        let Some((name, message)) = body(&self.rpc) else {
            assert_eq!(text, "", "{} has no body", self.rpc());
            return self;
        };
        self.request.clear_field_by_name(&name);
        if !text.is_empty() {
            let read = (root(&message).read)(text.as_bytes());
            let read = read.unwrap_or_else(|error| panic!("{error}: {text}"));
            let value = DynamicMessage::decode(message, &*read.message).expect("the same message");
            self.request.set_field_by_name(&name, Field::Message(value));
        }
        self
    }

    /// The same call whose body has this `extra_json`.
    pub(crate) fn with_extra(mut self, text: &str) -> Self {
        let (name, _) = body(&self.rpc).expect("a body");
        let value = self.request.get_field_by_name_mut(&name);
        let Some(Field::Message(message)) = value else {
            panic!("{name} is no message")
        };
        message.set_field_by_name("extra_json", Field::String(text.to_owned()));
        self
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

    /// Whether doing it twice is the same as doing it once, as the contract says.
    pub(crate) fn is_repeatable(&self) -> bool {
        let options = self.rpc.method_descriptor_proto().options.as_ref();
        let level = options.expect("options").idempotency_level();
        level != IdempotencyLevel::IdempotencyUnknown
    }

    /// Makes the call.
    pub(crate) async fn on(&self, gateway: impl Into<Channel>) -> Result<Answered, Status> {
        self.with(gateway, &[]).await
    }

    /// Makes the call, with metadata.
    pub(crate) async fn with(
        &self,
        gateway: impl Into<Channel>,
        metadata: &[(&'static str, &str)],
    ) -> Result<Answered, Status> {
        let mut request = Request::new(self.request.encode_to_vec());
        for (name, value) in metadata {
            request
                .metadata_mut()
                .append(*name, value.parse().expect("a value"));
        }
        let service = self.rpc.parent_service();
        let path = format!("/{}/{}", service.full_name(), self.rpc.name());
        let mut client = Grpc::new(gateway.into());
        let ready = client.ready().await;
        ready.map_err(|error| Status::unknown(format!("the channel is not ready: {error}")))?;
        let path = PathAndQuery::try_from(path).expect("a path");
        let answer = client.unary(request, path, Raw).await?;
        Ok(Answered::new(&self.rpc, answer))
    }
}

/// Messages as bytes: requests and answers are known by their descriptors only.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
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
    fn new(rpc: &MethodDescriptor, response: Response<Bytes>) -> Self {
        let (metadata, bytes, _) = response.into_parts();
        let message = DynamicMessage::decode(rpc.output(), &*bytes).expect("the RPC's answer");
        let mut extra = Vec::new();
        walk(&message, "", &mut |path, field, value| {
            if field.name() == "extra_json" {
                extra.push((
                    path.to_owned(),
                    value.as_str().unwrap_or_default().to_owned(),
                ));
            }
        });
        let text = (root(&rpc.output()).write)(&bytes);
        Self {
            json: serde_json::from_slice(&text).expect("JSON"),
            extra,
            metadata,
        }
    }
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

/// Whether a path is on a route such as `/threads/{thread_id}/runs`.
pub(crate) fn is_on(route: &str, path: &[String]) -> bool {
    let route: Vec<_> = route.split('/').skip(1).collect();
    let mut pairs = route.iter().zip(path);
    route.len() == path.len() && pairs.all(|(one, other)| one == other || one.starts_with('{'))
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
