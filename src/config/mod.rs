//! The command line and the environment, as typed configuration. Nothing else reads either.
//!
//! Every flag of `serve` is also an environment variable: `--upstream-url` is `RUNS_GATEWAY_UPSTREAM_URL`. A flag wins.
//!
//! Must hold: what comes out of [`Serve::try_from`] is safe to run: no key is offered to whoever can reach the port unless that was asked for by
//! name. What is wrong is one line, which never holds a key.

mod limits;
mod streams;
mod upstream;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use self::{limits::LimitArgs, streams::StreamArgs, upstream::RequestArgs};
use crate::{
    events::StreamLimits,
    rest::{AuthStyle, Upstream},
    server::Limits,
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
    /// Address to listen on for gRPC. Port 0 takes a free port.
    #[arg(long, env = "RUNS_GATEWAY_LISTEN", default_value = "127.0.0.1:50051")]
    listen: SocketAddr,

    /// A known upstream: its URL, its way of authentication, its query.
    #[arg(long, env = "RUNS_GATEWAY_UPSTREAM_PROFILE", default_value = "aimlapi")]
    upstream_profile: Profile,

    /// The upstream's URL before `/threads`, with any path prefix and query. Overrides the profile's.
    #[arg(long, env = "RUNS_GATEWAY_UPSTREAM_URL")]
    upstream_url: Option<Url>,

    /// The gateway's own key for the upstream. Without one, callers bring theirs.
    #[arg(long, env = "RUNS_GATEWAY_UPSTREAM_API_KEY", hide_env_values = true, conflicts_with = "upstream_api_key_file")]
    upstream_api_key: Option<SecretString>,

    /// A file with the gateway's own key for the upstream.
    #[arg(long, env = "RUNS_GATEWAY_UPSTREAM_API_KEY_FILE")]
    upstream_api_key_file: Option<PathBuf>,

    /// How the key is sent: `bearer`, or the name of a header, such as `api-key`. Overrides the profile's.
    #[arg(long, env = "RUNS_GATEWAY_UPSTREAM_AUTH")]
    upstream_auth: Option<String>,

    /// A header of every upstream request, `Name: value`. May be given more than once (in the environment: separated by `;`).
    #[arg(long = "upstream-header", env = "RUNS_GATEWAY_UPSTREAM_HEADERS", hide_env_values = true, value_delimiter = ';')]
    upstream_headers: Vec<SecretString>,

    /// A query parameter of every upstream request, `name=value`. May be given more than once.
    #[arg(long = "upstream-query", env = "RUNS_GATEWAY_UPSTREAM_QUERY", value_delimiter = '&')]
    upstream_query: Vec<String>,

    /// Metadata of callers that is passed on to the upstream as headers, by name. All other metadata stays here.
    #[arg(
        long,
        env = "RUNS_GATEWAY_FORWARD_METADATA",
        value_delimiter = ',',
        default_value = "idempotency-key,openai-organization,openai-project,x-client-request-id,traceparent,tracestate"
    )]
    forward_metadata: Vec<HeaderName>,

    /// Serve callers that the gateway cannot tell apart, with the gateway's own key, on an address that others can reach.
    #[arg(long, env = "RUNS_GATEWAY_ALLOW_ANONYMOUS")]
    allow_anonymous: bool,

    /// The longest time for connecting to the upstream, TLS included.
    #[arg(long, env = "RUNS_GATEWAY_CONNECT_TIMEOUT", default_value = "5s", value_parser = humantime::parse_duration)]
    connect_timeout: Duration,

    /// The longest time for an upstream answer, from sending the request to the answer's last byte.
    #[arg(long, env = "RUNS_GATEWAY_ANSWER_TIMEOUT", default_value = "60s", value_parser = humantime::parse_duration)]
    answer_timeout: Duration,

    /// The largest upstream answer, in bytes.
    #[arg(long, env = "RUNS_GATEWAY_MAX_ANSWER_BYTES", default_value_t = 16 << 20)]
    max_answer_bytes: usize,

    /// The largest event of an upstream's stream, in bytes.
    #[arg(long, env = "RUNS_GATEWAY_MAX_EVENT_BYTES", default_value_t = 4 << 20)]
    max_event_bytes: usize,

    /// The largest gRPC request message, in bytes.
    #[arg(long, env = "RUNS_GATEWAY_MAX_REQUEST_BYTES", default_value_t = 4 << 20)]
    max_request_bytes: usize,

    /// Threads that serve calls. By default one per core.
    #[arg(long, env = "RUNS_GATEWAY_WORKER_THREADS", value_parser = clap::value_parser!(u16).range(1..))]
    worker_threads: Option<u16>,

    /// What is logged: a level, or directives as of the `tracing` crates, such as `runs_gateway=debug,info`.
    #[arg(long, env = "RUNS_GATEWAY_LOG", default_value = "info")]
    log: String,

    #[command(flatten)]
    requests: RequestArgs,

    #[command(flatten)]
    limits: LimitArgs,

    #[command(flatten)]
    streams: StreamArgs,
}

