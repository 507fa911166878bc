//! Certificates for one test: an authority, and what it signs.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};

/// A certificate authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let pem = issuer.pem();
        Self { issuer, pem }
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A server's certificate and key, PEM.
    pub(crate) fn server(&self, name: &str) -> (String, String) {
        self.sign(name, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's certificate and key, PEM.
    pub(crate) fn client(&self, name: &str) -> (String, String) {
        self.sign(name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// The same, for a time that has passed.
    pub(crate) fn expired_server(&self, name: &str) -> (String, String) {
        self.sign_until(name, ExtendedKeyUsagePurpose::ServerAuth, 2001)
    }

    fn sign(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> (String, String) {
        self.sign_until(name, purpose, 4000)
    }

    fn sign_until(
        &self,
        name: &str,
        purpose: ExtendedKeyUsagePurpose,
        year: i32,
    ) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let text = name.try_into().expect("ASCII");
        params.subject_alt_names = vec![if name.contains("://") {
            SanType::URI(text)
        } else {
            SanType::DnsName(text)
        }];
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}
