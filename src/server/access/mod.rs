//! Who may call, and as whom: the one place that decides.
//!
//! | file | what it knows |
//! |---|---|
//! | `peer` | the other side of a connection: its address, the names in its certificate |
//! | `mesh` | callers that a mesh's proxies name, and which peers are such proxies |
//! | `xfcc` | the grammar of `x-forwarded-client-cert`, a pure parser |
//! | `jwt` | callers that an issuer's JWTs name |
//! | `jwks` | the issuer's keys, from a file or by URL |
//! | `crypto` | ring, as the cryptography of JWTs |
//! | `tokens` | callers that a file of tokens names |
//!
//! Must hold:
//!
//! - With a key of the gateway's own, a call is admitted only if its caller is known by one of
//!   these, or if it was said by name that anybody may call. Without one the caller's own
//!   credential is passed on, and the upstream decides.
//! - A call has one identity: that of the client certificate, the mesh, the JWT or the token, in
//!   this order. The first that is presented decides: a bad one is refused, never passed over.
//! - Health and reflection give nothing away and are open to all; every other path is guarded,
//!   whatever it names.

mod crypto;
mod jwks;
mod jwt;
mod mesh;
mod peer;
mod tokens;
mod xfcc;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};

pub(super) use self::{jwks::Renewed, peer::Peer};
pub use self::{
    jwks::{FetchRules, Jwks, KeySet, RemoteKeys},
    jwt::{Jwt, JwtRules},
    mesh::{Mesh, MeshIdentity, MeshPeer},
    tokens::Tokens,
};
use super::routes::is_infra;
use crate::{
    error::Error,
    reloadable::Reloadable,
    shares::{Accepted, Credential, Owner, Weights},
};

/// How callers are told apart.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Names in client certificates that are admitted: subject alternative names (DNS or URI, such
    /// as `spiffe://domain/service`) or common names. An empty list admits every certificate that
    /// the client CA signed. `None`: certificates are not asked for.
    pub clients: Option<Arc<[String]>>,
    /// The mesh that names callers.
    pub mesh: Option<Arc<Mesh>>,
    /// JWTs that are admitted, as `authorization: Bearer JWT`.
    pub jwt: Option<Jwt>,
    /// Tokens that are admitted, as `authorization: Bearer TOKEN`.
    pub tokens: Option<Reloadable<Tokens>>,
    /// The header that has a caller's own credential, and those of them that the upstream has
    /// accepted. `None` where the gateway has a key of its own.
    pub credentials: Option<(HeaderName, Accepted)>,
    /// How many callers each caller counts as where things are shared out.
    pub weights: Option<Reloadable<Weights>>,
}

/// Whose share a call counts to.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Who holds what is held for the call.
    pub owner: Owner,
    /// The caller's own credential, if it has one: what becomes of it upstream decides about its
    /// share.
    pub credential: Option<Credential>,
    /// The caller's name, if callers are told apart.
    pub name: Option<Arc<str>>,
    /// Callers bring credentials of their own: who brings none that the upstream has accepted is
    /// not known.
    pub needs_credential: bool,
}

impl Account {
    /// Whether the caller is one that may have what is asked for, as far as can be told.
    pub(super) fn is_known(&self) -> bool {
        let accepted = self
            .credential
            .as_ref()
            .is_some_and(Credential::is_accepted);
        accepted || !self.needs_credential
    }
}

/// The name of an admitted caller, if callers are told apart: the name that admits the certificate,
/// that the mesh or the JWT says, or that stands beside the token in its file. Callers of one name
/// are one caller, however they are known, and share what is shared out by callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant(pub Arc<str>);

/// What a caller hears that showed nothing.
const NOTHING_SHOWN: &str =
    "send a token as `authorization: Bearer TOKEN`, or a client certificate";
const CERTIFICATE: &str = "none of the names in its certificate is admitted (--allowed-client)";
const TOKEN: &str = "its token is not among those that are admitted (--tokens-file)";
const AUTHORIZATION: &str =
    "there has to be one `authorization`, and it has to be `Bearer` and a token";

/// An identity that was presented: whose it is, or why it is refused.
type Presented = Result<Tenant, &'static str>;

impl Access {
    /// Takes off what only the mesh's proxies may say, if the peer is none. True if there was
    /// anything.
    pub(super) fn strip(&self, peer: &Peer, headers: &mut HeaderMap) -> bool {
        let mesh = self.mesh.as_ref();
        mesh.is_some_and(|mesh| mesh.strip(peer, headers))
    }

    /// If the call cannot be decided now, but maybe soon: what to wait for before it is.
    pub(super) fn renewal(&self, peer: &Peer, path: &str, headers: &HeaderMap) -> Option<Renewed> {
        let jwt = self.jwt.as_ref()?;
        if is_infra(path) || self.by_connection(peer, headers).is_some() {
            return None;
        }
        jwt.renewal(bearer(headers)?.ok()?)
    }

