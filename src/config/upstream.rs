//! The flags that say which upstream there is, and how to talk to it.
//!
//! Must hold: no error text holds a key, or a header's value, which may be one.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::{
    invalid::Invalid,
    values::{FRAMING, base_url},
};
use crate::{
    setting::some_time,
    upstream::{AuthStyle, KeyCommand, Upstream, UpstreamFiles, upstream_key},
};

/// The flags.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "a flag is called like its field")]
#[command(next_help_heading = "Upstream")]
pub(super) struct UpstreamArgs {
    /// A known upstream: its URL, its way of authentication, its query.
    #[arg(long, default_value = "aimlapi")]
    upstream_profile: Profile,

    /// The upstream's URL before `/threads`, with any path prefix and query. Overrides the
    /// profile's.
    #[arg(long)]
    upstream_url: Option<String>,

    /// The gateway's own key for the upstream. Without one, callers bring theirs.
    #[arg(long, hide_env_values = true, conflicts_with = "upstream_api_key_file")]
    upstream_api_key: Option<SecretString>,

    /// A file with the gateway's own key for the upstream.
    #[arg(long)]
    upstream_api_key_file: Option<PathBuf>,

    /// A command that prints the gateway's own key for the upstream and when it expires, as
    /// Kubernetes' exec credentials do: {"status":{"token":"KEY","expirationTimestamp":"TIME"}}. Run
    /// at start and before the key expires. The program and its arguments are quoted as for a shell;
    /// no shell runs.
    #[arg(
        long,
        hide_env_values = true,
        conflicts_with_all = ["upstream_api_key", "upstream_api_key_file"]
    )]
    upstream_key_command: Option<SecretString>,

    /// How long that command may take before it is killed.
    #[arg(long, default_value = "30s", value_parser = some_time)]
    upstream_key_command_timeout: Duration,

    /// CAs that sign the upstream's certificate, PEM, in place of the system's.
    #[arg(long)]
    upstream_ca_file: Option<PathBuf>,

    /// A certificate chain to show to the upstream, PEM.
    #[arg(long, requires = "upstream_client_key_file")]
    upstream_client_cert_file: Option<PathBuf>,

    /// The private key of that certificate, PEM.
    #[arg(long, requires = "upstream_client_cert_file")]
    upstream_client_key_file: Option<PathBuf>,

    /// Who runs the models, as metrics and traces name it (`gen_ai.provider.name`). By default the
    /// profile's, or `unknown` where --upstream-url replaces the URL of the default profile.
    #[arg(long)]
    upstream_provider: Option<String>,

    /// How the key is sent: `bearer`, or the name of a header, such as `api-key`. Overrides the
    /// profile's.
    #[arg(long)]
    upstream_auth: Option<String>,

    /// A header of every upstream request, `Name: value`, whatever a caller's metadata says. May be
    /// given more than once (in the environment: separated by `;`).
    #[arg(
        long = "upstream-header",
        hide_env_values = true,
        value_delimiter = ';'
    )]
    upstream_headers: Vec<SecretString>,

    /// A query parameter of every upstream request, `name=value`. May be given more than once.
    #[arg(long = "upstream-query", value_delimiter = '&')]
    upstream_query: Vec<String>,
}

/// Known upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// The AI/ML API: no `/v1` in its paths, bearer key.
    Aimlapi,
    /// The API of `OpenAI`, which ended it on 2026-08-26, and what is built after it: `/v1`, bearer
    /// key.
    Openai,
    /// Deployments of Azure `OpenAI`, whose service ended on 2026-08-26, and servers like it: `api-key`
    /// header and `api-version` query. The URL must be given.
    Azure,
    /// Azure AI Foundry's agents (classic, until 2027-03-31): a bearer token, which expires (see
    /// --upstream-key-command), and `api-version=v1`. The URL must be given:
    /// <https://RESOURCE.services.ai.azure.com/api/projects/PROJECT>.
    Foundry,
}

