//! The flags that say which upstream there is, and how to talk to it.
//!
//! Must hold: no error text holds a key, or a header's value, which may be one.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::{Invalid, gateway::FRAMING};
use crate::upstream::{AuthStyle, RENEWAL, UpstreamFiles};

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

    /// CAs that sign the upstream's certificate, PEM, in place of the system's.
    #[arg(long)]
    upstream_ca_file: Option<PathBuf>,

    /// A certificate chain to show to the upstream, PEM.
    #[arg(long, requires = "upstream_client_key_file")]
    upstream_client_cert_file: Option<PathBuf>,

    /// The private key of that certificate, PEM.
    #[arg(long, requires = "upstream_client_cert_file")]
    upstream_client_key_file: Option<PathBuf>,

    /// The age at which connections to the upstream are not used for new requests any more, so that
    /// changed addresses are followed. 0s: never.
    #[arg(long, default_value_t = RENEWAL.into())]
    upstream_renewal: humantime::Duration,

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
    /// The API of `OpenAI` and what is built after it: `/v1`, bearer key.
    Openai,
    /// Azure deployments: `api-key` header and `api-version` query. The URL must be given.
    Azure,
}

/// The base of an API, which `flag` gives, without a key in it.
pub(super) fn base_url(flag: &str, text: &str) -> Result<Url, Invalid> {
    // Not by clap, which would repeat a URL that may hold a key.
    let base: Url = text
        .parse()
        .map_err(|error| Invalid(format!("{flag} is not a URL: {error}")))?;
    if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
        return Err(Invalid(format!(
            "{flag} must begin with http:// or https:// and name a host"
        )));
    }
    if !base.username().is_empty() || base.password().is_some() {
        let key_flag = flag.replace("-url", "-api-key-file");
        return Err(Invalid(format!(
            "{flag} must not hold a user or password: give the key by {key_flag}"
        )));
    }
    if base.fragment().is_some() {
        return Err(Invalid(format!(
            "{flag} must not hold a fragment (#…): no server sees it"
        )));
    }
    Ok(base)
}

impl UpstreamArgs {
    /// The URL before `/threads`, with its query.
    pub(super) fn base(&self) -> Result<Url, Invalid> {
        let known = match self.upstream_profile {
            Profile::Aimlapi => Some("https://api.aimlapi.com"),
            Profile::Openai => Some("https://api.openai.com/v1"),
            Profile::Azure => None,
        };
        let base = self.upstream_url.as_deref().or(known);
        let base = base
            .ok_or_else(|| Invalid("--upstream-url must be given with this profile".to_owned()))?;
        let mut base = base_url("--upstream-url", base)?;
        let last = base.path().trim_end_matches('/').rsplit('/').next();
        if let Some(last @ ("threads" | "assistants" | "runs")) = last {
            return Err(Invalid(format!(
                "--upstream-url is the URL before /threads and /assistants: leave out /{last}"
            )));
        }
        let pair = |pair: &'_ String| match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            // It may be a key.
            _ => Err(Invalid("--upstream-query must be `name=value`".to_owned())),
        };
        let pairs: Vec<(String, String)> = self
            .upstream_query
            .iter()
            .map(pair)
            .collect::<Result<_, _>>()?;
        let has_version = base.query_pairs().any(|(name, _)| name == "api-version")
            || pairs.iter().any(|(name, _)| name == "api-version");
        if self.upstream_profile == Profile::Azure && !has_version {
            base.query_pairs_mut()
                .append_pair("api-version", "2024-05-01-preview");
        }
        if !pairs.is_empty() {
            base.query_pairs_mut().extend_pairs(pairs);
        }
        Ok(base)
    }

    /// How the key is sent.
    pub(super) fn auth(&self) -> Result<AuthStyle, Invalid> {
        match (self.upstream_auth.as_deref(), self.upstream_profile) {
            (None, Profile::Azure) => Ok(AuthStyle::Header(HeaderName::from_static("api-key"))),
            (None | Some("bearer"), _) => Ok(AuthStyle::Bearer),
            (Some(name), _) => name.parse().map(AuthStyle::Header).map_err(|_| {
                Invalid(format!(
                    "--upstream-auth must be `bearer` or a header's name, not {name:?}"
                ))
            }),
        }
    }

    /// The gateway's own key, if it was given itself and not as a file.
    pub(super) fn key(&self) -> Result<Option<SecretString>, Invalid> {
        let Some(key) = &self.upstream_api_key else {
            return Ok(None);
        };
        let trimmed = key.expose_secret().trim();
        if trimmed.is_empty() || HeaderValue::from_str(trimmed).is_err() {
            return Err(Invalid(
                "--upstream-api-key: empty, or not a key that a header can hold".to_owned(),
            ));
        }
        Ok(Some(SecretString::from(trimmed)))
    }

    /// Whether the gateway has a key of its own.
    pub(super) fn has_key(&self) -> bool {
        self.upstream_api_key.is_some() || self.upstream_api_key_file.is_some()
    }

    /// Files that may change while the gateway runs.
    pub(super) fn files(&self) -> UpstreamFiles {
        UpstreamFiles {
            key: self.upstream_api_key_file.clone(),
            ca: self.upstream_ca_file.clone(),
            identity: self
                .upstream_client_cert_file
                .clone()
                .zip(self.upstream_client_key_file.clone()),
        }
    }

    /// The age at which connections are renewed.
    pub(super) fn renewal(&self) -> Duration {
        *self.upstream_renewal
    }

    /// The headers of every upstream request. Values may be secrets.
    pub(super) fn headers(&self) -> Result<HeaderMap, Invalid> {
        let mut headers = HeaderMap::new();
        headers.insert("openai-beta", HeaderValue::from_static("assistants=v2"));
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
            let (name, mut value) = parsed
                .ok_or_else(|| Invalid("--upstream-header must be `Name: value`".to_owned()))?;
            if name == self.auth()?.header() || name == header::AUTHORIZATION {
                // Only of a key that is known to be one it is asked who may use it.
                return Err(Invalid(format!(
                    "--upstream-header {name}: give the key by --upstream-api-key-file"
                )));
            }
            if FRAMING.contains(&name.as_str()) {
                return Err(Invalid(format!(
                    "--upstream-header {name}: the gateway sets it"
                )));
            }
            // It may be a secret, and it tells what a flag fixed from what is only a default
            // (`Serve::forwarded`).
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}