/// Known upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// The AI/ML API: no `/v1` in its paths, bearer key.
    Aimlapi,
    /// The API of `OpenAI` and what is built after it: `/v1`, bearer key.
    Openai,
    /// Azure deployments: `api-key` header and `api-version` query. The URL must be given.
    Azure,
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

/// The configuration of `serve`.
#[derive(Debug)]
pub struct Serve {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The upstream.
    pub upstream: Upstream,
    /// Metadata of callers that is passed on.
    pub forward_metadata: Vec<HeaderName>,
    /// The largest gRPC request message, in bytes.
    pub max_request_bytes: usize,
    /// Threads that serve calls; `None` for one per core.
    pub worker_threads: Option<usize>,
    /// What is logged.
    pub log: String,
    /// The server's limits.
    pub limits: Limits,
    /// The limits of streams.
    pub streams: StreamLimits,
}

impl Serve {
    /// Metadata that is passed on to the upstream: what is configured, and the caller's credential if the gateway has no key of its own.
    pub fn forwarded(&self) -> Vec<HeaderName> {
        let credential = self.upstream.key.is_none().then(|| self.upstream.auth.header());
        let mut names: Vec<_> = self.forward_metadata.iter().cloned().chain(credential).collect();
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        names
    }
}

impl TryFrom<ServeArgs> for Serve {
    type Error = Invalid;

    fn try_from(args: ServeArgs) -> Result<Self, Invalid> {
        let key = key(&args)?;
        if key.is_some() && !args.allow_anonymous && !args.listen.ip().is_loopback() {
            return Err(Invalid(format!(
                "{} can be reached by others, and whoever reaches it would use the gateway's own key: listen on a loopback address, \
                 or allow it by --allow-anonymous",
                args.listen
            )));
        }
        let auth = args.auth()?;
        let credential = auth.header();
        if let Some(name) = args.forward_metadata.iter().find(|name| key.is_some() && **name == credential) {
            return Err(Invalid(format!("--forward-metadata {name} would replace the gateway's own key by the caller's")));
        }
        Ok(Self {
            listen: args.listen,
            upstream: Upstream {
                base: args.base()?,
                auth,
                key,
                headers: headers(&args.upstream_headers)?,
                connect_timeout: args.connect_timeout,
                answer_timeout: args.answer_timeout,
                max_answer_bytes: args.max_answer_bytes,
                max_event_bytes: args.max_event_bytes,
                http: args.requests.http(),
                requests: args.requests.requests(),
                retry: args.requests.retry(),
            },
            forward_metadata: args.forward_metadata,
            max_request_bytes: args.max_request_bytes,
            worker_threads: args.worker_threads.map(usize::from),
            log: args.log,
            limits: args.limits.into(),
            streams: args.streams.into(),
        })
    }
}

