//! The command line and the environment, as typed configuration. Nothing else reads either.
//!
//! Every flag is also an environment variable: `--upstream-url` is `RUNS_GATEWAY_UPSTREAM_URL`
//! (`environment`). A flag wins.
//!
//! Must hold: what comes out of [`Serve::try_from`] is safe to run: no key is offered to whoever
//! can reach the port unless that was asked for by name. What is wrong is one line, which never
//! holds a key.

mod access;
mod embedded_args;
mod environment;
mod event_log;
mod gateway;
mod isolation;
mod limits;
mod memory;
mod requests;
mod streams;
mod telemetry;
mod upstream;

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use secrecy::SecretString;
use url::Url;

use self::{
    access::WAYS, embedded_args::EmbeddedArgs, gateway::GatewayArgs, upstream::UpstreamArgs,
};
pub use self::{
    access::{AccessConfig, JwksSource},
    environment::{check_environment, log_old_names, settings},
    telemetry::{Admin, LogFormat, OtlpProtocol, TelemetryConfig, Traces},
};
use crate::{
    embedded,
    runs::StreamLimits,
    server::Limits,
    upstream::{AuthStyle, IsolationRules, RENEWAL, Upstream, UpstreamFiles},
};

/// gRPC in front of Runs REST APIs (assistants, threads, runs, run steps).
#[derive(Debug, Parser)]
#[command(name = "runs-gateway", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway.
    Serve(Box<ServeArgs>),
    /// Run the gateway on an embedded Runs API: to try out, develop and test without a key. Answers
    /// come from a built-in model.
    Dev(Box<DevArgs>),
    /// Show a run with a tool call, from a real gRPC client to the embedded Runs API and back.
    Demo,
    /// Ask a running gateway whether it serves, for container probes: exits with 0 if it does, with
    /// 1 if not.
    Healthcheck(HealthcheckArgs),
    /// Write the contract's .proto files, to generate stubs from.
    Proto {
        /// The folder to write them to.
        #[arg(long)]
        out: PathBuf,
    },
}

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

/// The flags of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    #[command(flatten)]
    gateway: GatewayArgs,

    /// Address to open the embedded Runs API on for other clients, such as the official SDKs. Port
    /// 0 takes a free port.
    #[arg(long, default_value = "127.0.0.1:0", value_parser = address)]
    rest_listen: SocketAddr,

    #[command(flatten)]
    embedded: EmbeddedArgs,
}

/// The flags of `healthcheck`.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// The gateway's address, to be asked by gRPC. By default the one that `serve` would listen on,
    /// from the same variable.
    #[arg(long, env = "RUNS_GATEWAY_LISTEN", default_value = "127.0.0.1:50051", value_parser = address)]
    pub addr: SocketAddr,

    /// The admin port's address, to be asked by HTTP whether the gateway takes calls, whatever the
    /// listener asks of its callers. By default the one that `serve` was given by the same variable.
    #[arg(long, env = "RUNS_GATEWAY_ADMIN_LISTEN", value_parser = address)]
    pub admin_addr: Option<SocketAddr>,

    /// CAs that sign the gateway's certificate, PEM: asks over TLS, by gRPC.
    #[arg(long, env = "RUNS_GATEWAY_HEALTHCHECK_CA_FILE")]
    pub tls_ca_file: Option<PathBuf>,

    /// The name in the gateway's certificate.
    #[arg(
        long,
        default_value = "localhost",
        env = "RUNS_GATEWAY_HEALTHCHECK_TLS_NAME"
    )]
    pub tls_name: String,
}

/// An address to listen on: numbers, or a name that is resolved now.
fn address(text: &str) -> Result<SocketAddr, String> {
    let resolved = text
        .parse()
        .ok()
        .or_else(|| text.to_socket_addrs().ok()?.next());
    resolved.ok_or_else(|| "not an address, such as 127.0.0.1:50051 or [::]:50051".to_owned())
}

/// A configuration that cannot be run: one line that says what to change.
#[derive(Debug)]
pub struct Invalid(String);

impl fmt::Display for Invalid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

