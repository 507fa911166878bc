//! Callers that are kept from each other, over real sockets: a thread belongs to who made it.
//!
//! | file | promise |
//! |---|---|
//! | `matrix.rs` | every RPC, two callers, each kind of thread, each way to know callers |
//! | `marks.rs` | nobody sees, sets, changes or washes off a mark |
//! | `memory.rs` | how often marks are read, and when they are read again |
//! | `usage.rs` | what each caller used is counted, by its name |
//! | `assistants.rs` | the same of assistants |

mod api;
mod assistants;
#[path = "../access/certificates.rs"]
mod certificates;
#[path = "../access/issuer.rs"]
mod issuer;
mod marks;
mod matrix;
mod memory;
mod rows;
mod sources;
#[path = "../support/mod.rs"]
mod support;
mod usage;

use std::{fs, sync::Arc};

use api::Store;
use runs_gateway::v1::*;
use support::{
    gateway::{Gateway, spawn_gateway},
    upstream::Upstream,
};
use tempfile::TempDir;
use tonic::{Request, Status};

/// `printf %s secret | sha256sum`, and the same of `other`.
const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
const OTHER: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

/// The tokens of two callers.
const A: &str = "secret";
const B: &str = "other";

const KEY: &str = "runs_gateway_caller";

/// A gateway that isolates callers, and its upstream.
struct Isolated {
    gateway: Gateway,
    upstream: Upstream,
    store: Arc<Store>,
    _folder: TempDir,
}

impl Isolated {
    /// Callers are known by their tokens.
    async fn start(flags: &[&str]) -> Self {
        let tokens = format!("{SECRET} a\n{OTHER} b\n");
        Self::with(&[("--tokens-file", &tokens)], flags).await
    }

    /// With these files, each the value of a flag, and these flags.
    async fn with(files: &[(&str, &str)], flags: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let key = "k".repeat(32);
        let key = [("--isolation-key-file", &*key)];
        let files = files.iter().chain(&key);
        let files: Vec<_> = files
            .map(|(flag, text)| {
                let path = folder.path().join(flag.trim_start_matches('-'));
                fs::write(&path, text).expect("a file");
                [(*flag).to_owned(), path.display().to_string()]
            })
            .collect();
        let (store, upstream) = Store::upstream().await;
        let mut all = vec!["--upstream-api-key", "sk-own", "--isolate-callers"];
        all.extend(files.as_flattened().iter().map(String::as_str));
        all.extend(flags);
        let gateway = spawn_gateway(&upstream.url(), &all).await;
        Self {
            gateway,
            upstream,
            store,
            _folder: folder,
        }
    }

    /// The requests that the upstream has seen, from the `from`th on, as `METHOD target`.
    fn seen(&self, from: usize) -> Vec<String> {
        let requests = self.upstream.requests();
        let line = |it: &support::upstream::Recorded| format!("{} {}", it.method, it.target);
        requests[from..].iter().map(line).collect()
    }

    fn count(&self) -> usize {
        self.upstream.requests().len()
    }

    fn threads(&self) -> thread_service_client::ThreadServiceClient<tonic::transport::Channel> {
        thread_service_client::ThreadServiceClient::new(self.gateway.channel())
    }

    /// A thread that a caller made.
    async fn thread_of(&self, token: &str) -> String {
        let request = by(token, CreateThreadRequest::default());
        let made = self.threads().create_thread(request).await;
        made.expect("a thread").into_inner().id
    }

    async fn get(&self, token: &str, thread: &str) -> Result<ThreadResource, Status> {
        let thread_id = thread.to_owned();
        let request = by(token, GetThreadRequest { thread_id });
        let got = self.threads().get_thread(request).await;
        got.map(tonic::Response::into_inner)
    }
}

/// A request by the caller of this token.
fn by<M>(token: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().expect("a value");
    request.metadata_mut().insert("authorization", value);
    request
}
