//! Who may call: the one place that decides.
//!
//! Must hold: with a key of the gateway's own, a call is admitted only if its caller is known by a
//! token or by a client certificate, or if it was said by name that anybody may call. Without one
//! the caller's own credential is passed on, and the upstream decides. Health and reflection give
//! nothing away and are open to all; every other path is guarded, whatever it names.
//!
//! Tokens are kept as SHA-256 hashes, in the file as in memory, and compared in constant time
//! against all of them: neither a core dump nor a stopwatch tells one.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use http::{HeaderMap, HeaderName, header};
use subtle::ConstantTimeEq as _;
use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::routes::is_infra;
use crate::{
    error::Error,
    reloadable::Reloadable,
    shares::{Accepted, Credential, Owner},
};

/// How callers are told apart.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Tokens that are admitted, as `authorization: Bearer TOKEN`.
    pub tokens: Option<Reloadable<Tokens>>,
    /// Names in client certificates that are admitted: subject alternative names (DNS or URI, such
    /// as `spiffe://domain/service`) or common names. An empty list admits every certificate that
    /// the client CA signed. `None`: certificates are not asked for.
    pub clients: Option<Arc<[String]>>,
    /// The header that has a caller's own credential, and those of them that the upstream has
    /// accepted. `None` where the gateway has a key of its own.
    pub credentials: Option<(HeaderName, Accepted)>,
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
}

/// The name of an admitted caller, if callers are told apart. It stands beside the token in its
/// file, or is the name that admits the certificate. Callers of one name share what is shared out
/// by callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant(pub Arc<str>);

/// Hashes of the tokens that are admitted, each with its caller's name.
#[derive(Clone, Default)]
pub struct Tokens(Vec<([u8; 32], Tenant)>);

impl fmt::Debug for Tokens {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} tokens", self.0.len())
    }
}

impl Tokens {
    /// Reads a file of tokens: on each line a SHA-256 hash in hexadecimal, as `printf %s TOKEN |
    /// sha256sum` prints it, and the caller's name. Without one (or with the `-` of `sha256sum`)
    /// the hash's first letters are the name. Empty lines and lines that begin with `#` are for
    /// people.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "the tokens are not text".to_owned())?;
        let lines = text
            .lines()
            .map(str::trim)
            .enumerate()
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let parse = |(at, line): (usize, &str)| {
            let (word, name) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let hash = hash(word).ok_or_else(|| {
                format!(
                    "line {} of the tokens does not begin with a SHA-256 hash",
                    at + 1
                )
            })?;
            let name = name.trim();
            let name = if matches!(name, "" | "-") {
                &word[..8]
            } else {
                name
            };
            Ok((hash, Tenant(name.into())))
        };
        let tokens = lines.map(parse).collect::<Result<Vec<_>, String>>()?;
        if tokens.is_empty() {
            return Err("no token in it: nobody could call".to_owned());
        }
        Ok(Self(tokens))
    }

    /// How many they are, and of how many callers, by name.
    pub fn summary(&self) -> String {
        let names: BTreeSet<_> = self.0.iter().map(|(_, tenant)| &tenant.0).collect();
        format!("{} callers by {} tokens", names.len(), self.0.len())
    }

    fn admit(&self, token: &[u8]) -> Option<&Tenant> {
        let digest = ring::digest::digest(&ring::digest::SHA256, token);
        // To the last one, whichever it is.
        self.0.iter().fold(None, |found, (known, tenant)| {
            if known[..].ct_eq(digest.as_ref()).into() {
                Some(tenant)
            } else {
                found
            }
        })
    }
}

fn hash(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// What is known of the other side of a connection: the names in its certificate, if it has shown
/// one.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    address: IpAddr,
    names: Option<Arc<[String]>>,
}

impl Peer {
    /// The peer whose certificate was verified in the handshake.
    pub(super) fn new(address: IpAddr, certificate: Option<&CertificateDer<'_>>) -> Self {
        Self {
            address,
            names: certificate.map(|certificate| names(certificate).into()),
        }
    }
}

/// The names in a certificate.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            _ => None,
        });
    let common = certificate
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok().map(str::to_owned));
    alternative.chain(common).collect()
}

impl Access {
    /// Decides whether a call of `path` is admitted, and as whose. A token says more than a
    /// certificate, which many may share behind a proxy.
    pub(super) fn admit(
        &self,
        peer: &Peer,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Option<Tenant>, Error> {
        if is_infra(path) || (self.tokens.is_none() && self.clients.is_none()) {
            return Ok(None);
        }
        let by_token = self
            .tokens
            .as_ref()
            .zip(bearer(headers))
            .and_then(|(tokens, token)| tokens.get().admit(token).cloned());
        let by_certificate = || {
            let (allowed, names) = self.clients.as_ref().zip(peer.names.as_ref())?;
            let name = names
                .iter()
                .find(|name| allowed.is_empty() || allowed.contains(name));
            // A certificate of the CA's without a name is as good as any, if any is good.
            name.map(String::as_str)
                .or_else(|| allowed.is_empty().then_some(""))
                .map(|name| Tenant(name.into()))
        };
        by_token
            .or_else(by_certificate)
            .map(Some)
            .ok_or(Error::NotAdmitted)
    }
}

impl Access {
    /// Whose share a call counts to: by its caller's name; where callers bring their own keys, by
    /// the credential once the upstream has accepted it; where nobody is known, by the address.
    pub(super) fn account(
        &self,
        peer: &Peer,
        tenant: Option<&Tenant>,
        headers: &HeaderMap,
    ) -> Account {
        if let Some(Tenant(name)) = tenant {
            let owner = Owner::of(name);
            return Account {
                owner,
                credential: None,
                name: Some(Arc::clone(name)),
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
        }
    }
}

impl Peer {
    /// The share of all calls from this address.
    pub(super) fn account(&self) -> Account {
        Account {
            owner: Owner::of(&self.address),
            credential: None,
            name: None,
        }
    }
}

/// The one bearer token of a call. Two are none: which of them would have been meant?
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, more) = (values.next()?.as_bytes(), values.next());
    let (scheme, token) = value.split_at_checked(7)?;
    (more.is_none() && scheme.eq_ignore_ascii_case(b"Bearer ")).then(|| token.trim_ascii())
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
            credentials: None,
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
                Ok(Some("2bb80d53")),
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
            let told = access.admit(&peer, path, &headers);
            assert_eq!(
                told.as_ref()
                    .map(|tenant| tenant.as_ref().map(|it| &*it.0))
                    .map_err(|_| ()),
                admitted,
                "{case}"
            );
        }
    }

    #[test]
    fn a_file_of_tokens_is_hashes_and_words_for_people() {
        let text = format!(
            "# who may call\n\n{SECRET}\n{} the batch job\n",
            &SECRET[..64].to_uppercase()
        );
        assert_eq!(Tokens::parse(text.as_bytes()).expect("tokens").0.len(), 2);
        for wrong in ["# none", "secret", "2bb80d", &"zz".repeat(32), "ä"] {
            let error = Tokens::parse(wrong.as_bytes()).expect_err(wrong);
            assert!(!error.contains(wrong), "{error}");
        }
    }
}
