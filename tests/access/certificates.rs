//! Certificates for one test: an authority, and what it signs.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::time::Duration;

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
        self.sign(name, ExtendedKeyUsagePurpose::ServerAuth, ALWAYS)
    }

    /// A client's certificate and key, PEM.
    pub(crate) fn client(&self, name: &str) -> (String, String) {
        self.sign(name, ExtendedKeyUsagePurpose::ClientAuth, ALWAYS)
    }

    /// The same, for a time that has passed.
    pub(crate) fn expired_server(&self, name: &str) -> (String, String) {
        self.sign(name, ExtendedKeyUsagePurpose::ServerAuth, PAST)
    }

    /// A client's, likewise.
    pub(crate) fn expired_client(&self, name: &str) -> (String, String) {
        self.sign(name, ExtendedKeyUsagePurpose::ClientAuth, PAST)
    }

    /// A server's that is valid until then, in Unix seconds.
    pub(crate) fn server_until(&self, name: &str, end: u64) -> (String, String) {
        let valid = (PAST.0, end);
        self.sign(name, ExtendedKeyUsagePurpose::ServerAuth, valid)
    }

    /// A server's that is not valid yet.
    pub(crate) fn future_server(&self, name: &str) -> (String, String) {
        let valid = (ALWAYS.1 - 1, ALWAYS.1);
        self.sign(name, ExtendedKeyUsagePurpose::ServerAuth, valid)
    }

    /// `valid` is from when until when, in Unix seconds.
    fn sign(
        &self,
        name: &str,
        purpose: ExtendedKeyUsagePurpose,
        valid: (u64, u64),
    ) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        let at = |seconds| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        params.not_before = at(valid.0);
        params.not_after = at(valid.1);
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

/// The year 2000, and from then to the year 4000, in Unix seconds.
const PAST: (u64, u64) = (946_684_800, 978_307_200);
const ALWAYS: (u64, u64) = (PAST.0, 64_060_588_800);