/// What ends the URL of a resource and not that of an API.
const RESOURCES: [&str; 7] = [
    "threads",
    "assistants",
    "runs",
    "messages",
    "steps",
    "completions",
    "responses",
];

/// Headers that requests have anyway, whatever they are set to.
fn is_set_by_gateway(name: &HeaderName) -> bool {
    FRAMING.contains(&name.as_str()) || [header::ACCEPT, header::ACCEPT_ENCODING].contains(name)
}

impl Profile {
    /// The `api-version` of requests that name none.
    fn api_version(self) -> Option<&'static str> {
        match self {
            Self::Azure => Some("2024-05-01-preview"),
            Self::Foundry => Some("v1"),
            Self::Aimlapi | Self::Openai => None,
        }
    }
}

impl UpstreamArgs {
    /// The upstream.
    pub(super) fn upstream(&self) -> Result<Upstream, Invalid> {
        let base = self.base()?;
        self.check_tls(&base)?;
        let assistants = HeaderValue::from_static("assistants=v2");
        Ok(Upstream {
            auth: self.auth()?,
            key: self.key()?,
            key_command: self.key_command()?,
            headers: self.headers()?,
            default_headers: [(HeaderName::from_static("openai-beta"), assistants)]
                .into_iter()
                .collect(),
            files: self.files(),
            ..Upstream::new(base)
        })
    }

