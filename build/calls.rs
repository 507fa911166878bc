//! Writes what a REST call needs, from its RPC in the contract: how its request is made and what
//! makes its answer whole (for `src/upstream/calls.rs`), the method of the client, and the gRPC
//! services (for `src/service/calls.rs`).
//!
//! Must hold: a call is its RPC's options (`rest.proto`, `idempotency_level`) and nothing else. A
//! request field that is neither path, body nor a known kind of query fails the build.
//!
//! An id that would make a request another route's is known here, too: see [`not_ids`].
//!
//! By hand are the calls with a life of their own: [`OWN_METHODS`], [`OWN_HANDLERS`], streams.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write as _,
};

use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
};

use crate::wire::snake;

/// Calls whose method of the client is written by hand (`src/upstream/endpoints.rs`).
const OWN_METHODS: [&str; 3] = ["SubmitToolOutputs", "CancelRun", "ListAssistants"];

/// Unary calls whose handler is written by hand (`src/service/run.rs`).
const OWN_HANDLERS: [&str; 1] = ["WaitRun"];

/// Fields of a create that are the gateway's own, and no part of its REST request.
const OWN_FIELDS: [&str; 2] = ["request_id", "on_active_run"];

/// The value of the option `rest` of an RPC.
struct Route {
    method: String,
    path: String,
    body: String,
    body_optional: bool,
    stream: bool,
    deleted: String,
}

impl Route {
    fn of(rpc: &MethodDescriptor) -> Result<Self, Box<dyn Error>> {
        let extension = rpc
            .parent_pool()
            .get_extension_by_name("runsgateway.v1.rest")
            .ok_or("the contract has no option rest")?;
        let options = rpc.options();
        let value = options.get_extension(&extension);
        let route: &DynamicMessage = value.as_message().ok_or("rest is no message")?;
        let text = |name: &str| {
            let value = route.get_field_by_name(name);
            value
                .and_then(|value| value.as_str().map(str::to_owned))
                .unwrap_or_default()
        };
        let flag = |name: &str| {
            let value = route.get_field_by_name(name);
            value.and_then(|value| value.as_bool()).unwrap_or_default()
        };
        let found = Self {
            method: text("method"),
            path: text("path"),
            body: text("body"),
            body_optional: flag("body_optional"),
            stream: flag("stream"),
            deleted: text("deleted"),
        };
        if found.method.is_empty() || (found.method == "DELETE") == found.deleted.is_empty() {
            return Err(format!("{} lacks its route or a part of it", rpc.full_name()).into());
        }
        Ok(found)
    }

    /// The names of the ids in the path, in order.
    fn ids(&self) -> Vec<&str> {
        let id = |segment| str::strip_suffix(str::strip_prefix(segment, '{')?, '}');
        self.path.split('/').filter_map(id).collect()
    }
}

/// Creates that may be sent twice if they have a `request_id`: what they make can be looked for, as
/// its list has the same path.
fn repeatable_by_id(pool: &DescriptorPool) -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let rpcs = rpcs(pool)?;
    let is_listed = |path: &str| {
        let mut lists = rpcs.iter().filter(|(_, it)| it.method == "GET");
        lists.any(|(_, it)| it.path == path)
    };
    let creates = rpcs.iter().filter(|(rpc, route)| {
        let has_id = rpc.input().get_field_by_name("request_id").is_some();
        has_id && !rpc.is_server_streaming() && is_listed(&route.path)
    });
    Ok(creates
        .map(|(rpc, route)| (rpc.name().to_owned(), route.path.clone()))
        .collect())
}

/// Whether this modifies what creates mark: the mark stays.
fn keeps_mark(route: &Route, creates: &BTreeMap<String, String>) -> bool {
    let listed = route.path.rsplit_once("/{").map(|(path, _)| path);
    let is_of_one = route.path.ends_with('}');
    route.method == "POST" && is_of_one && creates.values().any(|it| Some(&**it) == listed)
}

fn rpcs(pool: &DescriptorPool) -> Result<Vec<(MethodDescriptor, Route)>, Box<dyn Error>> {
    let of_contract = pool
        .services()
        .filter(|it| it.package_name() == "runsgateway.v1");
    let rpcs: Vec<_> = of_contract
        .flat_map(|it| it.methods().collect::<Vec<_>>())
        .collect();
    rpcs.into_iter()
        .map(|rpc| Route::of(&rpc).map(|route| (rpc, route)))
        .collect()
}

