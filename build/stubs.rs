//! Service stubs: clients and servers, as tonic-build writes them, but for one type. A server sends
//! the events of a stream as [`SENT`], of which some are encoded already; a client reads messages.

use prost_build::{Service, ServiceGenerator};

/// What stands for an event where it is sent.
const SENT: &str = "crate::runs::StreamedEvent";

pub(crate) struct Stubs {
    clients: Box<dyn ServiceGenerator>,
    servers: Box<dyn ServiceGenerator>,
}

impl Stubs {
    pub(crate) fn new() -> Self {
        let stubs = || tonic_build::configure().codec_path("crate::service::BoundedCodec");
        Self {
            clients: stubs().build_server(false).service_generator(),
            servers: stubs().build_client(false).service_generator(),
        }
    }
}

impl ServiceGenerator for Stubs {
    fn generate(&mut self, mut service: Service, out: &mut String) {
        self.clients.generate(service.clone(), out);
        for rpc in service.methods.iter_mut().filter(|it| it.server_streaming) {
            assert_eq!(rpc.output_type, "RunEvent", "all streams are of events");
            SENT.clone_into(&mut rpc.output_type);
        }
        self.servers.generate(service, out);
    }

    fn finalize(&mut self, out: &mut String) {
        self.clients.finalize(out);
        self.servers.finalize(out);
    }

    fn finalize_package(&mut self, package: &str, out: &mut String) {
        self.clients.finalize_package(package, out);
        self.servers.finalize_package(package, out);
    }
}
