//! The flags that say who may call, and how the listener shows who it is.

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use humantime::Duration;

use super::Invalid;
use crate::{
    reloadable::{Loaded, NamedFile, Reloadable, Source},
    server::{self, Origin, TlsFiles, Tokens},
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

    /// The listener's certificate chain, PEM. With it, connections are by TLS only.
    #[arg(long, requires = "tls_key_file")]
    tls_cert_file: Option<PathBuf>,

    /// The listener's private key, PEM.
    #[arg(long, requires = "tls_cert_file")]
    tls_key_file: Option<PathBuf>,

    /// The CA that signs clients' certificates, PEM. With it, callers must show a certificate (or a
    /// token, if there is a file of tokens).
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
    #[arg(long, default_value = "5s")]
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

/// Who may call.
#[derive(Debug, Clone)]
pub struct AccessConfig {
    /// Hashes of tokens.
    pub tokens_file: Option<PathBuf>,
    /// Names in client certificates; `None` if certificates are not asked for.
    pub clients: Option<Arc<[String]>>,
    /// Pages that may call.
    pub web_origins: Vec<Origin>,
    /// TLS for the listener.
    pub tls: Option<TlsFiles>,
    /// How often files are looked at for changes.
    pub reload_interval: std::time::Duration,
}

impl AccessArgs {
    /// Whether callers are told apart at all.
    pub(super) fn is_closed(&self) -> bool {
        self.has_tokens() || self.tls_client_ca_file.is_some()
    }

    /// Whether any page may call.
    pub(super) fn is_open_to_pages(&self) -> bool {
        self.web_origins.iter().any(Origin::is_any)
    }

    pub(super) fn reload_interval(&self) -> std::time::Duration {
        *self.reload_interval
    }

    pub(super) fn has_tokens(&self) -> bool {
        self.tokens_file.is_some()
    }
}

impl AccessConfig {
    /// Reads what it names. Has to be called in a runtime.
    pub fn open(&self, telemetry: &Telemetry) -> Result<server::Access, Invalid> {
        const FLAG: &str = "--tokens-file";
        let watch = |path: PathBuf| {
            let source = Source {
                what: "tokens",
                files: vec![NamedFile { flag: FLAG, path }],
                interval: self.reload_interval,
                renewal: std::time::Duration::ZERO,
                failing: telemetry.metrics().reload_failing("tokens"),
            };
            Reloadable::new(source, |contents| {
                let tokens = Tokens::parse(contents.first().map_or(&[], Vec::as_slice))
                    .map_err(|error| format!("{FLAG}: {error}"))?;
                Ok(Loaded {
                    summary: tokens.summary(),
                    value: tokens,
                    expires: None,
                })
            })
        };
        let tokens = self
            .tokens_file
            .clone()
            .map(watch)
            .transpose()
            .map_err(Invalid)?;
        Ok(server::Access {
            tokens,
            clients: self.clients.clone(),
            credentials: None,
        })
    }
}

impl From<AccessArgs> for AccessConfig {
    fn from(args: AccessArgs) -> Self {
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
                client_optional: args.tokens_file.is_some(),
                http1: !args.web_origins.is_empty(),
            });
        Self {
            tokens_file: args.tokens_file,
            clients,
            web_origins: args.web_origins,
            tls,
            reload_interval: *args.reload_interval,
        }
    }
}