fn idempotency(rpc: &MethodDescriptor) -> &'static str {
    use prost_reflect::prost_types::method_options::IdempotencyLevel as Level;
    let options = rpc.method_descriptor_proto().options.as_ref();
    match options.map_or(
        Level::IdempotencyUnknown,
        prost_reflect::prost_types::MethodOptions::idempotency_level,
    ) {
        Level::IdempotencyUnknown => "NonIdempotent",
        Level::NoSideEffects | Level::Idempotent => "Idempotent",
    }
}

/// Requests, answers, and methods of the client.
pub(crate) fn client(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let (mut out, mut methods) = (String::new(), String::new());
    let mut answers = BTreeMap::new();
    // Of a message that is the whole answer: the name that its id has in routes.
    let mut own_ids = BTreeMap::new();
    let creates = repeatable_by_id(pool)?;
    for (rpc, route) in rpcs(pool)? {
        let unary = !rpc.is_server_streaming();
        if OWN_HANDLERS.contains(&rpc.name()) || !(unary || route.stream) {
            continue;
        }
        request(&mut out, &rpc, &route)?;
        if matches!(&*route.method, "GET" | "DELETE") && route.path.ends_with('}') {
            let id = route.ids().last().map(|id| (*id).to_owned());
            own_ids.extend(id.map(|id| (rpc.output().name().to_owned(), id)));
        }
        if unary {
            answers.insert(rpc.output().name().to_owned(), rpc.output());
        }
        if !OWN_METHODS.contains(&rpc.name()) {
            method(&mut methods, &rpc, &route, keeps_mark(&route, &creates))?;
        }
        if !route.deleted.is_empty() {
            deletion(&mut out, &rpc, &route)?;
        }
    }
    let ids: BTreeSet<String> = rpcs(pool)?
        .iter()
        .flat_map(|(_, route)| route.ids().into_iter().map(str::to_owned))
        .collect();
    for message in answers.values() {
        answer(&mut out, message, own_ids.get(message.name()), &ids)?;
    }
    write!(out, "impl Client {{\n{methods}}}\n")?;
    Ok(out)
}

/// The words that are no ids in a route because another route has them in that place: with one as
/// its id, a request would be the other route's. The HTTP method does not matter: what one upstream
/// refuses, another may take.
pub(crate) fn not_ids(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    let routes: BTreeSet<_> = rpcs(pool)?
        .into_iter()
        .map(|(_, route)| route.path)
        .collect();
    writeln!(
        out,
        "/// Route, id, and a word that stands in its place in another route.\nconst NOT_IDS: &[(&str, &str, &str)] = &["
    )?;
    let is_id = |segment: &str| segment.starts_with('{');
    for (one, other) in routes
        .iter()
        .flat_map(|one| routes.iter().map(move |other| (one, other)))
    {
        let pairs = || one.split('/').zip(other.split('/'));
        let overlap = one.split('/').count() == other.split('/').count()
            && pairs().all(|(own, word)| own == word || is_id(own) || is_id(word));
        for (own, word) in pairs().filter(|_| overlap) {
            if is_id(own) && !is_id(word) {
                writeln!(
                    out,
                    "    ({one:?}, {:?}, {word:?}),",
                    own.trim_matches(['{', '}'])
                )?;
            }
        }
    }
    writeln!(out, "];")?;
    Ok(out)
}

/// How a call's request is made.
fn request(out: &mut String, rpc: &MethodDescriptor, route: &Route) -> Result<(), Box<dyn Error>> {
    let (input, ids) = (rpc.input(), route.ids());
    writeln!(
        out,
        "impl RestCall for {} {{\n    fn request(&self) -> Result<Request, Error> {{",
        input.name()
    )?;
    let path: Vec<_> = ids
        .iter()
        .map(|id| format!("(\"{id}\", self.{id}.as_str())"))
        .collect();
    writeln!(
        out,
        "        let request = Request::new(Method::{}, \"{}\", &[{}], Idempotency::{})?;",
        route.method,
        route.path,
        path.join(", "),
        idempotency(rpc)
    )?;
    let mut query = String::new();
    for field in input.fields() {
        let name = field.name();
        let own = route.stream && name == "options" || OWN_FIELDS.contains(&name);
        if !(ids.contains(&name) || name == route.body || own) {
            write!(query, ".{}", parameter(&field)?)?;
        }
    }
    if !query.is_empty() {
        writeln!(
            out,
            "        let request = request.query(Query::default(){query});"
        )?;
    }
    if !route.body.is_empty() {
        let rule = if route.body_optional {
            "body_or_empty"
        } else {
            "body"
        };
        writeln!(
            out,
            "        let request = request.body(\"{0}\", {rule}(\"{0}\", self.{0}.as_ref())?);",
            route.body
        )?;
    }
    if rpc
        .name()
        .trim_start_matches("Stream")
        .starts_with("Create")
    {
        writeln!(out, "        let request = request.with_idempotency_key();")?;
    }
    if route.stream {
        writeln!(out, "        let request = request.streamed();")?;
    }
    writeln!(out, "        Ok(request)\n    }}\n}}\n")?;
    Ok(())
}

