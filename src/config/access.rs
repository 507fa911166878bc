//! The flags that say who may call, and how the listener shows who it is.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use url::{Host, Url};

use super::invalid::Invalid;
use crate::{
    reloadable::{Loaded, NamedFile, Reloadable, Source},
    server::{
        self, FetchRules, Jwks, Jwt, JwtRules, KeySet, Mesh, MeshIdentity, MeshPeer, Origin,
        RemoteKeys, TlsFiles, Tokens,
    },
    setting::time,
    shares::Weights,
    telemetry::Telemetry,
};

/// The flags.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
pub(super) struct AccessArgs {
    /// A file of tokens that admit callers: SHA-256 hashes, one a line, as `printf %s TOKEN |
    /// sha256sum` prints them.
    #[arg(long)]
    tokens_file: Option<PathBuf>,

    /// The issuer of JWTs that admit callers: their `iss`. They are sent as `authorization: Bearer
    /// JWT`, signed by RS256, ES256 or `EdDSA`, and have an `exp`. Beside --tokens-file, what has two
    /// dots is a JWT.
    #[arg(long, value_parser = client_name, requires_all = ["jwt_audience", "jwks"])]
    jwt_issuer: Option<String>,

    /// Whom JWTs have to be for: one of their `aud`. May be given more than once.
    #[arg(long, value_delimiter = ',', value_parser = client_name, requires = "jwt_issuer")]
    jwt_audience: Vec<String>,

    /// A file with the issuer's public keys: a JWKS document.
    #[arg(long, group = "jwks", requires = "jwt_issuer")]
    jwt_jwks_file: Option<PathBuf>,

    /// Where the issuer publishes its public keys: a URL by https, or by http on this machine.
    #[arg(long, group = "jwks", requires = "jwt_issuer", hide_env_values = true)]
    jwt_jwks_url: Option<String>,

    /// The claim of a JWT that is its caller's name. It has to be text.
    #[arg(
        long,
        default_value = "sub",
        value_parser = client_name,
        requires = "jwt_issuer"
    )]
    jwt_name_claim: String,

    #[command(flatten)]
    jwt_jwks_fetch: FetchRules,

    /// The header by which a mesh's proxies say who calls: `xfcc` (`x-forwarded-client-cert`, of
    /// Envoy and Istio) or `l5d-client-id` (of Linkerd).
    #[arg(long, requires = "mesh_peers")]
    mesh_identity: Option<MeshIdentity>,

    /// A peer that is believed: `loopback`, addresses such as `10.1.0.0/16`, or `name:NAME` for a
    /// client certificate with this URI, DNS or common name. May be given more than once. From all
    /// others the headers of meshes are taken off.
    #[arg(long = "mesh-peer", value_delimiter = ',', requires = "mesh_identity")]
    mesh_peers: Vec<MeshPeer>,

    /// A file of callers' weights: `name=weight` lines, 1 to 1000. Of all that callers share, one of
    /// weight 2 gets as much as two others. Who is not named has the weight 1.
    #[arg(long)]
    caller_weights_file: Option<PathBuf>,

    /// The listener's certificate chain, PEM. With it, connections are by TLS only.
    #[arg(long, requires = "tls_key_file")]
    tls_cert_file: Option<PathBuf>,

    /// The listener's private key, PEM.
    #[arg(long, requires = "tls_cert_file")]
    tls_key_file: Option<PathBuf>,

    /// The CA that signs clients' certificates, PEM. With it, callers must show a certificate, unless
    /// they may be known by a token, a JWT or a mesh's proxy.
    #[arg(long, requires = "tls_cert_file")]
    tls_client_ca_file: Option<PathBuf>,

    /// A name that admits a client certificate: a DNS or URI subject alternative name, such as
    /// `spiffe://domain/service`, or the common name. May be given more than once. Without any,
    /// every certificate of the CA is admitted.
    #[arg(
        long = "allowed-client",
        value_delimiter = ',',
        value_parser = client_name,
        requires = "tls_client_ca_file"
    )]
    allowed_clients: Vec<String>,

    /// Pages that may call by gRPC-Web, by their origins, such as
    /// `https://app.example,http://localhost:5173`. HTTP/1.1 is then served, too. `*`: any page,
    /// which is every page that anybody opens who can reach the gateway.
    #[arg(long, value_delimiter = ',')]
    web_origins: Vec<Origin>,

    /// How often files of keys, certificates and tokens are looked at for changes. 0s: never.
    #[arg(long, default_value = "5s", value_parser = time)]
    reload_interval: Duration,
}

