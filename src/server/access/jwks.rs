//! The keys that an issuer publishes (a JWKS, RFC 7517), from a file or by URL.
//!
//! Must hold:
//!
//! - A key is taken with the algorithm that it is for: RSA with RS256, P-256 with ES256, Ed25519
//!   with `EdDSA`. All other keys of the set are passed over, symmetric ones among them.
//! - Keys by URL are fetched again in the background, and when a token names a key that is not
//!   known. However many such tokens come, there is one fetch at a time, and a pause after each.
//! - Keys that could not be renewed are used until they reach their age, and no longer.
//! - Size and time of a fetch are bounded, and so is how many calls wait for one.

use std::{fmt, future::ready, pin::Pin, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use clap::Args;
use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use prometheus::IntGauge;
use serde_json::Value;
use tokio::{
    select,
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::super::jitter::jittered;
use crate::{reloadable::Reloadable, setting::some_time, upstream::fetch_document};

/// The largest set that is fetched, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// The most keys of a set.
const MAX_KEYS: usize = 100;

/// The shortest RSA modulus, in bytes: ring takes none of less than 2048 bits.
const MIN_MODULUS: usize = 256;

/// The most calls that wait for a fetch. More are refused: they are a flood, or come again.
const WAITING: usize = 1000;

/// A key that is not renewed in time is tried this often before it would be due again.
const TRIES: u32 = 10;

/// The keys of one set.
#[derive(Clone, Default)]
pub struct KeySet(Vec<Key>);

/// A key, and what it is for.
#[derive(Clone)]
pub(super) struct Key {
    kid: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

impl fmt::Debug for KeySet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} keys", self.0.len())
    }
}

impl KeySet {
    /// How many they are.
    pub fn summary(&self) -> String {
        format!("{} keys", self.0.len())
    }

    /// Reads a JWKS document. An error holds nothing of it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let document: Value = serde_json::from_slice(text)
            .map_err(|_| "not a JWKS document: it is not JSON".to_owned())?;
        let Some(Value::Array(keys)) = document.get("keys") else {
            return Err("not a JWKS document: it has no list of keys".to_owned());
        };
        if keys.len() > MAX_KEYS {
            return Err(format!("more than {MAX_KEYS} keys in it"));
        }
        let keys: Vec<_> = keys
            .iter()
            // Others' keys may be of kinds that nobody here has heard of.
            .filter_map(|key| Key::new(&serde_json::from_value(key.clone()).ok()?))
            .collect();
        if keys.is_empty() {
            return Err("no key in it that verifies RS256, ES256 or EdDSA".to_owned());
        }
        Ok(Self(keys))
    }

    /// The key of this name; if tokens need not name theirs, the only key. Of two with one name the
    /// one for this algorithm.
    pub(super) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<&Key> {
        let Some(kid) = kid else {
            return match &self.0[..] {
                [key] => Some(key),
                _ => None,
            };
        };
        let mut named = self.0.iter().filter(|key| key.kid.as_deref() == Some(kid));
        let first = named.clone().next();
        named.find(|key| key.algorithm == algorithm).or(first)
    }

    fn has(&self, kid: &str) -> bool {
        self.0.iter().any(|key| key.kid.as_deref() == Some(kid))
    }
}

impl Key {
    fn new(jwk: &Jwk) -> Option<Self> {
        let common = &jwk.common;
        let (algorithm, name) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            _ => return None,
        };
        let is_for_signatures = common
            .public_key_use
            .as_ref()
            .is_none_or(|usage| *usage == PublicKeyUse::Signature)
            && common
                .key_operations
                .as_ref()
                .is_none_or(|operations| operations.contains(&KeyOperations::Verify))
            && common.key_algorithm.is_none_or(|known| known == name);
        let decoding = DecodingKey::from_jwk(jwk).ok()?;
        let is_long_enough = match decoding.kind() {
            DecodingKeyKind::RsaModulusExponent { n, .. } => {
                n.iter().skip_while(|byte| **byte == 0).count() >= MIN_MODULUS
            }
            DecodingKeyKind::SecretOrDer(_) => true,
        };
        (is_for_signatures && is_long_enough).then(|| Self {
            kid: common.key_id.clone(),
            algorithm,
            decoding,
        })
    }
}

/// Where an issuer's keys come from. Cheap to clone; clones see the same keys.
#[derive(Clone)]
pub enum Jwks {
    /// A file, which is read again when it changes.
    File(Reloadable<KeySet>),
    /// A URL.
    Url(Arc<RemoteKeys>),
}

impl fmt::Debug for Jwks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::File(_) => "keys of a file",
            Self::Url(_) => "keys of a URL",
        })
    }
}

impl Jwks {
    /// The keys; none if they could not be had, or are too old.
    pub(super) fn get(&self) -> Option<Arc<KeySet>> {
        match self {
            Self::File(keys) => Some(keys.get()),
            Self::Url(remote) => remote.shared.get(),
        }
    }