/// The call that adds a field to a query.
fn parameter(field: &FieldDescriptor) -> Result<String, Box<dyn Error>> {
    let name = field.name();
    Ok(match (field.kind(), name) {
        (Kind::Int32, "limit") => "limit(self.limit)?".to_owned(),
        (Kind::Enum(of), _) if of.name() == "SortOrder" => "order(self.order)?".to_owned(),
        (Kind::String, _) if field.is_list() => format!("list(\"{name}\", &self.{name})?"),
        (Kind::String, _) => format!("text(\"{name}\", &self.{name})?"),
        _ => return Err(format!("{} is no kind of query", field.full_name()).into()),
    })
}

/// What makes an answer whole: a list has `data`, a resource has an `id`. And what makes it the one
/// that was asked for: the `ids` that it has are those in the path. `own_id` is the name that a
/// resource's own id has there.
fn answer(
    out: &mut String,
    message: &MessageDescriptor,
    own_id: Option<&String>,
    ids: &BTreeSet<String>,
) -> Result<(), Box<dyn Error>> {
    let name = message.name();
    let (text, whole) = if message.get_field_by_name("data").is_some() {
        (
            "text",
            "!self.data.is_empty() || json::has_list(text, \"data\")",
        )
    } else if message.get_field_by_name("id").is_some() {
        ("_", "!self.id.is_empty()")
    } else {
        return Err(format!("{name} has neither id nor data").into());
    };
    writeln!(
        out,
        "impl Answerable for {name} {{\n    fn is_whole(&self, {text}: &[u8]) -> bool {{\n        {whole}\n    }}"
    )?;
    let of = |field: &str, name: &str| format!("target.names(\"{name}\", &self.{field})");
    let own = own_id.map(|own| of("id", own)).into_iter().collect();
    let fields = message.fields().filter(|it| ids.contains(it.name()));
    let parents = fields.map(|it| of(it.name(), it.name())).collect();
    for (name, named) in [("is_of", own), ("is_within", parents)] {
        let named: Vec<String> = named;
        if !named.is_empty() {
            writeln!(
                out,
                "    fn {name}(&self, target: &Target) -> bool {{\n        {}\n    }}",
                named.join(" && ")
            )?;
        }
    }
    if name == "Run" {
        writeln!(
            out,
            "    fn run(&self) -> Option<&Run> {{\n        Some(self)\n    }}"
        )?;
    }
    writeln!(out, "}}\n")?;
    Ok(())
}

/// The answer to a deletion that was done already.
fn deletion(out: &mut String, rpc: &MethodDescriptor, route: &Route) -> Result<(), Box<dyn Error>> {
    let ids = route.ids();
    let id = ids.last().ok_or("a deletion has an id")?;
    writeln!(
        out,
        "impl Deletion for {0} {{\n    type Answer = {1};\n    fn deleted(&self) -> {1} {{\n        {1} {{\n            id: self.{id}.clone(),\n            object: \"{2}\".to_owned(),\n            deleted: Some(true),\n            extra_json: String::new(),\n        }}\n    }}\n}}\n",
        rpc.input().name(),
        rpc.output().name(),
        route.deleted
    )?;
    Ok(())
}