    /// The URL before `/threads`, with its query.
    fn base(&self) -> Result<Url, Invalid> {
        let known = match self.upstream_profile {
            Profile::Aimlapi => Some("https://api.aimlapi.com"),
            Profile::Openai => Some("https://api.openai.com/v1"),
            Profile::Azure | Profile::Foundry => None,
        };
        let base = self.upstream_url.as_deref().or(known);
        let base = base.ok_or_else(|| {
            Invalid::new("--upstream-url must be given with this profile".to_owned())
        })?;
        let mut base = base_url("--upstream-url", base)?;
        let last = base.path().trim_end_matches('/').rsplit('/').next();
        let last = last.unwrap_or_default();
        if RESOURCES.contains(&&*last.to_ascii_lowercase()) {
            return Err(Invalid::new(format!(
                "--upstream-url is the URL before /threads and /assistants: leave out /{last}"
            )));
        }
        let pair = |pair: &'_ String| match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() && !name.starts_with('?') => {
                Ok((name.to_owned(), value.to_owned()))
            }
            // It may be a key.
            _ => Err(Invalid::new(
                "--upstream-query must be `name=value`".to_owned(),
            )),
        };
        let pairs: Vec<(String, String)> = self
            .upstream_query
            .iter()
            .map(pair)
            .collect::<Result<_, _>>()?;
        let has_version = base.query_pairs().any(|(name, _)| name == "api-version")
            || pairs.iter().any(|(name, _)| name == "api-version");
        if let Some(version) = self.upstream_profile.api_version().filter(|_| !has_version) {
            base.query_pairs_mut().append_pair("api-version", version);
        }
        if !pairs.is_empty() {
            base.query_pairs_mut().extend_pairs(pairs);
        }
        Ok(base)
    }

    /// Refuses files that are for TLS only, of an upstream without it.
    fn check_tls(&self, base: &Url) -> Result<(), Invalid> {
        let given = [
            ("--upstream-ca-file", &self.upstream_ca_file),
            (
                "--upstream-client-cert-file",
                &self.upstream_client_cert_file,
            ),
        ];
        match given.iter().find(|(_, path)| path.is_some()) {
            Some((flag, _)) if base.scheme() == "http" => Err(Invalid::new(format!(
                "{flag} is for TLS, and --upstream-url begins with http://"
            ))),
            _ => Ok(()),
        }
    }

    /// How the key is sent.
    fn auth(&self) -> Result<AuthStyle, Invalid> {
        match (self.upstream_auth.as_deref(), self.upstream_profile) {
            (None, Profile::Azure) => Ok(AuthStyle::Header(HeaderName::from_static("api-key"))),
            (None | Some("bearer"), _) => Ok(AuthStyle::Bearer),
            (Some(name), _) => match name.parse::<HeaderName>() {
                Ok(header) if !is_set_by_gateway(&header) => Ok(AuthStyle::Header(header)),
                Ok(header) => Err(Invalid::new(format!(
                    "--upstream-auth {header}: the gateway sets that header"
                ))),
                Err(_) => Err(Invalid::new(format!(
                    "--upstream-auth must be `bearer` or a header's name, not {name:?}"
                ))),
            },
        }
    }

    /// The gateway's own key, if it was given itself and not as a file.
    fn key(&self) -> Result<Option<SecretString>, Invalid> {
        let Some(key) = &self.upstream_api_key else {
            return Ok(None);
        };
        let key = upstream_key("--upstream-api-key", key.expose_secret(), &self.auth()?);
        key.map(Some).map_err(Invalid::new)
    }

    /// The command that prints it, if it expires.
    fn key_command(&self) -> Result<Option<KeyCommand>, Invalid> {
        let Some(line) = &self.upstream_key_command else {
            return Ok(None);
        };
        let mut words = shlex::split(line.expose_secret())
            .unwrap_or_default()
            .into_iter();
        let program = words.next().ok_or_else(|| {
            Invalid::new("--upstream-key-command: empty, or quotes that do not end".to_owned())
        })?;
        Ok(Some(KeyCommand {
            program,
            arguments: words.collect(),
            timeout: self.upstream_key_command_timeout,
        }))
    }

    /// What whoever runs the gateway has to know of the upstream, if it is one that ended.
    pub(super) fn notice(&self) -> Option<&'static str> {
        match self.upstream_profile {
            Profile::Azure => Some(
                "--upstream-profile azure: the service of Azure OpenAI behind this profile ended on \
                 2026-08-26; for the agents of Azure AI Foundry use --upstream-profile foundry",
            ),
            Profile::Openai if self.upstream_url.is_none() => Some(
                "--upstream-profile openai: OpenAI ended this API on 2026-08-26; name a server that \
                 has it by --upstream-url",
            ),
            Profile::Aimlapi | Profile::Openai | Profile::Foundry => None,
        }
    }

    /// Files that may change while the gateway runs.
    fn files(&self) -> UpstreamFiles {
        UpstreamFiles {
            key: self.upstream_api_key_file.clone(),
            ca: self.upstream_ca_file.clone(),
            identity: self
                .upstream_client_cert_file
                .clone()
                .zip(self.upstream_client_key_file.clone()),
        }
    }

    /// Who runs the models, for telemetry.
    pub(super) fn provider(&self) -> String {
        let known = match self.upstream_profile {
            // The default: its name says nothing of another URL.
            Profile::Aimlapi if self.upstream_url.is_some() => "unknown",
            Profile::Aimlapi => "aimlapi",
            Profile::Openai => "openai",
            Profile::Azure => "azure.ai.openai",
            Profile::Foundry => "azure.ai.agents",
        };
        self.upstream_provider
            .as_deref()
            .unwrap_or(known)
            .to_owned()
    }

    /// The headers of every upstream request. Values may be secrets.
    fn headers(&self) -> Result<HeaderMap, Invalid> {
        let mut headers = HeaderMap::new();
        for line in &self.upstream_headers {
            let parsed = line
                .expose_secret()
                .split_once(':')
                .and_then(|(name, value)| {
                    Some((
                        HeaderName::try_from(name.trim()).ok()?,
                        HeaderValue::from_str(value.trim()).ok()?,
                    ))
                });
            let (name, mut value) = parsed.ok_or_else(|| {
                Invalid::new("--upstream-header must be `Name: value`".to_owned())
            })?;
            if name == self.auth()?.header() || name == header::AUTHORIZATION {
                // Only of a key that is known to be one it is asked who may use it.
                return Err(Invalid::new(format!(
                    "--upstream-header {name}: give the key by --upstream-api-key-file"
                )));
            }
            if is_set_by_gateway(&name) {
                return Err(Invalid::new(format!(
                    "--upstream-header {name}: the gateway sets it"
                )));
            }
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}
