//! `serve`: its flags, and what comes of them.
//!
//! Must hold: no key is offered to whoever can reach the port unless that was asked for by name.

use std::net::SocketAddr;

use clap::Args;
use http::{HeaderName, header::AUTHORIZATION};

use super::{
    AccessConfig, Invalid, TelemetryConfig, access::WAYS, gateway::GatewayArgs,
    upstream::UpstreamArgs,
};
use crate::{
    admin::Admin,
    runs::StreamLimits,
    server::Limits,
    upstream::{IsolationRules, Upstream},
};

/// The flags of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Say what is wrong with the configuration and its files, or that nothing is, and do not serve.
    #[arg(long)]
    pub check: bool,

    #[command(flatten)]
    gateway: GatewayArgs,

    /// Serve callers that the gateway cannot tell apart, with the gateway's own key, on an address
    /// that others can reach.
    #[arg(long, help_heading = "Access")]
    allow_anonymous: bool,

    #[command(flatten)]
    upstream: UpstreamArgs,
}

/// The configuration of `serve`.
#[derive(Debug)]
pub struct Serve {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The upstream.
    pub upstream: Upstream,
    /// Metadata of callers that is passed on.
    pub forward_metadata: Vec<HeaderName>,
    /// Threads that serve calls; `None` for one per core.
    pub worker_threads: Option<usize>,
    /// Logs, metrics and traces.
    pub telemetry: TelemetryConfig,
    /// The server's limits.
    pub limits: Limits,
    /// The limits of streams.
    pub streams: StreamLimits,
    /// Who may call.
    pub access: AccessConfig,
    /// How callers are kept from each other, if they are.
    pub isolation: Option<IsolationRules>,
    /// Who runs the models, for telemetry.
    pub provider: String,
    /// What is to be said at start.
    pub notice: Option<&'static str>,
}

impl Serve {
    pub(super) fn new(gateway: GatewayArgs, upstream: Upstream) -> Result<Self, Invalid> {
        let has_key = upstream.has_own_key();
        let has_names = gateway.access.is_closed();
        let isolation = gateway.isolation.rules(has_key, has_names)?;
        let mut streams = gateway.streams;
        if streams.poll.floor > streams.poll.ceiling {
            return Err(Invalid::new(
                "--poll-floor must not be longer than --poll-ceiling".to_owned(),
            ));
        }
        streams.store = gateway.event_log.store()?;
        let serve = Self {
            listen: gateway.listen,
            upstream: Upstream {
                limits: gateway.upstream,
                kept_connections: gateway.limits.kept_connections(),
                reload_interval: gateway.access.reload_interval(),
                ..upstream
            },
            forward_metadata: gateway.forward_metadata,
            worker_threads: gateway.worker_threads.map(usize::from),
            telemetry: gateway.telemetry.try_into()?,
            limits: gateway.limits,
            streams,
            access: gateway.access.try_into()?,
            isolation,
            provider: "embedded".to_owned(),
            notice: None,
        };
        if let Admin::At(admin) = serve.telemetry.admin {
            differ(("--listen", serve.listen), ("--admin-listen", admin))?;
        }
        Ok(serve)
    }

    /// Metadata that is passed on to the upstream: what is configured, and the caller's credential
    /// if the gateway has no key of its own.
    pub fn forwarded(&self) -> Vec<HeaderName> {
        let credential = (!self.upstream.has_own_key()).then(|| self.upstream.auth.header());
        // What a flag says of every request, no caller changes: it may be the project that pays.
        let is_fixed = |name: &HeaderName| self.upstream.headers.contains_key(name);
        let passed_on = self
            .forward_metadata
            .iter()
            .filter(|name| !is_fixed(name))
            .cloned();
        let mut names: Vec<_> = passed_on.chain(credential).collect();
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        names
    }
}

impl TryFrom<ServeArgs> for Serve {
    type Error = Invalid;

    fn try_from(args: ServeArgs) -> Result<Self, Invalid> {
        let (listen, upstream) = (args.gateway.listen, args.upstream.upstream()?);
        let (has_key, credential) = (upstream.has_own_key(), upstream.auth.header());
        let open = !args.gateway.access.is_closed() && !listen.ip().is_loopback();
        if has_key && open && !args.allow_anonymous {
            return Err(Invalid::new(format!(
                "{listen} can be reached by others, and whoever reaches it would use the gateway's own key: admit callers by \
                 {WAYS}, listen on a loopback address, or allow it by --allow-anonymous"
            )));
        }
        if has_key
            && args.gateway.access.is_open_to_pages()
            && !args.gateway.access.is_closed()
            && !args.allow_anonymous
        {
            return Err(Invalid::new(format!(
                "with --web-origins * every page that a browser near the gateway opens would use the gateway's own key: name the \
                 origins, admit callers by {WAYS}, or allow it by --allow-anonymous"
            )));
        }
        let bearer = args.gateway.access.bearer_flag();
        if let Some(flag) = bearer.filter(|_| !has_key && credential == AUTHORIZATION) {
            return Err(Invalid::new(format!(
                "with {flag} callers' authorization is for this gateway, not a key of the upstream: give the gateway a key of its \
                 own by --upstream-api-key-file"
            )));
        }
        if let Some(flag) =
            bearer.filter(|_| args.gateway.forward_metadata.contains(&AUTHORIZATION))
        {
            return Err(Invalid::new(format!(
                "--forward-metadata authorization would give the upstream what {flag} admits callers by"
            )));
        }
        if let Some(name) = args
            .gateway
            .forward_metadata
            .iter()
            .find(|name| has_key && **name == credential)
        {
            return Err(Invalid::new(format!(
                "--forward-metadata {name} would replace the gateway's own key by the caller's"
            )));
        }
        Ok(Self {
            provider: args.upstream.provider(),
            notice: args.upstream.notice(),
            ..Self::new(args.gateway, upstream)?
        })
    }
}

/// Refuses two listeners of which only one could have its port.
pub(super) fn differ(
    (flag, address): (&str, SocketAddr),
    (other_flag, other): (&str, SocketAddr),
) -> Result<(), Invalid> {
    let same = address.ip() == other.ip();
    let all = address.ip().is_unspecified() || other.ip().is_unspecified();
    if address.port() != 0 && address.port() == other.port() && (same || all) {
        return Err(Invalid::new(format!(
            "{flag} {address} and {other_flag} {other} take the same port: give each one of its own"
        )));
    }
    Ok(())
}
