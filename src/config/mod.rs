//! The command line and the environment, as typed configuration. Nothing else reads either.
//!
//! Every flag is also an environment variable: `--upstream-url` is `RUNS_GATEWAY_UPSTREAM_URL`
//! (`environment`). A flag wins.
//!
//! Must hold: what comes out of [`Serve::try_from`] is safe to run: no key is offered to whoever
//! can reach the port unless that was asked for by name. What is wrong is one line, which never
//! holds a key.

mod access;
mod client;
mod embedded_args;
mod environment;
mod event_log;
mod gateway;
mod invalid;
mod isolation;
mod limits;
mod memory;
mod model;
mod requests;
mod streams;
mod telemetry;
mod upstream;
mod values;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use secrecy::SecretString;
use url::Url;

use self::{
    access::WAYS, embedded_args::EmbeddedArgs, gateway::GatewayArgs, model::ModelArgs,
    upstream::UpstreamArgs, values::address,
};
pub use self::{
    access::{AccessConfig, JwksSource},
    client::{CallerArgs, GatewayAddress, HealthcheckArgs, RunArgs, WatchArgs},
    environment::{check_environment, command_line, log_old_names, settings},
    invalid::Invalid,
    model::ModelConfig,
    telemetry::TelemetryConfig,
};
use crate::{
    admin::Admin,
    embedded,
    runs::StreamLimits,
    server::Limits,
    upstream::{AuthStyle, IsolationRules, KeyCommand, RENEWAL, Upstream, UpstreamFiles},
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
    /// come from a built-in model, or from one behind `--model-url`.
    Dev(Box<DevArgs>),
    /// Show a run with a tool call, from a real gRPC client to the embedded Runs API and back.
    Demo(Box<DemoArgs>),
    /// Ask an assistant a question through a running gateway, and show what goes on.
    Run(RunArgs),
    /// Show what goes on in a run that somebody started.
    Watch(WatchArgs),
    /// Ask a running gateway whether it serves, for container probes: exits with 0 if it does, with
    /// 1 if not.
    Healthcheck(HealthcheckArgs),
    /// Write the contract's .proto files, to generate stubs from.
    Proto {
        /// The folder to write them to.
        #[arg(long)]
        out: PathBuf,
    },
    /// Write man pages and shell completions, for packages.
    #[command(hide = true)]
    PackageFiles {
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

    /// Serve whoever reaches an address that others can reach, with the key of the model.
    #[arg(long, help_heading = "Access")]
    allow_anonymous: bool,

    #[command(flatten)]
    embedded: EmbeddedArgs,

    #[command(flatten)]
    model: ModelArgs,
}

/// The flags of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    model: ModelArgs,
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

/// The configuration of `dev`.
#[derive(Debug)]
pub struct Dev {
    /// Where the embedded API listens.
    pub rest_listen: SocketAddr,
    /// What the embedded API holds at most.
    pub embedded: embedded::Limits,
    /// What answers, if not the built-in model.
    pub model: Option<ModelConfig>,
    gateway: GatewayArgs,
}

/// How the gateway shows the upstream who it is.
struct Credentials {
    auth: AuthStyle,
    key: Option<SecretString>,
    key_command: Option<KeyCommand>,
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
            key_command,
            files,
            renewal,
        } = credentials;
        let (ping_interval, ping_timeout) = gateway.requests.pings();
        let has_key = key.is_some() || key_command.is_some() || files.key.is_some();
        let has_names = gateway.access.is_closed();
        let isolation = gateway.isolation.rules(has_key, has_names)?;
        let limits = Limits {
            request_bytes: gateway.max_request_bytes,
            ..gateway.limits.into()
        };
        let serve = Self {
            listen: gateway.listen,
            upstream: Upstream {
                base,
                auth,
                key,
                key_command,
                headers,
                connect_timeout: *gateway.connect_timeout,
                answer_timeout: *gateway.answer_timeout,
                max_answer_bytes: gateway.max_answer_bytes,
                max_event_bytes: gateway.max_event_bytes,
                http: gateway.requests.http(),
                ping_interval,
                ping_timeout,
                requests: gateway.requests.requests(),
                kept_connections: memory::kept_connections(limits.held_bytes),
                retry: gateway.requests.retry(),
                files,
                reload_interval: gateway.access.reload_interval(),
                renewal,
            },
            forward_metadata: gateway.forward_metadata,
            worker_threads: gateway.worker_threads.map(usize::from),
            telemetry: gateway.telemetry.try_into()?,
            limits,
            streams: gateway.streams.try_into()?,
            access: gateway.access.try_into()?,
            isolation,
            provider: "embedded".to_owned(),
            notice: None,
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
        let key_command = upstream.key_command.as_ref();
        let key_command = key_command.map(|command| command.timeout);
        let times = [
            ("--handshake-timeout", Some(limits.handshake)),
            ("--ping-timeout", ping),
            ("--max-deadline", Some(limits.deadline)),
            ("--connect-timeout", Some(upstream.connect_timeout)),
            ("--answer-timeout", Some(upstream.answer_timeout)),
            ("--upstream-ping-timeout", upstream_ping),
            ("--upstream-key-command-timeout", key_command),
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
            return Err(Invalid::new(format!(
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
        return Err(Invalid::new(format!(
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
        let credential = auth.header();
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
        let credentials = Credentials {
            auth,
            key: args.upstream.key()?,
            key_command: args.upstream.key_command()?,
            files: args.upstream.files(),
            renewal: args.upstream.renewal(),
        };
        let (notice, provider) = (args.upstream.notice(), args.upstream.provider());
        let serve = Self::new(
            args.gateway,
            args.upstream.base()?,
            args.upstream.headers()?,
            credentials,
        )?;
        Ok(Self {
            provider,
            notice,
            ..serve
        })
    }
}

impl Dev {
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
            .map_err(|_| Invalid::new(format!("{rest} is not an address")))?;
        differ(("--listen", self.gateway.listen), ("--rest-listen", rest))?;
        let credentials = Credentials {
            auth: AuthStyle::Bearer,
            key: None,
            key_command: None,
            files: UpstreamFiles::default(),
            renewal: RENEWAL,
        };
        Serve::new(self.gateway, base, HeaderMap::new(), credentials)
    }
}

impl TryFrom<DevArgs> for Dev {
    type Error = Invalid;

    fn try_from(args: DevArgs) -> Result<Self, Invalid> {
        let model = args.model.model()?;
        let has_key = model.as_ref().is_some_and(ModelConfig::has_key);
        let listen = args.gateway.listen;
        let ways = [
            // The embedded API asks for no key.
            ("--rest-listen", args.rest_listen, false),
            ("--listen", listen, args.gateway.access.is_closed()),
        ];
        let open = ways
            .into_iter()
            .find(|(_, address, closed)| !closed && !address.ip().is_loopback());
        if let Some((flag, address, _)) = open.filter(|_| has_key && !args.allow_anonymous) {
            return Err(Invalid::new(format!(
                "{flag} {address} can be reached by others, and whoever reaches it would use the key of --model-api-key-file: \
                 listen on a loopback address, or allow it by --allow-anonymous"
            )));
        }
        let access = &args.gateway.access;
        let open_to_pages = access.is_open_to_pages() && !access.is_closed();
        if open_to_pages && has_key && !args.allow_anonymous {
            return Err(Invalid::new(
                "with --web-origins * every page that a browser near the gateway opens would use the key of \
                 --model-api-key-file: name the origins, or allow it by --allow-anonymous",
            ));
        }
        Ok(Self {
            rest_listen: args.rest_listen,
            embedded: args.embedded.into(),
            model,
            gateway: args.gateway,
        })
    }
}

impl TryFrom<DemoArgs> for Dev {
    type Error = Invalid;

    /// `dev` on free ports, with the model that `demo` was given, and without traces.
    fn try_from(args: DemoArgs) -> Result<Self, Invalid> {
        let free = "127.0.0.1:0";
        let flags = ["--listen", "--rest-listen", "--admin-listen"];
        let flags = flags.into_iter().flat_map(|flag| [flag, free]);
        let cli = Cli::try_parse_from(["runs-gateway", "dev"].into_iter().chain(flags));
        match cli.map(|cli| cli.command) {
            Ok(Command::Dev(mut dev)) => {
                dev.model = args.model;
                dev.gateway.telemetry.untraced = true;
                Self::try_from(*dev)
            }
            Ok(_) => Err(Invalid::new("the command is dev")),
            Err(error) => Err(Invalid::new(error.to_string())),
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
        let cli = Cli::try_parse_from(words).map_err(|error| Invalid::new(error.to_string()))?;
        match cli.command {
            Command::Serve(args) => Serve::try_from(*args),
            _ => unreachable!("the first word is serve"),
        }
    }

    fn dev(flags: &str) -> Result<Dev, Invalid> {
        let words = ["runs-gateway", "dev"]
            .into_iter()
            .chain(flags.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| Invalid::new(error.to_string()))?;
        match cli.command {
            Command::Dev(args) => Dev::try_from(*args),
            _ => unreachable!("the first word is dev"),
        }
    }

    #[test]
    fn a_model_that_cannot_be_asked_or_whose_key_others_could_use_is_refused() {
        let refused = [
            "--model-url nonsense",
            "--model-url ftp://host",
            "--model-url https://user:secret@host/v1",
            "--model-url https://host/v1#part",
            "--model-url https://host/v1/chat/completions",
            "--model-url http://host/v1 --model-timeout 0s",
            "--model-url http://host/v1 --model-max-reply-bytes 0",
            "--model m",
            "--model-api-key-file k",
            "--model-url http://host/v1 --model-api-key-file k --listen 0.0.0.0:1",
            "--model-url http://host/v1 --model-api-key-file k --rest-listen 0.0.0.0:1",
            "--model-url http://host/v1 --model-api-key-file k --web-origins *",
            "--model-url http://host/v1 --model-api-key-file k --tokens-file t --rest-listen 0.0.0.0:1",
        ];
        for flags in refused {
            let line = dev(flags).expect_err(flags).to_string();
            assert!(!line.contains("secret"), "{line}");
        }
        let admitted = [
            "",
            "--listen 0.0.0.0:1 --rest-listen 0.0.0.0:2",
            "--model-url http://host/v1 --listen 0.0.0.0:1 --rest-listen 0.0.0.0:2",
            "--model-url http://host/v1 --model-api-key-file k",
            "--model-url http://host/v1 --model-api-key-file k --listen 0.0.0.0:1 --allow-anonymous",
            "--model-url http://host/v1 --model-api-key-file k --tokens-file t --listen 0.0.0.0:1",
        ];
        for flags in admitted {
            assert_eq!(
                dev(flags).expect(flags).model.is_some(),
                flags.contains("--model-url"),
                "{flags}"
            );
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
                "--upstream-profile foundry --upstream-url https://r.example/api/projects/p",
                "https://r.example/api/projects/p?api-version=v1",
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
    fn a_profile_names_its_provider_and_says_whether_its_service_has_ended() {
        let (url, provider) = ("--upstream-url https://h", "--upstream-provider me");
        let cases = [
            (String::new(), "aimlapi", false),
            (url.to_owned(), "unknown", false),
            (format!("{url} {provider}"), "me", false),
            ("--upstream-profile openai".to_owned(), "openai", true),
            (format!("--upstream-profile openai {url}"), "openai", false),
            (
                format!("--upstream-profile azure {url}"),
                "azure.ai.openai",
                true,
            ),
            (
                format!("--upstream-profile foundry {url}"),
                "azure.ai.agents",
                false,
            ),
        ];
        for (flags, provider, ended) in cases {
            let serve = serve(&flags).expect(&flags);
            assert_eq!(
                (&*serve.provider, serve.notice.is_some()),
                (provider, ended),
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
            "--upstream-key-command get-token --upstream-api-key k",
            "--upstream-key-command get-token --upstream-api-key-file k",
            "--upstream-key-command '",
            "--upstream-key-command get-token --upstream-key-command-timeout 0s",
            "--upstream-key-command get-token --listen 0.0.0.0:1",
            "--upstream-profile azure",
            "--upstream-profile foundry",
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
