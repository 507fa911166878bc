//! Where the names of callers come from: each source with its two callers, who call on connections
//! of their own.

use serde_json::json;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::{
    Isolated, OTHER, SECRET,
    certificates::Authority,
    issuer::{AUDIENCE, ISSUER, Signer, claims, jwks},
};

/// What tells the gateway who calls.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    Token,
    Jwt,
    Mesh,
    Certificate,
}

/// One caller, as it calls.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) channel: Channel,
    pub(crate) metadata: Option<(&'static str, String)>,
}

impl Source {
    pub(crate) const ALL: [Self; 4] = [Self::Token, Self::Jwt, Self::Mesh, Self::Certificate];

    /// A gateway that knows its callers by this, and two of them, whom it calls `a` and `b`.
    pub(crate) async fn start(self) -> (Isolated, [Caller; 2]) {
        match self {
            Self::Token => {
                let tokens = format!("{SECRET} a\n{OTHER} b\n");
                let isolated = Isolated::with(&[("--tokens-file", &tokens)], &[]).await;
                let caller = |token| isolated.saying("authorization", format!("Bearer {token}"));
                let callers = [caller(crate::A), caller(crate::B)];
                (isolated, callers)
            }
            Self::Jwt => {
                let key = Signer::ed25519();
                let keys = jwks(&[key.jwk("k")]);
                let flags = ["--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
                let isolated = Isolated::with(&[("--jwt-jwks-file", &keys)], &flags).await;
                let caller = |name| {
                    let jwt = key.jwt("k", &claims(&json!({ "sub": name })));
                    isolated.saying("authorization", format!("Bearer {jwt}"))
                };
                let callers = [caller("a"), caller("b")];
                (isolated, callers)
            }
            Self::Mesh => {
                let flags = ["--mesh-identity", "xfcc", "--mesh-peer", "loopback"];
                let isolated = Isolated::with(&[], &flags).await;
                let caller = |name| {
                    let said = format!("By=spiffe://mesh/gateway;Hash=00;URI=spiffe://mesh/{name}");
                    isolated.saying("x-forwarded-client-cert", said)
                };
                let callers = [caller("a"), caller("b")];
                (isolated, callers)
            }
            Self::Certificate => {
                let authority = Authority::new();
                let (certificate, key) = authority.server("localhost");
                let files = [
                    ("--tls-cert-file", &*certificate),
                    ("--tls-key-file", &*key),
                    ("--tls-client-ca-file", authority.pem()),
                ];
                let allowed = ["--allowed-client", "a", "--allowed-client", "b"];
                let isolated = Isolated::with(&files, &allowed).await;
                let caller = |name| Caller {
                    channel: isolated.by_tls(&authority, &authority.client(name)),
                    metadata: None,
                };
                let callers = [caller("a"), caller("b")];
                (isolated, callers)
            }
        }
    }
}

impl Isolated {
    fn saying(&self, name: &'static str, value: String) -> Caller {
        Caller {
            channel: self.gateway.channel(),
            metadata: Some((name, value)),
        }
    }

    fn by_tls(&self, authority: &Authority, client: &(String, String)) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(authority.pem()))
            .domain_name("localhost")
            .identity(Identity::from_pem(&client.0, &client.1));
        let url = format!("https://{}", self.gateway.address());
        let endpoint = Endpoint::from_shared(url).expect("a URL");
        endpoint.tls_config(tls).expect("TLS").connect_lazy()
    }
}