    /// What to wait for if a key of this name may soon be known. `None` if it is known, or if it is
    /// of no use to wait.
    pub(super) fn renewal(&self, kid: Option<&str>) -> Option<Renewed> {
        match self {
            Self::File(_) => None,
            Self::Url(remote) => remote.shared.renewal(kid),
        }
    }
}

/// How keys by URL are fetched.
#[derive(Debug, Clone, Args)]
pub struct FetchRules {
    /// The age at which keys of --jwt-jwks-url are fetched again. If that fails, it is tried ten
    /// times as often.
    #[arg(id = "jwt-jwks-renewal", long, default_value = "5m", value_parser = some_time,
        requires = "jwt_jwks_url", conflicts_with = "jwt_jwks_file")]
    pub renewal: Duration,

    /// The age at which keys of --jwt-jwks-url that could not be fetched again are used no longer:
    /// no JWT is admitted then.
    #[arg(id = "jwt-jwks-max-age", long, default_value = "1h", value_parser = some_time,
        requires = "jwt_jwks_url", conflicts_with = "jwt_jwks_file")]
    pub max_age: Duration,

    /// The shortest time between two fetches of --jwt-jwks-url, however many JWTs name keys that
    /// are not known.
    #[arg(id = "jwt-jwks-pause", long, default_value = "5s", value_parser = some_time,
        requires = "jwt_jwks_url", conflicts_with = "jwt_jwks_file")]
    pub pause: Duration,

    /// The longest time of a fetch of --jwt-jwks-url, and for which calls wait for it.
    #[arg(id = "jwt-jwks-timeout", long, default_value = "5s", value_parser = some_time,
        requires = "jwt_jwks_url", conflicts_with = "jwt_jwks_file")]
    pub timeout: Duration,
}

/// Keys of a URL. They are fetched for as long as anybody has them.
#[derive(Debug)]
pub struct RemoteKeys {
    shared: Arc<Shared>,
    _fetching: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    url: Url,
    rules: FetchRules,
    keys: ArcSwapOption<Fetched>,
    /// A call needs a key that is not there.
    fetch_requested: Notify,
    /// When the last fetch ended, whatever came of it.
    ended: watch::Sender<Option<Instant>>,
    waiting: Arc<Semaphore>,
    /// 1 while they cannot be fetched.
    failing: IntGauge,
}

#[derive(Debug)]
struct Fetched {
    keys: Arc<KeySet>,
    /// When the fetch began: later changes are not in it.
    at: Instant,
}