impl Invalid {
    /// What to change, in one line that holds no key.
    pub fn new(line: impl Into<String>) -> Self {
        Self(line.into())
    }
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
}

/// The configuration of `dev`.
#[derive(Debug)]
pub struct Dev {
    /// Where the embedded API listens.
    pub rest_listen: SocketAddr,
    /// What the embedded API holds at most.
    pub embedded: embedded::Limits,
    gateway: GatewayArgs,
}

/// How the gateway shows the upstream who it is.
struct Credentials {
    auth: AuthStyle,
    key: Option<SecretString>,
    files: UpstreamFiles,
    renewal: Duration,
}

impl Serve {
    fn new(
        gateway: GatewayArgs,
        base: Url,
        headers: HeaderMap,
        credentials: Credentials,
    ) -> Result<Self, Invalid> {
        let Credentials {
            auth,
            key,
            files,
            renewal,
        } = credentials;
        let (ping_interval, ping_timeout) = gateway.requests.pings();
        let has_key = key.is_some() || files.key.is_some();
        let has_names = gateway.access.is_closed();
        let isolation = gateway.isolation.rules(has_key, has_names)?;
        let serve = Self {
            listen: gateway.listen,
            upstream: Upstream {
                base,
                auth,
                key,
                headers,
                connect_timeout: *gateway.connect_timeout,
                answer_timeout: *gateway.answer_timeout,
                max_answer_bytes: gateway.max_answer_bytes,
                max_event_bytes: gateway.max_event_bytes,
                http: gateway.requests.http(),
                ping_interval,
                ping_timeout,
                requests: gateway.requests.requests(),
                retry: gateway.requests.retry(),
                files,
                reload_interval: gateway.access.reload_interval(),
                renewal,
            },
            forward_metadata: gateway.forward_metadata,
            worker_threads: gateway.worker_threads.map(usize::from),
            telemetry: gateway.telemetry.try_into()?,
            limits: Limits {
                request_bytes: gateway.max_request_bytes,
                ..gateway.limits.into()
            },
            streams: gateway.streams.try_into()?,
            access: gateway.access.try_into()?,
            isolation,
        };
        serve.check()?;
        Ok(serve)
    }

    /// Refuses what could serve nobody.
    fn check(&self) -> Result<(), Invalid> {
        let (limits, upstream, streams) = (&self.limits, &self.upstream, &self.streams);
        let counts = [
            ("--max-calls", limits.calls),
            ("--max-connections", limits.connections),
            ("--max-streams-per-connection", limits.streams as usize),
            ("--max-metadata-bytes", limits.metadata as usize),
            ("--max-request-bytes", limits.request_bytes),
            ("--stream-send-buffer", limits.stream_send_buffer as usize),
            ("--max-answer-bytes", upstream.max_answer_bytes),
            ("--max-event-bytes", upstream.max_event_bytes),
            ("--max-live-streams", streams.live),
            ("--max-polled-runs", streams.poll.runs),
            ("--max-polled-step-bytes", streams.poll.step_bytes),
            ("--max-held-output-bytes", streams.held_output_bytes),
            ("--event-log-bytes", streams.log.bytes),
            ("--event-log-run-bytes", streams.log.run_bytes),
            ("--event-log-run-entries", streams.log.run_entries),
        ];
        // A timeout of a ping that is never sent says nothing.
        let ping = limits.ping_interval.map(|_| limits.ping_timeout);
        let upstream_ping = upstream.ping_interval.map(|_| upstream.ping_timeout);
        let times = [
            ("--handshake-timeout", Some(limits.handshake)),
            ("--ping-timeout", ping),
            ("--max-deadline", Some(limits.deadline)),
            ("--connect-timeout", Some(upstream.connect_timeout)),
            ("--answer-timeout", Some(upstream.answer_timeout)),
            ("--upstream-ping-timeout", upstream_ping),
            ("--stream-idle-timeout", Some(streams.idle)),
            ("--cancel-timeout", Some(streams.cancel_timeout)),
            ("--poll-ceiling", Some(streams.poll.ceiling)),
            ("--event-log-ttl", Some(streams.log.ttl)),
            ("--event-log-live-ttl", Some(streams.log.live_ttl)),
            ("--event-log-timeout", Some(streams.log.timeout)),
            ("--event-log-lease", Some(streams.log.lease)),
            ("--max-source-age", Some(streams.log.source_age)),
        ];
        let zero = counts
            .into_iter()
            .filter_map(|(flag, limit)| (limit == 0).then_some((flag, "0")))
            .chain(times.into_iter().filter_map(|(flag, time)| {
                time.is_some_and(|time| time.is_zero())
                    .then_some((flag, "0s"))
            }))
            .next();
        if let Some((flag, zero)) = zero {
            return Err(Invalid(format!(
                "{flag} {zero} could serve nobody: give it more, or leave it out"
            )));
        }
        if let Admin::At(admin) = self.telemetry.admin {
            differ(("--listen", self.listen), ("--admin-listen", admin))?;
        }
        Ok(())
    }

