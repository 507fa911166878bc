//! The HTTP clients and what they are made of: the key, the TLS roots, the client certificate.
//!
//! Must hold: what was read from files is read again when they change, and connections are renewed
//! in time even if nothing changes: a connection that is kept alive for ever never sees that the
//! upstream's address has changed. Requests under way keep what they began with.

use std::{path::PathBuf, sync::Arc};

use http::{HeaderValue, header};
use reqwest::redirect;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    auth::AuthStyle,
    own_secrets::OwnSecrets,
    settings::{HttpVersion, Upstream, UpstreamFiles},
};
use crate::{
    pem,
    reloadable::{Loaded, NamedFile, Reloadable, Source},
    telemetry::Telemetry,
};

/// The gateway's own certificate chain towards the upstream, and its key.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

const KEY: &str = "--upstream-api-key-file";
const CA: &str = "--upstream-ca-file";
const CLIENT_CERTIFICATE: &str = "--upstream-client-cert-file";
const CLIENT_KEY: &str = "--upstream-client-key-file";

/// The HTTP clients of one upstream.
#[derive(Debug)]
pub(super) struct Transport {
    /// One for each `connection_group` of the admission.
    pub(super) unary: Vec<reqwest::Client>,
    pub(super) streams: reqwest::Client,
}

impl Transport {
    /// The clients of `upstream`, made anew when a file has changed or the time has come.
    pub(super) fn watch(
        upstream: &Upstream,
        telemetry: &Telemetry,
        secrets: Arc<OwnSecrets>,
    ) -> Result<Reloadable<Self>, String> {
        let UpstreamFiles { key, ca, identity } = upstream.files.clone();
        let present = (key.is_some(), ca.is_some(), identity.is_some());
        let (certificate, private) = identity.unzip();
        let named = |flag, path: Option<PathBuf>| path.map(|path| NamedFile { flag, path });
        let files = [
            named(KEY, key),
            named(CA, ca),
            named(CLIENT_CERTIFICATE, certificate),
            named(CLIENT_KEY, private),
        ];
        let settings = upstream.clone();
        let expiry = present
            .2
            .then(|| telemetry.metrics().certificate_expiry("upstream client"));
        let make = move |contents: &[Vec<u8>]| {
            let mut contents = contents.iter();
            let key = if present.0 {
                Some(parse_key(contents.next(), &settings.auth)?)
            } else {
                settings.key.clone()
            };
            let ca = if present.1 { contents.next() } else { None };
            let identity = if present.2 {
                contents.next().zip(contents.next())
            } else {
                None
            };
            let own = |(certificate, key): (&Vec<u8>, &Vec<u8>)| {
                let own = pem::own_chain(CLIENT_CERTIFICATE, certificate, pem::Use::Client)?;
                Ok::<_, String>((own, pem::private_key(CLIENT_KEY, key)?))
            };
            let identity = identity.map(own).transpose()?;
            let roots = ca.map(|ca| pem::roots(CA, ca)).transpose()?;
            let words = [
                key.as_ref().map(|_| "a key".to_owned()),
                roots.as_ref().map(|roots| format!("{} CAs", roots.len())),
                identity.as_ref().map(|(own, _)| own.summary.clone()),
            ];
            let words: Vec<_> = words.into_iter().flatten().collect();
            let times = identity
                .as_ref()
                .map(|(own, _)| (own.expires, own.expiry()));
            let identity = identity.map(|(own, key)| (own.chain, key));
            let value = Self::new(&settings, key.as_ref(), roots, identity)?;
            if let Some(key) = &key {
                secrets.add(key.expose_secret());
            }
            // Of what is in use, and not of what was refused.
            if let Some((expiry, (_, ends))) = expiry.as_ref().zip(times) {
                expiry.set(ends);
            }
            Ok(Loaded {
                value,
                summary: words.join(", "),
                expires: times.map(|(expires, _)| expires),
            })
        };
        let source = Source {
            what: "upstream",
            files: files.into_iter().flatten().collect(),
            interval: upstream.reload_interval,
            renewal: upstream.limits.renewal,
            failing: telemetry.metrics().reload_failing("upstream"),
        };
        Reloadable::new(source, make)
    }

