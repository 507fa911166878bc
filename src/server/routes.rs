//! What is served beside the gateway's own services: health and reflection.

use tonic::service::{Routes, RoutesBuilder};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::v1::{DESCRIPTOR, run_service_server, run_step_service_server};

/// What health speaks of: the server as a whole, and each service.
const NAMES: [&str; 3] = ["", run_service_server::SERVICE_NAME, run_step_service_server::SERVICE_NAME];

/// Whether a call of this path is one of health or reflection. They cost next to nothing, and whoever routes calls here has to get an answer
/// when there is no place for any other.
pub(super) fn is_aside(path: &str) -> bool {
    ["/grpc.health.", "/grpc.reflection."].iter().any(|service| path.starts_with(service))
}

/// What [`grpc.health.v1.Health`](tonic_health) answers.
#[derive(Debug, Clone)]
pub struct Health(HealthReporter);

impl Health {
    async fn set(&self, status: ServingStatus) {
        for name in NAMES {
            self.0.set_service_status(name, status).await;
        }
    }

    /// Tells whoever routes calls here to stop.
    pub(super) async fn not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    /// Ends the streams of those who watch: they last for ever, and would hold a drain until its timeout.
    pub(super) async fn close(mut self) {
        for name in NAMES {
            self.0.clear_service_status(name).await;
        }
    }
}

/// Adds health (everything SERVING) and reflection (v1 and v1alpha, comments included) to the gateway's services.
///
/// # Panics
///
/// If a descriptor that this program was built with is malformed.
pub async fn routes(mut services: RoutesBuilder) -> (Routes, Health) {
    let (reporter, service) = tonic_health::server::health_reporter();
    services.add_service(service);
    let health = Health(reporter);
    health.set(ServingStatus::Serving).await;

    // Both versions describe all that is served, each other among it. v1alpha is what many clients still ask first.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR)
            // The details of errors, for clients that know them from reflection alone.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
    };
    services.add_service(reflection().build_v1().expect("embedded descriptors are valid"));
    services.add_service(reflection().build_v1alpha().expect("embedded descriptors are valid"));
    (services.routes().prepare(), health)
}
