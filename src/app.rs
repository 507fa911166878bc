//! The gateway put together: upstream client, services, server.

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;

use crate::{config, rest, server, service::Gateway, watched::Watched};

/// A gateway that is ready to serve. Made apart from [`App::serve`], so that what is wrong with the configuration is known before a port is taken.
#[derive(Debug)]
pub struct App {
    gateway: Gateway,
    max_request_bytes: usize,
    limits: server::Limits,
    access: server::Access,
    tls: Option<Watched<ServerConfig>>,
}

impl App {
    /// Prepares the gateway: reads the files that the configuration names. The upstream need not be there. Has to be called in a runtime.
    pub fn new(config: &config::Serve) -> Result<Self, config::Invalid> {
        let client = rest::Client::new(&config.upstream).map_err(config::Invalid::new)?;
        Ok(Self {
            gateway: Gateway::new(client, config.streams.clone(), config.forwarded()),
            max_request_bytes: config.max_request_bytes,
            limits: config.limits.clone(),
            access: config.access.open()?,
            tls: config
                .access
                .tls
                .clone()
                .map(|files| files.watch(config.access.reload_interval))
                .transpose()
                .map_err(config::Invalid::new)?,
        })
    }

    /// Serves on `listener` until `shutdown`, then drains. Returns when all is closed.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let mut services = RoutesBuilder::default();
        services.add_service(self.gateway.run_service(self.max_request_bytes));
        services.add_service(self.gateway.run_step_service(self.max_request_bytes));
        let (routes, health) = server::routes(services).await;
        let detached = self.gateway.detached();
        let served = server::Served { routes, health, access: self.access, tls: self.tls, detached };
        server::serve(listener, served, self.limits, shutdown).await;
    }
}