    /// Decides whether a call of `path` is admitted, and as whose.
    pub(super) fn admit(
        &self,
        peer: &Peer,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Option<Tenant>, Error> {
        let is_open = self.clients.is_none()
            && self.mesh.is_none()
            && self.jwt.is_none()
            && self.tokens.is_none();
        if is_infra(path) || is_open {
            return Ok(None);
        }
        self.by_connection(peer, headers)
            .or_else(|| self.by_authorization(headers))
            .unwrap_or(Err(NOTHING_SHOWN))
            .map(Some)
            .map_err(|what| Error::NotAdmitted { what })
    }

    /// What the connection, or the proxy at its other end, says.
    fn by_connection(&self, peer: &Peer, headers: &HeaderMap) -> Option<Presented> {
        let by_mesh = || self.mesh.as_ref()?.caller(peer, headers);
        self.by_certificate(peer).or_else(by_mesh)
    }

    /// A proxy's certificate says which proxy it is, and not who calls.
    fn by_certificate(&self, peer: &Peer) -> Option<Presented> {
        let (allowed, names) = self.clients.as_ref().zip(peer.names.as_ref())?;
        if self.mesh.as_ref().is_some_and(|mesh| mesh.is_proxy(peer)) {
            return None;
        }
        let name = names
            .iter()
            .find(|name| allowed.is_empty() || allowed.contains(name));
        // A certificate of the CA's without a name is as good as any, if any is good.
        let name = name
            .map(String::as_str)
            .or_else(|| allowed.is_empty().then_some(""));
        Some(name.map(|name| Tenant(name.into())).ok_or(CERTIFICATE))
    }

    /// A JWT or a token. Where both are taken, what looks like a JWT is one.
    fn by_authorization(&self, headers: &HeaderMap) -> Option<Presented> {
        if self.jwt.is_none() && self.tokens.is_none() {
            return None;
        }
        let token = match bearer(headers)? {
            Ok(token) => token,
            Err(what) => return Some(Err(what)),
        };
        Some(match (&self.jwt, &self.tokens) {
            (Some(jwt), None) => jwt.caller(token),
            (Some(jwt), Some(_)) if jwt::is_jwt(token) => jwt.caller(token),
            (_, tokens) => {
                let tokens = tokens.as_ref().map(Reloadable::get);
                let admitted = tokens.and_then(|tokens| tokens.admit(token).cloned());
                admitted.ok_or(TOKEN)
            }
        })
    }

    /// Whose share a call counts to: by its caller's name; where callers bring their own keys, by
    /// the credential once the upstream has accepted it; where nobody is known, by the address.
    pub(super) fn account(
        &self,
        peer: &Peer,
        tenant: Option<&Tenant>,
        headers: &HeaderMap,
    ) -> Account {
        if let Some(Tenant(name)) = tenant {
            let weights = self.weights.as_ref().map(Reloadable::get);
            let weight = weights.map_or(1, |weights| weights.of(name));
            let owner = Owner::of(name).of_weight(weight);
            return Account {
                owner,
                credential: None,
                name: Some(Arc::clone(name)),
                needs_credential: false,
            };
        }
        let Some((header, accepted)) = &self.credentials else {
            return peer.account();
        };
        let credential = headers
            .get(header)
            .map(|value| accepted.credential(&value.as_bytes()));
        Account {
            owner: credential
                .as_ref()
                .map(Credential::owner)
                .unwrap_or_default(),
            credential,
            name: None,
            needs_credential: true,
        }
    }
}

/// The one bearer token of a call, if anything of that kind is presented. Two are none: which of
/// them would have been meant?
fn bearer(headers: &HeaderMap) -> Option<Result<&[u8], &'static str>> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, more) = (values.next()?.as_bytes(), values.next());
    let token = value
        .split_at_checked(7)
        .filter(|(scheme, _)| more.is_none() && scheme.eq_ignore_ascii_case(b"Bearer "));
    Some(
        token
            .map(|(_, token)| token.trim_ascii())
            .ok_or(AUTHORIZATION),
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// `printf %s secret | sha256sum`
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b  -";
    /// The same of `other`.
    const OTHER: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";
    const PATH: &str = "/runsgateway.v1.RunService/GetRun";

    fn access(tokens: Option<&str>, clients: Option<&[&str]>) -> Access {
        Access {
            tokens: tokens
                .map(|text| Reloadable::fixed(Tokens::parse(text.as_bytes()).expect("tokens"))),
            clients: clients.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
            ..Access::default()
        }
    }

    fn peer(names: Option<&[&str]>) -> Peer {
        Peer {
            address: Ipv4Addr::LOCALHOST.into(),
            names: names.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        }
    }

    fn headers(values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (header::AUTHORIZATION, value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn a_caller_is_admitted_only_if_it_is_known() {
        let spiffe: &[&str] = &["spiffe://mesh/ns/a/sa/b"];
        let named = format!("{} the batch job\n{} -", &SECRET[..64], &OTHER[..64]);
        // Admitted as whose: nobody is asked, or nobody is told apart, if as `None`.
        let cases = [
            (
                "nobody is asked",
                access(None, None),
                peer(None),
                headers(&[]),
                PATH,
                Ok(None),
            ),
            (
                "a known token",
                access(Some(SECRET), None),
                peer(None),
                headers(&["Bearer secret"]),
                PATH,
                Ok(Some("2bb80d53")),
            ),
            (
                "a token with a name",
                access(Some(&named), None),
                peer(None),
                headers(&["Bearer secret"]),
                PATH,
                Ok(Some("the batch job")),
            ),
            (
                "another one",
                access(Some(&named), None),
                peer(None),
                headers(&["Bearer other"]),
                PATH,
                Ok(Some("d9298a10")),
            ),
            (
                "the scheme in lower case",
                access(Some(SECRET), None),
                peer(None),
                headers(&["bearer secret"]),
                PATH,
                Ok(Some("2bb80d53")),
            ),
            (
                "no token",
                access(Some(SECRET), None),
                peer(None),
                headers(&[]),
                PATH,
                Err(()),
            ),
            (
                "another token",
                access(Some(SECRET), None),
                peer(None),
                headers(&["Bearer secret2"]),
                PATH,
                Err(()),
            ),
            (
                "the hash instead of the token",
                access(Some(SECRET), None),
                peer(None),
                headers(&[&SECRET[..64]]),
                PATH,
                Err(()),
            ),
            (
                "two tokens",
                access(Some(SECRET), None),
                peer(None),
                headers(&["Bearer secret", "Bearer x"]),
                PATH,
                Err(()),
            ),
            (
                "another scheme",
                access(Some(SECRET), None),
                peer(None),
                headers(&["Basic secret"]),
                PATH,
                Err(()),
            ),
            (
                "an empty token",
                access(Some(SECRET), None),
                peer(None),
                headers(&["Bearer "]),
                PATH,
                Err(()),
            ),
            (
                "health is open",
                access(Some(SECRET), None),
                peer(None),
                headers(&[]),
                "/grpc.health.v1.Health/Check",
                Ok(None),
            ),
            (
                "a named client",
                access(None, Some(spiffe)),
                peer(Some(&["x", spiffe[0]])),
                headers(&[]),
                PATH,
                Ok(Some(spiffe[0])),
            ),
            (
                "another client",
                access(None, Some(spiffe)),
                peer(Some(&["spiffe://mesh/ns/a/sa/c"])),
                headers(&[]),
                PATH,
                Err(()),
            ),
            (
                "any client of the CA",
                access(None, Some(&[])),
                peer(Some(&["x", "y"])),
                headers(&[]),
                PATH,
                Ok(Some("x")),
            ),
            (
                "one without a name",
                access(None, Some(&[])),
                peer(Some(&[])),
                headers(&[]),
                PATH,
                Ok(Some("")),
            ),
            (
                "no certificate",
                access(None, Some(&[])),
                peer(None),
                headers(&[]),
                PATH,
                Err(()),
            ),
            (
                "a token instead of a certificate",
                access(Some(SECRET), Some(spiffe)),
                peer(None),
                headers(&["Bearer secret"]),
                PATH,
                Ok(Some("2bb80d53")),
            ),
            (
                "a token beside a certificate",
                access(Some(SECRET), Some(spiffe)),
                peer(Some(spiffe)),
                headers(&["Bearer secret"]),
                PATH,
                Ok(Some(spiffe[0])),
            ),
            (
                "a token beside a certificate that is not admitted",
                access(Some(SECRET), Some(spiffe)),
                peer(Some(&["spiffe://mesh/ns/a/sa/c"])),
                headers(&["Bearer secret"]),
                PATH,
                Err(()),
            ),
            (
                "a certificate beside a wrong token",
                access(Some(SECRET), Some(spiffe)),
                peer(Some(spiffe)),
                headers(&["Bearer x"]),
                PATH,
                Ok(Some(spiffe[0])),
            ),
        ];
        for (case, access, peer, headers, path, admitted) in cases {
            let caller = access.admit(&peer, path, &headers);
            assert_eq!(
                caller
                    .as_ref()
                    .map(|tenant| tenant.as_ref().map(|it| &*it.0))
                    .map_err(|_| ()),
                admitted,
                "{case}"
            );
        }
    }
}
