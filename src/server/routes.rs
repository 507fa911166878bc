//! What is served: the gateway's own services, and health and reflection beside them.
//!
//! Why not tonic's `Routes`: it is axum's router, which puts three more boxes around every call and
//! its body. A method is named by two segments of a path, and what is named so needs no router.

use std::{collections::BTreeMap, convert::Infallible, fmt, sync::Arc};

use http::{Request, Response};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service},
    server::NamedService,
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::v1::DESCRIPTOR;

/// Services by name.
#[derive(Clone, Default)]
pub struct Routes(BTreeMap<&'static str, Arc<Calling>>);

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
        self.0.insert(
            S::NAME,
            Arc::new(move |request| service.clone().call(request)),
        );
        self
    }

    /// Calls the service that the path names. What is not there is UNIMPLEMENTED.
    pub(super) fn call(&self, request: Request<Body>) -> Answer {
        let name = request.uri().path().split('/').nth(1).unwrap_or_default();
        match self.0.get(name) {
            Some(service) => service(request),
            None => Box::pin(async { Ok(Status::unimplemented("no such service").into_http()) }),
        }
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(self.0.keys()).finish()
    }
}

/// Whether a call of this path is one of health or reflection. Whoever routes calls here has to get
/// an answer when there is no place for any other.
pub(super) fn is_infra_stream(path: &str) -> bool {
    ["/grpc.health.", "/grpc.reflection."]
        .iter()
        .any(|service| path.starts_with(service))
}

/// Whether it is one of those that are over at once: all but the streams.
pub(super) fn is_asking_health(path: &str) -> bool {
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
    ]
    .contains(&path)
}

/// What [`grpc.health.v1.Health`](tonic_health) answers.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
    /// What it speaks of: the server as a whole (`""`), and each of the gateway's services.
    names: Arc<[&'static str]>,
}

impl Health {
    async fn set(&self, status: ServingStatus) {
        for name in self.names.iter() {
            self.reporter.set_service_status(name, status).await;
        }
    }

    /// Tells whoever routes calls here to stop.
    pub(super) async fn not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    /// Ends the streams of those who watch: they last for ever, and would hold a drain until its
    /// timeout.
    pub(super) async fn close(mut self) {
        for name in self.names.iter() {
            self.reporter.clear_service_status(name).await;
        }
    }
}

/// Adds health (everything SERVING) and reflection (v1 and v1alpha, comments included) to the
/// gateway's services.
///
/// # Panics
///
/// If a descriptor that this program was built with is malformed.
pub async fn routes(services: Routes) -> (Routes, Health) {
    let (reporter, service) = tonic_health::server::health_reporter();
    let names = [""].into_iter().chain(services.0.keys().copied()).collect();
    let health = Health { reporter, names };
    health.set(ServingStatus::Serving).await;

    // Both versions describe all that is served, each other among it. v1alpha is what many clients
    // still ask first.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR)
            // The details of errors, for clients that know them from reflection alone.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(
                tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
            )
    };
    let services = services
        .with(service)
        .with(
            reflection()
                .build_v1()
                .expect("embedded descriptors are valid"),
        )
        .with(
            reflection()
                .build_v1alpha()
                .expect("embedded descriptors are valid"),
        );
    (services, health)
}
