//! runs-gateway: gRPC in front of Runs REST APIs.
//!
//! From the top down: an arrow between modules points down this map (`tests/arrows.rs`).
//!
//! | module | what it is, and what only it knows |
//! |---|---|
//! | [`demo`], [`dev`], [`healthcheck`], [`terminal`] | the gateway in front of the embedded API, a client that shows what it does; a question to a running gateway, for container probes; runs on a terminal (`run`, `watch`) |
//! | `connection`, [`package_files`] | a connection to a running gateway, for commands that call one; man pages and shell completions, from the command line |
//! | [`app`] | all of it put together |
//! | [`config`] | flags and environment as typed configuration |
//! | [`chat`] | a model behind a chat-completions endpoint, for the embedded API |
//! | [`embedded`] | the same REST API served in-process, for trying out, developing and testing |
//! | [`admin`] | the admin port: metrics, health, version |
//! | [`service`] | the gRPC services: validate, call, answer |
//! | [`server`] | connections and calls: their limits, health, reflection, drain |
//! | [`runs`] | runs as streams: from the upstream's events, from polling, from the event log |
//! | [`upstream`] | the REST side: HTTP as a client, and the framing of server-sent events |
//! | [`telemetry`] | metrics, traces, one log line per call |
//! | [`error`] | one error, and the only mapping from errors to gRPC status |
//! | [`shares`] | how much of what is limited one caller may hold |
//! | [`reloadable`] | what is read from files that may change: certificates, keys, tokens |
//! | `pem` | certificates and keys |
//! | `setting` | how settings are read from flags, for the structs of settings wherever they are |
//! | `registered_waker` | which task a pending future will wake, so that it is not asked for nothing |
//! | [`conversation`], [`resuming`] | the caller's side of `ConverseRun`, and of a stream that resumes by itself, for services in Rust |
//! | `codec`, [`json`], [`wire`] | the codec: how a message looks as JSON, and (`wire`) how it is written as protobuf; `codec` has the generated lines |
//! | [`v1`] | the contract, generated from `proto/` |
//!
//! Which of it is built:
//!
//! - By the feature `gateway`, which is the default, all of it, and the binary.
//! - By `client` alone what a caller in Rust needs: [`v1`] with its clients, [`json`],
//!   [`conversation`] and [`resuming`]. TLS is the caller's choice, by a feature of tonic.
//! - Without features [`v1`] without clients, and [`json`].
//!
//! What must stay true, wherever it is cut:
//!
//! - **Nothing is lost.** What a message cannot hold is in its `extra_json`; an event that is not
//!   known is passed on whole; a stream that is cut is mended or says how to resume.
//! - **Nothing is done twice.** A create or a submit is sent again only if it was certainly not
//!   done; if its fate is not known, that is what the caller is told.
//! - **Nothing is unbounded.** Every queue, buffer, wait and count has a limit, and a flag.
//! - **Nothing secret is written.** Keys, prompts and bodies are in no log and no error.

mod codec;
#[cfg(feature = "client")]
pub mod conversation;
#[cfg_attr(
    not(feature = "gateway"),
    expect(dead_code, unused_imports, reason = "the gateway also edits JSON")
)]
pub mod json;
#[cfg(feature = "client")]
pub mod resuming;
pub mod v1;

// One `#[cfg]` for all of them. rustfmt finds the files of modules in this macro, and in no other.
cfg_if::cfg_if! {
    if #[cfg(feature = "gateway")] {
        pub mod admin;
        pub mod app;
        pub mod chat;
        pub mod config;
        mod connection;
        pub mod demo;
        pub mod dev;
        pub mod embedded;
        pub mod error;
        pub mod healthcheck;
        pub mod package_files;
        mod pem;
        mod registered_waker;
        pub mod reloadable;
        pub mod runs;
        pub mod server;
        pub mod service;
        mod setting;
        pub mod shares;
        pub mod telemetry;
        pub mod terminal;
        pub mod upstream;
        pub mod wire;
    }
}