/// The method of the client.
fn method(
    out: &mut String,
    rpc: &MethodDescriptor,
    route: &Route,
    keeps_mark: bool,
) -> Result<(), Box<dyn Error>> {
    let answer = rpc.output().name().to_owned();
    let (with, answered, send) = if route.stream {
        (
            " with `stream`",
            "UpstreamReply".to_owned(),
            "self.open(caller, request.request()?)",
        )
    } else if keeps_mark {
        (
            "",
            format!("Answer<{answer}>"),
            "self.send_modification(caller, request.request()?)",
        )
    } else if route.deleted.is_empty() {
        (
            "",
            format!("Answer<{answer}>"),
            "self.send(caller, request.request()?)",
        )
    } else {
        (
            "",
            format!("Answer<{answer}>"),
            "self.send_deletion(caller, request)",
        )
    };
    writeln!(
        out,
        "    /// `{} {}`{with}\n    pub async fn {}(&self, caller: &Caller, request: &{}) -> Result<{answered}, Error> {{\n        {send}.await\n    }}",
        route.method,
        route.path,
        snake(rpc.name()),
        rpc.input().name()
    )?;
    Ok(())
}

/// The gRPC services, and all of them as they are served.
pub(crate) fn services(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let (mut out, mut served) = (String::new(), String::new());
    let creates = repeatable_by_id(pool)?;
    for service in pool
        .services()
        .filter(|it| it.package_name() == "runsgateway.v1")
    {
        let (name, module) = (service.name(), snake(service.name()));
        writeln!(
            out,
            "#[tonic::async_trait]\nimpl {module}_server::{name} for Gateway {{"
        )?;
        for rpc in service
            .methods()
            .filter(MethodDescriptor::is_server_streaming)
        {
            writeln!(out, "    type {}Stream = RunEvents;", rpc.name())?;
        }
        for rpc in service.methods() {
            handler(&mut out, &rpc, creates.contains_key(rpc.name()))?;
        }
        writeln!(out, "}}\n")?;
        writeln!(
            served,
            "            .with({module}_server::{name}Server::new(self.clone()).max_decoding_message_size(usize::MAX))"
        )?;
    }
    writeln!(
        out,
        "impl Gateway {{\n    /// All services of the contract. The server bounds messages.\n    pub fn services(&self) -> Routes {{\n        Routes::default()\n{served}    }}\n}}"
    )?;
    Ok(out)
}

fn handler(
    out: &mut String,
    rpc: &MethodDescriptor,
    repeatable_by_id: bool,
) -> Result<(), Box<dyn Error>> {
    let (name, streams) = (snake(rpc.name()), rpc.is_server_streaming());
    let wrap = |wrapper, inner: String, it: bool| {
        if it {
            format!("{wrapper}<{inner}>")
        } else {
            inner
        }
    };
    let input = wrap(
        "Streaming",
        rpc.input().name().to_owned(),
        rpc.is_client_streaming(),
    );
    let answer = if streams {
        "RunEvents".to_owned()
    } else {
        rpc.output().name().to_owned()
    };
    writeln!(
        out,
        "    async fn {name}(&self, request: Request<{input}>) -> Result<Response<{answer}>, Status> {{"
    )?;
    let idempotency = idempotency(rpc);
    if streams {
        writeln!(
            out,
            "        run::{name}(self, request, Idempotency::{idempotency}).await\n    }}"
        )?;
        return Ok(());
    }
    if OWN_HANDLERS.contains(&rpc.name()) {
        writeln!(out, "        run::{name}(self, request).await\n    }}")?;
        return Ok(());
    }
    if rpc.input().get_field_by_name("request_id").is_some() {
        let open = if repeatable_by_id {
            "open_create(request, |it| !it.request_id.is_empty())"
        } else {
            "open_once(request)"
        };
        writeln!(
            out,
            "        let (caller, request) = self.{open};\n        let answered = self.streams.create(\"{}\", &caller, &request).await;\n        answer(&caller.call, answered)\n    }}",
            rpc.name()
        )?;
        return Ok(());
    }
    let open = if idempotency == "NonIdempotent" {
        "open_once"
    } else {
        "open"
    };
    writeln!(
        out,
        "        let (caller, request) = self.{open}(request);\n        let answered = self.upstream.{name}(&caller, &request).await;"
    )?;
    // Whoever watches the run learns of the change at once.
    let is_run = rpc.input().get_field_by_name("run_id").is_some();
    if is_run && Route::of(rpc)?.method != "GET" {
        writeln!(
            out,
            "        if is_of_run(&answered) {{\n            self.streams.touched(&request.thread_id, &request.run_id);\n        }}"
        )?;
    }
    writeln!(out, "        answer(&caller.call, answered)\n    }}")?;
    Ok(())
}