/// Ready when a fetch has ended, or takes too long.
pub(in crate::server) struct Renewed(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Renewed {
    pub(in crate::server) async fn wait(self) {
        self.0.await;
    }
}

impl RemoteKeys {
    /// Begins to fetch the keys at once. Has to be called in a runtime. `failing` is 1 while they
    /// cannot be fetched.
    pub fn new(url: Url, rules: FetchRules, failing: IntGauge) -> Self {
        let shared = Arc::new(Shared {
            url,
            rules,
            keys: ArcSwapOption::empty(),
            fetch_requested: Notify::new(),
            ended: watch::Sender::new(None),
            waiting: Arc::new(Semaphore::new(WAITING)),
            failing,
        });
        let fetching = tokio::spawn(Arc::clone(&shared).keep());
        Self {
            shared,
            _fetching: AbortOnDropHandle::new(fetching),
        }
    }
}

impl Shared {
    fn get(&self) -> Option<Arc<KeySet>> {
        let fetched = self.keys.load();
        let fetched = fetched.as_ref()?;
        (fetched.at.elapsed() < self.rules.max_age).then(|| Arc::clone(&fetched.keys))
    }

    fn renewal(self: &Arc<Self>, kid: Option<&str>) -> Option<Renewed> {
        if self
            .get()
            .is_some_and(|keys| kid.is_none_or(|kid| keys.has(kid)))
        {
            return None;
        }
        // From before the look at when the last one ended: an end in between is seen.
        let mut ended = self.ended.subscribe();
        if ended
            .borrow_and_update()
            .is_some_and(|at| at.elapsed() < self.rules.pause)
        {
            return None;
        }
        let permit = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        self.fetch_requested.notify_one();
        let within = self.rules.timeout;
        Some(Renewed(Box::pin(async move {
            _ = timeout(within, ended.changed()).await;
            drop(permit);
        })))
    }

    /// Fetches for ever.
    async fn keep(self: Arc<Self>) {
        let mut complained = None;
        loop {
            let next = match self.fetch().await {
                Ok(()) => {
                    if complained.take().is_some() {
                        tracing::info!("the issuer's keys could be fetched again");
                    }
                    self.rules.renewal
                }
                Err(error) => {
                    if complained.as_ref() != Some(&error) {
                        tracing::warn!(
                            error,
                            "the issuer's keys cannot be fetched (--jwt-jwks-url): those that are \
                             there are used until they are too old"
                        );
                        complained = Some(error);
                    }
                    self.rules.renewal / TRIES
                }
            };
            self.failing.set(i64::from(complained.is_some()));
            self.ended.send_replace(Some(Instant::now()));
            // Whoever asked while this fetch was under way is answered by it.
            select! {
                biased;
                () = self.fetch_requested.notified() => {}
                () = ready(()) => {}
            }
            // Nobody who asks makes the pause shorter.
            sleep(self.rules.pause).await;
            select! {
                () = sleep(jittered(next).saturating_sub(self.rules.pause)) => {}
                () = self.fetch_requested.notified() => {}
            }
        }
    }

    async fn fetch(&self) -> Result<(), String> {
        let at = Instant::now();
        let text = fetch_document(&self.url, self.rules.timeout, MAX_BYTES).await?;
        let keys = Arc::new(KeySet::parse(&text)?);
        self.keys.store(Some(Arc::new(Fetched { keys, at })));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_set_is_the_keys_that_verify_by_what_is_taken_here() {
        let rsa = |bytes: usize| {
            // Four letters of base64 are three bytes.
            json!({"kty": "RSA", "kid": "a", "e": "AQAB", "n": "_".repeat(bytes * 4 / 3)})
        };
        let point = "A".repeat(43);
        let p256 = json!({"kty": "EC", "crv": "P-256", "kid": "b", "x": point, "y": point});
        let ed25519 = json!({"kty": "OKP", "crv": "Ed25519", "kid": "c", "x": point});
        let with = |name: &str, value: Value| {
            let mut key = p256.clone();
            key[name] = value;
            key
        };
        let cases = [
            ("RSA", json!([rsa(258)]), Ok(1)),
            ("RSA of 1536 bits", json!([rsa(192)]), Err("verifies")),
            ("all three", json!([rsa(258), p256, ed25519]), Ok(3)),
            ("for signatures", json!([with("use", json!("sig"))]), Ok(1)),
            (
                "for encryption",
                json!([with("use", json!("enc"))]),
                Err("verifies"),
            ),
            (
                "to verify",
                json!([with("key_ops", json!(["verify"]))]),
                Ok(1),
            ),
            (
                "to sign",
                json!([with("key_ops", json!(["sign"]))]),
                Err("verifies"),
            ),
            ("its algorithm", json!([with("alg", json!("ES256"))]), Ok(1)),
            (
                "another algorithm",
                json!([with("alg", json!("RS256"))]),
                Err("verifies"),
            ),
            (
                "another curve",
                json!([with("crv", json!("P-384"))]),
                Err("verifies"),
            ),
            ("no base64", json!([with("x", json!("ä"))]), Err("verifies")),
            (
                "a secret",
                json!([{"kty": "oct", "k": point}]),
                Err("verifies"),
            ),
            (
                "not all are known",
                json!([1, null, {"kty": "new"}, p256]),
                Ok(1),
            ),
            (
                "as many as there may be",
                Value::from(vec![p256.clone(); 100]),
                Ok(100),
            ),
            (
                "one more",
                Value::from(vec![p256.clone(); 101]),
                Err("more than 100"),
            ),
            ("none", json!([]), Err("verifies")),
            ("no list", json!({}), Err("no list")),
        ];
        for (case, keys, expected) in cases {
            let set = KeySet::parse(json!({ "keys": keys }).to_string().as_bytes());
            match (set.map(|set| set.0.len()), expected) {
                (Ok(count), Ok(expected)) => assert_eq!(count, expected, "{case}"),
                (Err(error), Err(words)) => assert!(error.contains(words), "{case}: {error}"),
                (set, _) => panic!("{case}: {set:?}"),
            }
        }
        for text in ["", "[]", "{}", "<html>"] {
            KeySet::parse(text.as_bytes()).expect_err(text);
        }
    }

    #[test]
    fn a_key_is_found_by_its_name_and_without_one_only_if_it_is_the_only_one() {
        let point = "A".repeat(43);
        let p256 = json!({"kty": "EC", "crv": "P-256", "kid": "a", "x": point, "y": point});
        let ed25519 = json!({"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": point});
        let set = |keys: Value| {
            KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).expect("keys")
        };
        let (one, two) = (set(json!([p256])), set(json!([p256, ed25519])));
        let cases = [
            (&one, Some("a"), Algorithm::ES256, Some(Algorithm::ES256)),
            // The key has the last word: it does not verify by what the token says.
            (&one, Some("a"), Algorithm::HS256, Some(Algorithm::ES256)),
            (&one, None, Algorithm::ES256, Some(Algorithm::ES256)),
            (&one, Some("b"), Algorithm::ES256, None),
            (&two, Some("a"), Algorithm::ES256, Some(Algorithm::ES256)),
            (&two, Some("a"), Algorithm::EdDSA, Some(Algorithm::EdDSA)),
            (&two, None, Algorithm::EdDSA, None),
        ];
        for (keys, kid, told, expected) in cases {
            let found = keys.find(kid, told).map(|key| key.algorithm);
            assert_eq!(found, expected, "{kid:?} {told:?}");
        }
    }
}
