//! What is served: the gateway's own services, and health and reflection beside them.
//!
//! Why not tonic's `Routes`: it is axum's router, which puts three more boxes around every call and
//! its body. A method is named by two segments of a path, and what is named so needs no router.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    fmt,
    sync::Arc,
};

use http::{HeaderValue, Request, Response};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service},
    server::NamedService,
};
use tonic_health::pb::health_server;
use tonic_reflection::pb::{v1, v1alpha};

use super::{health::Health, reflection};
use crate::v1::DESCRIPTOR;

/// Services by name.
#[derive(Clone, Default)]
pub struct Routes {
    services: BTreeMap<&'static str, Arc<Calling>>,
    /// The paths of methods, and whether each takes one message and not a stream of them.
    one_message: HashMap<String, bool>,
}

type Calling = dyn Fn(Request<Body>) -> Answer + Send + Sync;
type Answer = BoxFuture<Response<Body>, Infallible>;

impl Routes {
    /// Adds a service as tonic generates them, always ready. One of the same name is replaced.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>
            + NamedService,
        S: Clone + Send + Sync + 'static,
    {
        self.services.insert(
            S::NAME,
            Arc::new(move |request| service.clone().call(request)),
        );
        self
    }

    /// Whether the method of this path takes one message, and not a stream of them.
    pub(super) fn takes_one_message(&self, path: &str) -> bool {
        self.one_message.get(path) == Some(&true)
    }

    /// Whether it is known to take a stream of messages.
    pub(super) fn takes_many_messages(&self, path: &str) -> bool {
        self.one_message.get(path) == Some(&false)
    }

    /// Calls the service that the path names. What is not there is UNIMPLEMENTED.
    pub(super) fn call(&self, request: Request<Body>) -> Answer {
        let name = request.uri().path().split('/').nth(1).unwrap_or_default();
        match self.services.get(name) {
            Some(service) => service(request),
            None => Box::pin(async { Ok(Status::unimplemented("no such service").into_http()) }),
        }
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(self.services.keys()).finish()
    }
}

/// Health and reflection.
const INFRA: [&str; 3] = [
    health_server::SERVICE_NAME,
    v1::server_reflection_server::SERVICE_NAME,
    v1alpha::server_reflection_server::SERVICE_NAME,
];

/// Whether a call of this path is one of health or reflection, written as it is called: one service
/// and one method. Whoever routes calls here has to get an answer when there is no place for any
/// other.
pub(super) fn is_infra(path: &str) -> bool {
    let names = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    names.is_some_and(|(service, method)| INFRA.contains(&service) && !method.contains('/'))
}

/// Whether it is one of those that are over at once: all but the streams.
pub(super) fn is_asking_health(path: &str) -> bool {
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
    ]
    .contains(&path)
}

/// Adds health (everything SERVING) and reflection (v1 and v1alpha, comments included) to the
/// gateway's services.
///
/// # Panics
///
/// If a descriptor that this program was built with is malformed.
pub fn routes(services: Routes) -> (Routes, Health) {
    // The server as a whole, and each service.
    let names: Vec<_> = [""]
        .into_iter()
        .chain(services.services.keys().copied())
        .collect();
    let health = Health::serving(&names);
    // Both versions describe all that is served, each other among it. v1alpha is what many clients
    // still ask first.
    let index = reflection::Index::new(&[
        DESCRIPTOR,
        // The details of errors, for clients that know them from reflection alone.
        tonic_types::pb::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        v1::FILE_DESCRIPTOR_SET,
        v1alpha::FILE_DESCRIPTOR_SET,
    ]);
    let index = Arc::new(index.expect("embedded descriptors are valid"));
    let one_message = index.one_message.clone();
    let services = Routes {
        one_message,
        ..services
    };
    let services = services
        .with(health_server::HealthServer::new(health.clone()))
        .with(reflection::v1::service(Arc::clone(&index)))
        .with(reflection::v1alpha::service(index));
    (services, health)
}

/// Whether a request of this type is one of gRPC.
pub(super) fn is_grpc(content_type: Option<&HeaderValue>) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let parts = content_type.and_then(|it| it.as_bytes().trim_ascii().split_at_checked(GRPC.len()));
    parts.is_some_and(|(grpc, more)| {
        let ends = matches!(more.first(), None | Some(b'+' | b';' | b' ' | b'\t'));
        grpc.eq_ignore_ascii_case(GRPC) && ends
    })
}
