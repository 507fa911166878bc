//! How a credential is sent.

use http::{HeaderName, HeaderValue, header};
use secrecy::{ExposeSecret as _, SecretString};

/// How a credential is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthStyle {
    /// `authorization: Bearer KEY`.
    Bearer,
    /// The key alone, in a header of this name, such as Azure's `api-key`.
    Header(HeaderName),
}

impl AuthStyle {
    /// The header that has the credential.
    pub fn header(&self) -> HeaderName {
        match self {
            Self::Bearer => header::AUTHORIZATION,
            Self::Header(name) => name.clone(),
        }
    }

    pub(super) fn value(
        &self,
        key: &SecretString,
    ) -> Result<HeaderValue, header::InvalidHeaderValue> {
        let mut value = match self {
            Self::Bearer => HeaderValue::try_from(format!("Bearer {}", key.expose_secret())),
            Self::Header(_) => HeaderValue::try_from(key.expose_secret()),
        }?;
        value.set_sensitive(true);
        Ok(value)
    }
}