/// The name of a client. An empty one is refused: no list at all would admit everybody.
fn client_name(name: &str) -> Result<String, String> {
    let name = name.trim();
    if name.is_empty() {
        Err("a name is empty".to_owned())
    } else {
        Ok(name.to_owned())
    }
}

/// A URL whose answer can be believed. Not read by clap, which would repeat one that holds a
/// password.
fn jwks_url(text: &str) -> Result<Url, Invalid> {
    let invalid = |what: &str| Invalid::new(format!("--jwt-jwks-url {what}"));
    let url: Url = text
        .parse()
        .map_err(|error| invalid(&format!("is not a URL: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(invalid("must hold no user, password or fragment (#…)"));
    }
    let is_here = match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_here => Ok(url),
        _ => Err(invalid(
            "must begin with https://, or name this machine: whoever could change the keys could be \
             any caller",
        )),
    }
}

/// Who may call.
#[derive(Debug, Clone)]
pub struct AccessConfig {
    /// Hashes of tokens.
    pub tokens_file: Option<PathBuf>,
    /// Callers' weights.
    pub weights_file: Option<PathBuf>,
    /// JWTs, and where their issuer's keys are.
    pub jwt: Option<(JwtRules, JwksSource)>,
    /// The mesh that names callers.
    pub mesh: Option<Mesh>,
    /// Names in client certificates; `None` if certificates are not asked for.
    pub clients: Option<Arc<[String]>>,
    /// Pages that may call.
    pub web_origins: Vec<Origin>,
    /// TLS for the listener.
    pub tls: Option<TlsFiles>,
    /// How often files are looked at for changes.
    pub reload_interval: Duration,
}

/// Where an issuer's keys are.
#[derive(Debug, Clone)]
pub enum JwksSource {
    /// In a file.
    File(PathBuf),
    /// At a URL.
    Url(Url, FetchRules),
}

/// What tells callers apart, for a line that says what to do.
pub(super) const WAYS: &str =
    "--tokens-file, --jwt-issuer, --mesh-identity or --tls-client-ca-file";

impl AccessArgs {
    /// Whether callers are told apart at all.
    pub(super) fn is_closed(&self) -> bool {
        self.bearer_flag().is_some()
            || self.mesh_identity.is_some()
            || self.tls_client_ca_file.is_some()
    }

    /// Refuses what contradicts itself, or would admit nobody.
    fn check(&self) -> Result<(), Invalid> {
        let is_name = |peer: &MeshPeer| matches!(peer, MeshPeer::Name(_));
        if self.mesh_peers.iter().any(is_name) && self.tls_client_ca_file.is_none() {
            return Err(Invalid::new(
                "--mesh-peer name:… is a name in a client certificate: name the CA that signs those \
                 by --tls-client-ca-file",
            ));
        }
        if self.jwt_jwks_fetch.max_age <= self.jwt_jwks_fetch.renewal {
            return Err(Invalid::new(
                "--jwt-jwks-max-age must be longer than --jwt-jwks-renewal: keys would be too old \
                 before they are fetched again",
            ));
        }
        Ok(())
    }

    /// Whether any page may call.
    pub(super) fn is_open_to_pages(&self) -> bool {
        self.web_origins.iter().any(Origin::is_any)
    }

    pub(super) fn reload_interval(&self) -> Duration {
        self.reload_interval
    }

    /// The flag by which callers' `authorization` is for this gateway, if it is.
    pub(super) fn bearer_flag(&self) -> Option<&'static str> {
        let tokens = self.tokens_file.as_ref().map(|_| "--tokens-file");
        tokens.or_else(|| self.jwt_issuer.as_ref().map(|_| "--jwt-issuer"))
    }

    fn jwt(&mut self) -> Result<Option<(JwtRules, JwksSource)>, Invalid> {
        let file = self.jwt_jwks_file.take().map(JwksSource::File);
        let url = self.jwt_jwks_url.take();
        let url = url.map(|url| jwks_url(&url)).transpose()?;
        let source =
            file.or_else(|| url.map(|url| JwksSource::Url(url, self.jwt_jwks_fetch.clone())));
        let rules = self.jwt_issuer.take().map(|issuer| JwtRules {
            issuer,
            audiences: std::mem::take(&mut self.jwt_audience),
            name_claim: std::mem::take(&mut self.jwt_name_claim),
        });
        Ok(rules.zip(source))
    }
}

/// What was read of a file, with a summary of it.
type Parsed<T> = Result<(String, T), String>;

impl AccessConfig {
    /// Reads what it names. Has to be called in a runtime.
    pub fn open(&self, telemetry: &Telemetry) -> Result<server::Access, Invalid> {
        let tokens = self.tokens_file.clone().map(|path| {
            self.watch("tokens", "--tokens-file", path, telemetry, |text| {
                let tokens = Tokens::parse(text)?;
                Ok((tokens.summary(), tokens))
            })
        });
        let weights = self.weights_file.clone().map(|path| {
            let flag = "--caller-weights-file";
            self.watch("weights", flag, path, telemetry, |text| {
                let weights = Weights::parse(text)?;
                Ok((weights.summary(), weights))
            })
        });
        let jwt = self.jwt.clone().map(|(rules, source)| {
            let keys = match source {
                JwksSource::File(path) => self
                    .watch("JWT keys", "--jwt-jwks-file", path, telemetry, |text| {
                        let keys = KeySet::parse(text)?;
                        Ok((keys.summary(), keys))
                    })
                    .map(Jwks::File)?,
                JwksSource::Url(url, fetch) => {
                    let failing = telemetry.metrics().reload_failing("JWT keys");
                    Jwks::Url(Arc::new(RemoteKeys::new(url, fetch, failing)))
                }
            };
            Ok::<_, Invalid>(Jwt::new(rules, keys))
        });
        Ok(server::Access {
            clients: self.clients.clone(),
            mesh: self.mesh.clone().map(Arc::new),
            jwt: jwt.transpose()?,
            tokens: tokens.transpose()?,
            credentials: None,
            weights: weights.transpose()?,
        })
    }

    /// The file of this flag, read again when it changes.
    fn watch<T: Send + Sync + 'static>(
        &self,
        what: &'static str,
        flag: &'static str,
        path: PathBuf,
        telemetry: &Telemetry,
        parse: fn(&[u8]) -> Parsed<T>,
    ) -> Result<Reloadable<T>, Invalid> {
        let source = Source {
            what,
            files: vec![NamedFile { flag, path }],
            interval: self.reload_interval,
            renewal: Duration::ZERO,
            failing: telemetry.metrics().reload_failing(what),
        };
        let made = Reloadable::new(source, move |contents| {
            let text = contents.first().map_or(&[][..], Vec::as_slice);
            let parsed = parse(text).map_err(|error| format!("{flag}: {error}"));
            parsed.map(|(summary, value)| Loaded {
                value,
                summary,
                expires: None,
            })
        });
        made.map_err(Invalid::new)
    }
}

impl TryFrom<AccessArgs> for AccessConfig {
    type Error = Invalid;

    fn try_from(mut args: AccessArgs) -> Result<Self, Invalid> {
        args.check()?;
        let is_address = |peer: &MeshPeer| !matches!(peer, MeshPeer::Name(_));
        let client_optional =
            args.bearer_flag().is_some() || args.mesh_peers.iter().any(is_address);
        let jwt = args.jwt()?;
        let clients = args
            .tls_client_ca_file
            .is_some()
            .then(|| args.allowed_clients.into());
        let tls = args
            .tls_cert_file
            .zip(args.tls_key_file)
            .map(|(certificate, key)| TlsFiles {
                certificate,
                key,
                client_ca: args.tls_client_ca_file,
                client_optional,
                http1: !args.web_origins.is_empty(),
            });
        Ok(Self {
            tokens_file: args.tokens_file,
            weights_file: args.caller_weights_file,
            jwt,
            mesh: args.mesh_identity.map(|identity| Mesh {
                identity,
                peers: args.mesh_peers,
            }),
            clients,
            web_origins: args.web_origins,
            tls,
            reload_interval: args.reload_interval,
        })
    }
}