    /// Metadata that is passed on to the upstream: what is configured, and the caller's credential
    /// if the gateway has no key of its own.
    pub fn forwarded(&self) -> Vec<HeaderName> {
        let credential = (!self.upstream.has_own_key()).then(|| self.upstream.auth.header());
        // What a flag says of every request, no caller changes: it may be the project that pays.
        // (Values given by flags are marked as sensitive.)
        let is_fixed = |name: &HeaderName| {
            self.upstream
                .headers
                .get(name)
                .is_some_and(HeaderValue::is_sensitive)
        };
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

/// Refuses two listeners of which only one could have its port.
fn differ(
    (flag, address): (&str, SocketAddr),
    (other_flag, other): (&str, SocketAddr),
) -> Result<(), Invalid> {
    let same = address.ip() == other.ip();
    let all = address.ip().is_unspecified() || other.ip().is_unspecified();
    if address.port() != 0 && address.port() == other.port() && (same || all) {
        return Err(Invalid(format!(
            "{flag} {address} and {other_flag} {other} take the same port: give each one of its own"
        )));
    }
    Ok(())
}

impl TryFrom<ServeArgs> for Serve {
    type Error = Invalid;

    fn try_from(args: ServeArgs) -> Result<Self, Invalid> {
        let (listen, auth, has_key) = (
            args.gateway.listen,
            args.upstream.auth()?,
            args.upstream.has_key(),
        );
        let open = !args.gateway.access.is_closed() && !listen.ip().is_loopback();
        if has_key && open && !args.allow_anonymous {
            return Err(Invalid(format!(
                "{listen} can be reached by others, and whoever reaches it would use the gateway's own key: admit callers by \
                 {WAYS}, listen on a loopback address, or allow it by --allow-anonymous"
            )));
        }
        if has_key
            && args.gateway.access.is_open_to_pages()
            && !args.gateway.access.is_closed()
            && !args.allow_anonymous
        {
            return Err(Invalid(format!(
                "with --web-origins * every page that a browser near the gateway opens would use the gateway's own key: name the \
                 origins, admit callers by {WAYS}, or allow it by --allow-anonymous"
            )));
        }
        let credential = auth.header();
        let bearer = args.gateway.access.bearer_flag();
        if let Some(flag) = bearer.filter(|_| !has_key && credential == AUTHORIZATION) {
            return Err(Invalid(format!(
                "with {flag} callers' authorization is for this gateway, not a key of the upstream: give the gateway a key of its \
                 own by --upstream-api-key-file"
            )));
        }
        if let Some(flag) =
            bearer.filter(|_| args.gateway.forward_metadata.contains(&AUTHORIZATION))
        {
            return Err(Invalid(format!(
                "--forward-metadata authorization would give the upstream what {flag} admits callers by"
            )));
        }
        if let Some(name) = args
            .gateway
            .forward_metadata
            .iter()
            .find(|name| has_key && **name == credential)
        {
            return Err(Invalid(format!(
                "--forward-metadata {name} would replace the gateway's own key by the caller's"
            )));
        }
        let credentials = Credentials {
            auth,
            key: args.upstream.key()?,
            files: args.upstream.files(),
            renewal: args.upstream.renewal(),
        };
        Self::new(
            args.gateway,
            args.upstream.base()?,
            args.upstream.headers()?,
            credentials,
        )
    }
}

impl Dev {
    /// The same without traces, whatever the environment asks for.
    #[must_use]
    pub fn untraced(mut self) -> Self {
        self.gateway.telemetry.untraced = true;
        self
    }

    /// Logs, metrics and traces.
    pub fn telemetry(&self) -> Result<TelemetryConfig, Invalid> {
        self.gateway.telemetry.clone().try_into()
    }

    /// Threads that serve calls; `None` for one per core.
    pub fn worker_threads(&self) -> Option<usize> {
        self.gateway.worker_threads.map(usize::from)
    }

    /// The gateway in front of the embedded API, once that listens on `rest`.
    pub fn serve(self, rest: SocketAddr) -> Result<Serve, Invalid> {
        let base = format!("http://{rest}/v1")
            .parse()
            .map_err(|_| Invalid(format!("{rest} is not an address")))?;
        differ(("--listen", self.gateway.listen), ("--rest-listen", rest))?;
        let credentials = Credentials {
            auth: AuthStyle::Bearer,
            key: None,
            files: UpstreamFiles::default(),
            renewal: RENEWAL,
        };
        Serve::new(self.gateway, base, HeaderMap::new(), credentials)
    }
}

impl From<DevArgs> for Dev {
    fn from(args: DevArgs) -> Self {
        Self {
            rest_listen: args.rest_listen,
            embedded: args.embedded.into(),
            gateway: args.gateway,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(flags: &str) -> Result<Serve, Invalid> {
        let words = ["runs-gateway", "serve"]
            .into_iter()
            .chain(flags.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| Invalid(error.to_string()))?;
        match cli.command {
            Command::Serve(args) => Serve::try_from(*args),
            _ => unreachable!("the first word is serve"),
        }
    }

    #[test]
    fn a_profile_gives_url_authentication_and_query_and_flags_override_it() {
        let azure = "--upstream-profile azure --upstream-url https://r.example/openai";
        let api_key = || AuthStyle::Header(HeaderName::from_static("api-key"));
        let cases = [
            ("", "https://api.aimlapi.com/", AuthStyle::Bearer),
            (
                "--upstream-profile openai",
                "https://api.openai.com/v1",
                AuthStyle::Bearer,
            ),
            (
                azure,
                "https://r.example/openai?api-version=2024-05-01-preview",
                api_key(),
            ),
            (
                &format!("{azure} --upstream-query api-version=1&a=b"),
                "https://r.example/openai?api-version=1&a=b",
                api_key(),
            ),
            (
                &format!("{azure}?api-version=2 --upstream-auth bearer"),
                "https://r.example/openai?api-version=2",
                AuthStyle::Bearer,
            ),
            (
                "--upstream-url http://h/v1 --upstream-auth x-key",
                "http://h/v1",
                AuthStyle::Header("x-key".parse().expect("a name")),
            ),
        ];
        for (flags, url, auth) in cases {
            let upstream = serve(flags).expect(flags).upstream;
            assert_eq!(
                (upstream.base.as_str(), upstream.auth),
                (url, auth),
                "{flags}"
            );
        }
    }

    #[test]
    fn a_configuration_that_would_give_the_key_away_or_cannot_work_is_refused() {
        let refused = [
            "--upstream-api-key k --listen 0.0.0.0:1",
            "--upstream-api-key k --listen [::]:1",
            "--upstream-api-key k --forward-metadata authorization",
            "--tokens-file tokens",
            "--tokens-file tokens --upstream-profile azure --upstream-url https://h --upstream-api-key k --forward-metadata authorization",
            "--upstream-api-key k --tls-cert-file c",
            "--upstream-api-key k --tls-client-ca-file c",
            "--upstream-api-key k --web-origins *",
            "--web-origins https://app.example/",
            "--web-origins http://localhost:5173,nonsense",
            "--upstream-api-key k --jwt-issuer i",
            "--upstream-api-key k --jwt-issuer i --jwt-audience a",
            "--upstream-api-key k --jwt-issuer i --jwt-jwks-file f",
            "--upstream-api-key k --jwt-audience a --jwt-jwks-file f",
            "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-file f --jwt-jwks-url https://h/",
            "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-url http://h/jwks",
            "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-url https://u:secret@h/jwks",
            "--upstream-api-key k --jwt-issuer i --jwt-audience , --jwt-jwks-file f",
            "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-url https://h --jwt-jwks-max-age 5m",
            "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-url https://h --jwt-jwks-pause 0s",
            "--jwt-issuer i --jwt-audience a --jwt-jwks-file f",
            "--upstream-api-key k --tokens-file t --isolate-callers",
            "--upstream-api-key k --tokens-file t --isolation-key-file Cargo.lock",
            "--upstream-api-key k --tokens-file t --isolate-callers --isolation-key-file missing",
            "--upstream-api-key k --tokens-file t --isolate-callers --isolation-key-file .gitignore --isolate-unmarked maybe",
            "--upstream-api-key k --isolate-callers --isolation-key-file Cargo.lock",
            "--isolate-callers --isolation-key-file Cargo.lock --mesh-identity l5d-client-id --mesh-peer loopback",
            "--upstream-api-key k --isolate-assistants --tokens-file t",
            "--jwt-name-claim email",
            "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-file f --jwt-jwks-pause 1s",
            "--upstream-api-key k --mesh-identity xfcc",
            "--upstream-api-key k --mesh-peer loopback",
            "--upstream-api-key k --mesh-identity xfcc --mesh-peer 0.0.0.0/0",
            "--upstream-api-key k --mesh-identity xfcc --mesh-peer name:proxy",
            "--upstream-api-key k --mesh-identity nonsense --mesh-peer loopback",
            "--upstream-profile azure",
            "--upstream-url ftp://host",
            "--upstream-url https://user:secret@host",
            "--upstream-header nonsense",
            "--listen nonsense",
        ];
        for flags in refused {
            let line = serve(flags).expect_err(flags).to_string();
            assert!(!line.contains("secret"), "{line}");
        }
        let tls = "--tls-cert-file c --tls-key-file k --tls-client-ca-file a --allowed-client spiffe://d/s";
        let admitted = [
            "--upstream-api-key k --listen 0.0.0.0:1 --tokens-file tokens",
            "--upstream-api-key k --web-origins https://app.example,http://localhost:5173",
            "--upstream-api-key k --web-origins * --tokens-file tokens",
            "--web-origins *",
            // Any file of 32 bytes is a secret.
            "--upstream-api-key k --tokens-file t --isolate-callers --isolation-key-file Cargo.lock --isolate-assistants",
            &format!("--upstream-api-key k --listen 0.0.0.0:1 {tls}"),
            "--upstream-api-key k --listen 0.0.0.0:1 --jwt-issuer i --jwt-audience a,b --jwt-jwks-url https://h/jwks",
            "--upstream-api-key k --listen 0.0.0.0:1 --jwt-issuer i --jwt-audience a --jwt-jwks-url http://[::1]:1/jwks",
            "--upstream-api-key k --web-origins * --jwt-issuer i --jwt-audience a --jwt-jwks-file f",
            "--upstream-api-key k --listen 0.0.0.0:1 --mesh-identity xfcc --mesh-peer loopback,10.0.0.0/8",
            &format!(
                "--upstream-api-key k --listen 0.0.0.0:1 --mesh-identity xfcc --mesh-peer name:proxy {tls}"
            ),
            // Callers' own keys, and the mesh says whose they are.
            "--listen 0.0.0.0:1 --mesh-identity l5d-client-id --mesh-peer loopback",
        ];
        for flags in admitted {
            serve(flags).expect(flags);
        }
        for flags in [
            "--upstream-api-key k --listen 0.0.0.0:1 --allow-anonymous",
            "--listen 0.0.0.0:1",
            "--upstream-api-key k",
        ] {
            serve(flags).expect(flags);
        }
    }
}