    fn new(
        upstream: &Upstream,
        key: Option<&SecretString>,
        ca: Option<RootCertStore>,
        identity: Option<Identity>,
    ) -> Result<Self, String> {
        let mut headers = upstream.default_headers.clone();
        headers.extend(upstream.headers.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        // Without it any encoding would be allowed (RFC 9110, 12.5.3).
        headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        if let Some(key) = key {
            headers.insert(
                upstream.auth.header(),
                upstream.auth.value(key).map_err(|_| NO_KEY.to_owned())?,
            );
        }
        // An upstream in the clear needs no roots, and reading the system's takes time.
        let limits = &upstream.limits;
        let tls = if upstream.base.scheme() == "https" {
            Some(tls(ca, identity)?)
        } else {
            None
        };
        let builder = |protocols: &[&str]| {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("runs-gateway/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers.clone())
                // Without a number of none it would keep a copy of each request to retry it with.
                .retry(reqwest::retry::never().max_retries_per_request(0))
                .redirect(redirect::Policy::none())
                .referer(false)
                .no_proxy()
                .tcp_nodelay(true)
                .tcp_keepalive(limits.ping_interval)
                .tcp_keepalive_interval(limits.ping_timeout)
                .connect_timeout(limits.connect_timeout);
            let mut config = tls.clone().unwrap_or_else(no_tls);
            config.alpn_protocols = protocols
                .iter()
                .map(|protocol| protocol.as_bytes().to_vec())
                .collect();
            builder.tls_backend_preconfigured(config)
        };
        // Answers are small and many share a connection: each may fill its window without stalling
        // the others.
        let groups = limits.requests.connection_groups();
        let unary = || {
            let windows = |client: reqwest::ClientBuilder| {
                client
                    .pool_max_idle_per_host(upstream.kept_connections.div_ceil(groups))
                    .http2_initial_stream_window_size(256 << 10)
                    .http2_initial_connection_window_size(64 << 20)
                    .http2_keep_alive_interval(limits.ping_interval)
                    .http2_keep_alive_timeout(limits.ping_timeout)
            };
            match limits.http {
                HttpVersion::Negotiated => windows(builder(&["h2", "http/1.1"])).build(),
                HttpVersion::Http2 => windows(builder(&["h2"])).http2_prior_knowledge().build(),
            }
        };
        let clients = (0..groups).map(|_| unary()).collect::<Result<_, _>>();
        let streams = builder(&["http/1.1"])
            .pool_max_idle_per_host(upstream.kept_connections)
            .http1_only()
            .build();
        Ok(Self {
            unary: clients.map_err(|error| error.to_string())?,
            streams: streams.map_err(|error| error.to_string())?,
        })
    }
}

const NO_KEY: &str =
    "--upstream-api-key-file: the key is empty, or not a key that a header can hold";

/// The key in a file.
fn parse_key(text: Option<&Vec<u8>>, auth: &AuthStyle) -> Result<SecretString, String> {
    let text = std::str::from_utf8(text.map_or(&[], |text| &text[..]));
    let text = text.map_err(|_| format!("{KEY}: it is no text (UTF-8)"))?;
    upstream_key(KEY, text, auth)
}

/// The key in a text, without white space and a byte-order mark around it. What is a key only with
/// something around it is refused: the upstream would reject each request, and say less. `flag` is
/// where it was given, `auth` how it is sent.
pub fn upstream_key(flag: &str, text: &str, auth: &AuthStyle) -> Result<SecretString, String> {
    let key = text.trim_start_matches('\u{FEFF}').trim();
    // Not the `=` at the end of base64.
    let is_name = |name: &str| name.contains("_KEY") || name.contains("_TOKEN");
    let begins_with_bearer = key
        .get(..7)
        .is_some_and(|word| word.eq_ignore_ascii_case("bearer "));
    let wrong = if key.is_empty() {
        "is empty"
    } else if key.lines().count() > 1 {
        "has several lines: leave only the key"
    } else if key.starts_with(['"', '\'', '`', '\u{201c}']) {
        "stands in quotes: leave them out"
    } else if key.split_once('=').is_some_and(|(name, _)| is_name(name)) {
        "begins with a variable's name (NAME=…): leave only the key"
    } else if matches!(auth, AuthStyle::Bearer) && begins_with_bearer {
        "begins with `Bearer`: leave that out, the gateway adds it (--upstream-auth)"
    } else if HeaderValue::from_str(key).is_err() || !key.is_ascii() {
        "is not a key that a header can hold"
    } else {
        return Ok(SecretString::from(key));
    };
    Err(format!("{flag}: the key {wrong}"))
}

/// For a server in the clear: it trusts nobody, and reads no roots.
pub(super) fn no_tls() -> ClientConfig {
    config(RootCertStore::empty()).with_no_client_auth()
}

/// For a server that is known by the system's roots. Reads files.
pub(super) fn system_tls() -> Result<ClientConfig, String> {
    let roots = system_roots();
    if roots.is_empty() {
        return Err("there are no TLS roots to know the server by: install them".to_owned());
    }
    let mut config = config(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "some of the system's TLS roots cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    roots
}

fn tls(ca: Option<RootCertStore>, identity: Option<Identity>) -> Result<ClientConfig, String> {
    let roots = if let Some(ca) = ca {
        ca
    } else {
        system_roots()
    };
    if roots.is_empty() {
        return Err(
            "there are no TLS roots to know the upstream by: install them, or name a CA file by \
             --upstream-ca-file"
                .to_owned(),
        );
    }
    let Some((chain, key)) = identity else {
        return Ok(config(roots).with_no_client_auth());
    };
    config(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| format!("{CLIENT_KEY} is not the key of {CLIENT_CERTIFICATE}: {error}"))
}

fn config(
    roots: RootCertStore,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    // ring has all that these versions need, as a constant of the library.
    builder
        .with_protocol_versions(rustls::DEFAULT_VERSIONS)
        .unwrap_or_else(|error| unreachable!("{error}"))
        .with_root_certificates(roots)
}
