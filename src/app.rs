//! The gateway put together: upstream client, services, server.

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    admin, config,
    reloadable::Reloadable,
    server,
    service::Gateway,
    shares::Accepted,
    telemetry::{self, Telemetry, Tracer},
    upstream,
};

/// A gateway that is ready to serve. Made apart from [`App::serve`], so that what is wrong with the
/// configuration is known before a port is taken.
#[derive(Debug)]
pub struct App {
    telemetry: Telemetry,
    gateway: Gateway,
    limits: server::Limits,
    access: server::Access,
    tls: Option<Reloadable<ServerConfig>>,
    web: Option<server::Web>,
}

impl App {
    /// Prepares the gateway: reads the files that the configuration names. The upstream need not be
    /// there. Waits for the command that prints its key, if there is one. Has to be called in a
    /// runtime.
    pub async fn new(config: &config::Serve) -> Result<Self, config::Invalid> {
        let propagates = config
            .forward_metadata
            .iter()
            .any(|name| name == "traceparent");
        let tracer = config
            .telemetry
            .traces
            .map(|traces| Tracer::exporting(&traces, &config.upstream.base, propagates));
        let telemetry = Telemetry::new(
            tracer
                .transpose()
                .map_err(config::Invalid::new)?
                .unwrap_or_else(Tracer::off),
            telemetry::Settings {
                log_ids: config.telemetry.log_ids,
                legacy_metrics: config.telemetry.legacy_metrics,
                provider: config.provider.clone(),
            },
        );
        let callers = &telemetry.metrics().callers;
        callers.set_max(config.telemetry.max_named_callers);
        let client = upstream::Client::new(&config.upstream, &telemetry).await;
        let client = client.map_err(config::Invalid::new)?;
        let client = match &config.isolation {
            Some(rules) => client.isolating(rules.clone()),
            None => client,
        };
        let forwarded = config.forwarded();
        let mut access = config.access.open(&telemetry)?;
        if !config.upstream.has_own_key() {
            access.credentials = Some((config.upstream.auth.header(), Accepted::default()));
        }
        let tls = config.access.tls.clone();
        let tls = tls.map(|files| files.watch(config.access.reload_interval, &telemetry));
        let tls = tls.transpose().map_err(config::Invalid::new)?;
        Ok(Self {
            web: server::Web::new(
                config.access.web_origins.clone(),
                &forwarded,
                &upstream::SHOWN_HEADERS,
            ),
            telemetry,
            gateway: Gateway::new(client, config.streams.clone(), forwarded)
                .map_err(config::Invalid::new)?,
            limits: config.limits.clone(),
            access,
            tls,
        })
    }

    /// What was configured, for a person, in one line without secrets: the upstream, who may call,
    /// TLS.
    pub fn describe(&self, config: &config::Serve) -> String {
        let base = &config.upstream.base;
        let host = base.host_str().unwrap_or_default();
        let port = base.port().map(|port| format!(":{port}"));
        let port = port.unwrap_or_default();
        let tokens = self.access.tokens.as_ref();
        let tokens = tokens.map(|tokens| tokens.summary().to_string());
        let clients = self.access.clients.as_ref().map(|names| {
            if names.is_empty() {
                "every client certificate of the CA".to_owned()
            } else {
                format!("client certificates of {}", names.join(", "))
            }
        });
        let mesh = config.access.mesh.as_ref();
        let mesh = mesh.map(|mesh| format!("whom the mesh names in {}", mesh.identity.header()));
        let jwt = config.access.jwt.as_ref();
        let jwt = jwt.map(|(rules, _)| format!("JWTs of {}", rules.issuer));
        let ways = [clients, mesh, jwt, tokens];
        let known: Vec<_> = ways.into_iter().flatten().collect();
        let callers = match (known.is_empty(), config.upstream.has_own_key()) {
            (false, _) => known.join(" and "),
            (true, true) => "anybody, with the gateway's key".to_owned(),
            (true, false) => "anybody, with a key of their own".to_owned(),
        };
        let tls = self.tls.as_ref().map_or_else(
            || "no TLS".to_owned(),
            |tls| format!("TLS with the {}", tls.summary()),
        );
        let scheme = base.scheme();
        format!("upstream {scheme}://{host}{port}; admitted: {callers}; {tls}")
    }

    /// Serves on `listener` until `shutdown`, then drains. Returns when all is closed. `admin` is
    /// served meanwhile.
    pub async fn serve(
        self,
        listener: TcpListener,
        admin: Option<TcpListener>,
        shutdown: CancellationToken,
    ) {
        let (routes, health) = server::routes(self.gateway.services());
        let detached = self.gateway.detached();
        let telemetry = self.telemetry;
        let (access, tls, web) = (self.access, self.tls, self.web);
        let served = server::Served {
            routes,
            health,
            access,
            tls,
            web,
            telemetry: telemetry.clone(),
            detached,
        };
        let administer = async {
            match admin {
                Some(admin) => admin::serve(admin, telemetry.clone(), shutdown.clone()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = server::serve(listener, served, self.limits, shutdown.clone()) => {}
            never = administer => match never {},
        }
        self.gateway.close().await;
        // Exporting blocks, for a few seconds at most.
        drop(tokio::task::spawn_blocking(move || telemetry.flush()).await);
    }
}
