//! The REST side: the only module that knows HTTP as a client.
//!
//! | file | idea |
//! |---|---|
//! | `settings.rs` | the upstream and how to talk to it |
//! | `auth.rs` | how a credential is sent |
//! | `caller.rs` | for whom a request is made |
//! | `request.rs` | one request |
//! | `client.rs` | the client: requests that may be sent, each attempt at one, and its answer |
//! | `calls.rs` | one method per REST endpoint, generated from the contract |
//! | `endpoints.rs` | from an RPC's request to a REST request; the calls written by hand |
//! | `target.rs` | paths and queries: nothing that a caller sends can change which endpoint is called |
//! | `transport.rs` | the HTTP clients: key, TLS, renewal |
//! | `chat.rs` | chat completions, of a model behind the embedded API |
//! | `document.rs` | a small document by its URL, such as an issuer's keys |
//! | `answerable.rs` | the messages that it answers with |
//! | `answer.rs` | from an HTTP answer to a message or an error |
//! | `error_body/` | what an error's body says, in any of its shapes |
//! | `packing.rs` | how an answer's body is packed |
//! | `delay.rs`, `delay/` | how long an upstream asks to wait |
//! | `failure.rs` | why there is no answer, and whether the request was sent |
//! | `retry.rs` | the one retry loop |
//! | `marks.rs` | the gateway's own pairs in metadata: nobody else writes or sees them |
//! | `create_mark.rs` | the mark of a create: which `request_id` made a resource |
//! | `creates.rs` | creates that are marked, and how what they made is found again |
//! | `reconcile.rs` | writes of which nobody knows whether they took effect: the run tells |
//! | `required_action.rs` | what a run in `requires_action` waits for, and what a submit gives |
//! | `key_command.rs` | a key that expires, from a command that prints it |
//! | `own_secrets.rs` | the gateway's own secrets, which no caller reads |
//! | `caller_mark.rs` | the mark of a caller: whose a resource is |
//! | `isolation/` | whose a thread is, and who may use it |
//! | `admission.rs` | how many requests there are at a time, and whose turn it is |
//! | `stream.rs` | event streams: a client of their own, frames as they come |
//! | `sse.rs` | the framing of server-sent events, a pure parser |
//!
//! Must hold: nothing but `retry.rs` sends a request twice. Redirects are not followed (a 307
//! replays bodies, and a named key header would cross hosts), the client's own resending is off (it
//! repeats POSTs), and no proxy is taken from the environment.

mod admission;
mod answer;
mod answerable;
mod auth;
mod caller;
mod caller_mark;
mod calls;
mod chat;
mod client;
mod create_mark;
mod creates;
mod delay;
mod document;
mod endpoints;
mod error_body;
mod failure;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod isolation;
mod key_command;
mod marks;
mod own_secrets;
mod packing;
mod reconcile;
mod request;
mod required_action;
mod retry;
mod settings;
pub mod sse;
mod stream;
mod target;
mod transport;

pub use self::{
    admission::RequestLimits,
    answer::{Answer, SHOWN_HEADERS, error_event},
    auth::AuthStyle,
    caller::{Caller, IDEMPOTENCY_KEY, Identity},
    caller_mark::{CallerMark, MarkKey},
    client::Client,
    create_mark::CreateMark,
    creates::{Findable, MarkedCreate},
    document::fetch_document,
    isolation::{IsolationRules, Unmarked},
    key_command::KeyCommand,
    retry::RetryLimits,
    settings::{HttpVersion, Upstream, UpstreamFiles, UpstreamLimits},
    stream::{EventStream, StreamBroken, UpstreamReply},
    transport::upstream_key,
};
pub(crate) use self::{
    chat::ChatReply,
    error_body::{is_error, without_mark},
    required_action::Wanted,
};