impl ServeArgs {
    fn base(&self) -> Result<Url, Invalid> {
        let known = match self.upstream_profile {
            Profile::Aimlapi => Some("https://api.aimlapi.com"),
            Profile::Openai => Some("https://api.openai.com/v1"),
            Profile::Azure => None,
        };
        let mut base = match (&self.upstream_url, known) {
            (Some(url), _) => url.clone(),
            (None, Some(known)) => known.parse().map_err(|_| Invalid(format!("{known} is not a URL")))?,
            (None, None) => return Err(Invalid("--upstream-url must be given with this profile".to_owned())),
        };
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(Invalid("--upstream-url must begin with http:// or https:// and name a host".to_owned()));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(Invalid(
                "--upstream-url must not hold a user or password: give the key by --upstream-api-key-file".to_owned(),
            ));
        }
        let pairs: Vec<(&str, &str)> =
            self.upstream_query.iter().map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
        let has_version =
            base.query_pairs().any(|(name, _)| name == "api-version") || pairs.iter().any(|(name, _)| *name == "api-version");
        if self.upstream_profile == Profile::Azure && !has_version {
            base.query_pairs_mut().append_pair("api-version", "2024-05-01-preview");
        }
        if !pairs.is_empty() {
            base.query_pairs_mut().extend_pairs(pairs);
        }
        Ok(base)
    }

    fn auth(&self) -> Result<AuthStyle, Invalid> {
        match (self.upstream_auth.as_deref(), self.upstream_profile) {
            (None, Profile::Azure) => Ok(AuthStyle::Header(HeaderName::from_static("api-key"))),
            (None | Some("bearer"), _) => Ok(AuthStyle::Bearer),
            (Some(name), _) => name
                .parse()
                .map(AuthStyle::Header)
                .map_err(|_| Invalid(format!("--upstream-auth must be `bearer` or a header's name, not {name:?}"))),
        }
    }
}

fn key(args: &ServeArgs) -> Result<Option<SecretString>, Invalid> {
    let (flag, key) = match (&args.upstream_api_key, &args.upstream_api_key_file) {
        (Some(key), _) => ("--upstream-api-key".to_owned(), key.clone()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|error| Invalid(format!("--upstream-api-key-file {}: {error}", path.display())))?;
            (format!("--upstream-api-key-file {}", path.display()), SecretString::from(text))
        }
        (None, None) => return Ok(None),
    };
    let trimmed = key.expose_secret().trim();
    if trimmed.is_empty() || HeaderValue::from_str(trimmed).is_err() {
        return Err(Invalid(format!("{flag}: empty, or not a key that a header can hold")));
    }
    Ok(Some(SecretString::from(trimmed)))
}

/// The headers of every upstream request. Values may be secrets.
fn headers(lines: &[SecretString]) -> Result<HeaderMap, Invalid> {
    let mut headers = HeaderMap::new();
    headers.insert("openai-beta", HeaderValue::from_static("assistants=v2"));
    for line in lines {
        let parsed = line
            .expose_secret()
            .split_once(':')
            .and_then(|(name, value)| Some((HeaderName::try_from(name.trim()).ok()?, HeaderValue::from_str(value.trim()).ok()?)));
        let (name, mut value) = parsed.ok_or_else(|| Invalid("--upstream-header must be `Name: value`".to_owned()))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(flags: &str) -> Result<Serve, Invalid> {
        let words = ["runs-gateway", "serve"].into_iter().chain(flags.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| Invalid(error.to_string()))?;
        match cli.command {
            Command::Serve(args) => Serve::try_from(*args),
            Command::Proto { .. } => unreachable!("the first word is serve"),
        }
    }

    #[test]
    fn a_profile_gives_url_authentication_and_query_and_flags_override_it() {
        let azure = "--upstream-profile azure --upstream-url https://r.example/openai";
        let api_key = || AuthStyle::Header(HeaderName::from_static("api-key"));
        let cases = [
            ("", "https://api.aimlapi.com/", AuthStyle::Bearer),
            ("--upstream-profile openai", "https://api.openai.com/v1", AuthStyle::Bearer),
            (azure, "https://r.example/openai?api-version=2024-05-01-preview", api_key()),
            (&format!("{azure} --upstream-query api-version=1&a=b"), "https://r.example/openai?api-version=1&a=b", api_key()),
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
            assert_eq!((upstream.base.as_str(), upstream.auth), (url, auth), "{flags}");
        }
    }

    #[test]
    fn a_configuration_that_would_give_the_key_away_or_cannot_work_is_refused() {
        let refused = [
            "--upstream-api-key k --listen 0.0.0.0:1",
            "--upstream-api-key k --listen [::]:1",
            "--upstream-api-key k --forward-metadata authorization",
            "--upstream-api-key-file /nonexistent/key",
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
        for flags in ["--upstream-api-key k --listen 0.0.0.0:1 --allow-anonymous", "--listen 0.0.0.0:1", "--upstream-api-key k"] {
            serve(flags).expect(flags);
        }
    }
}
