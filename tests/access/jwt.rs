//! Callers that are known by JWTs, and what attackers try with them.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{Code, Request, Status};

use crate::{
    SECRET,
    certificates::Authority,
    front::front,
    get_run,
    issuer::{AUDIENCE, ISSUER, Signer, claims, hs256, jwks, now, unsigned},
    spawn_gateway,
    support::{
        gateway::Gateway,
        program::Running,
        upstream::{Answer, Upstream},
    },
    until, upstream, write,
};

/// A gateway with a key of its own that admits by JWT, and by what else these flags say.
async fn gateway(upstream: &Upstream, flags: &[&str]) -> Gateway {
    let own = ["--upstream-api-key", "sk-own", "--reload-interval", "20ms"];
    let jwt = ["--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    spawn_gateway(&upstream.url(), &[&own[..], &jwt, flags].concat()).await
}

/// Calls with this token; refused, with the words of the refusal.
async fn call(gateway: &Gateway, token: &str) -> Result<(), String> {
    told(get_run(gateway.channel(), Some(token)).await)
}

fn told(answer: Result<(), Status>) -> Result<(), String> {
    answer.map_err(|status| {
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        status.message().to_owned()
    })
}

#[tokio::test]
async fn a_jwt_admits_only_if_all_of_it_holds() {
    let (rsa, p256, ed25519) = (Signer::rsa(), Signer::p256(), Signer::ed25519());
    let stranger = Signer::ed25519();
    let (folder, upstream) = (TempDir::new().expect("a folder"), upstream().await);
    let keys = jwks(&[
        rsa.jwk("rsa"),
        p256.jwk("p256"),
        ed25519.jwk("ed25519"),
        // What is for something else, or of a kind that nobody knows, is passed over.
        json!({"kty": "oct", "kid": "secret", "k": "c2VjcmV0"}),
        json!({"kty": "EC", "crv": "secp256k1", "kid": "k", "x": "AA", "y": "AA"}),
        json!({"kty": "new", "kid": 1}),
        json!("nonsense"),
        {
            let mut key = stranger.jwk("encrypts");
            key["use"] = json!("enc");
            key
        },
        {
            let mut key = rsa.jwk("pss");
            key["alg"] = json!("PS256");
            key
        },
    ]);
    let file = write(&folder, "jwks", &keys);
    let gateway = gateway(&upstream, &["--jwt-jwks-file", &file]).await;

    let good = claims(&json!({}));
    let with = |changes: Value| ed25519.jwt("ed25519", &claims(&changes));
    let header = |header: Value| ed25519.sign(&header, &good);
    let admitted = [
        ("RS256", rsa.jwt("rsa", &good)),
        ("ES256", p256.jwt("p256", &good)),
        ("EdDSA", ed25519.jwt("ed25519", &good)),
        (
            "expired within the leeway",
            with(json!({"exp": now() - 30})),
        ),
        (
            "not yet valid within the leeway",
            with(json!({"nbf": now() + 30})),
        ),
        ("for several", with(json!({"aud": ["other", AUDIENCE]}))),
        ("more claims", with(json!({"scope": "a b", "n": [1, {}]}))),
    ];
    for (case, token) in &admitted {
        assert_eq!(call(&gateway, token).await, Ok(()), "{case}");
    }
    let count = upstream.requests().len();
    assert_eq!(count, admitted.len());
    for request in upstream.requests() {
        assert_eq!(request.header("authorization"), Some("Bearer sk-own"));
    }

    let none = |alg: &str| unsigned(&json!({"alg": alg, "kid": "rsa"}), &good);
    let (signed, tail) = (with(json!({})), with(json!({"sub": "other"})));
    let spliced = {
        let signature = signed.rsplit('.').next().expect("a signature");
        let other = tail.rsplit_once('.').expect("a signature").0;
        format!("{other}.{signature}")
    };
    let refused = [
        ("alg none", format!("{}.", none("none")), "cannot be read"),
        ("alg None", format!("{}.", none("None")), "cannot be read"),
        (
            "alg none with a signature",
            format!("{}.AAAA", none("none")),
            "cannot be read",
        ),
        (
            "no alg",
            header(json!({"kid": "ed25519"})),
            "cannot be read",
        ),
        (
            "HS256 with the public key",
            hs256(rsa.public(), "rsa", &good),
            "algorithm of its key",
        ),
        (
            "HS256 with the point",
            hs256(p256.public(), "p256", &good),
            "algorithm of its key",
        ),
        (
            "HS256 with the key",
            hs256(ed25519.public(), "ed25519", &good),
            "algorithm of its key",
        ),
        (
            "HS256 with the JWK",
            hs256(rsa.jwk("rsa").to_string().as_bytes(), "rsa", &good),
            "algorithm",
        ),
        (
            "HS256 with the empty secret",
            hs256(b"", "rsa", &good),
            "algorithm of its key",
        ),
        (
            "HS256 with a published secret",
            hs256(b"secret", "secret", &good),
            "kid",
        ),
        (
            "another algorithm of the family",
            rsa.sign(&json!({"alg": "RS512", "kid": "rsa"}), &good),
            "algorithm of its key",
        ),
        (
            "another key's algorithm",
            ed25519.sign(&json!({"alg": "RS256", "kid": "ed25519"}), &good),
            "algorithm of its key",
        ),
        (
            "another key's name",
            ed25519.sign(&json!({"alg": "EdDSA", "kid": "rsa"}), &good),
            "algorithm of its key",
        ),
        (
            "a key for encryption",
            stranger.jwt("encrypts", &good),
            "kid",
        ),
        ("a key for another algorithm", rsa.jwt("pss", &good), "kid"),
        (
            "a stranger's key",
            stranger.jwt("ed25519", &good),
            "signature",
        ),
        (
            "a key that the token brings along",
            stranger.sign(
                &json!({"alg": "EdDSA", "kid": "ed25519", "jwk": stranger.jwk("ed25519")}),
                &good,
            ),
            "signature",
        ),
        (
            "a place of keys that the token brings along",
            stranger.sign(
                &json!({"alg": "EdDSA", "kid": "mine", "jku": "https://evil.example/jwks"}),
                &good,
            ),
            "kid",
        ),
        ("other claims under a good signature", spliced, "signature"),
        (
            "no signature",
            format!("{}.", signed.rsplit_once('.').expect("a signature").0),
            "signature",
        ),
        (
            "something that has to be understood",
            header(json!({"alg": "EdDSA", "kid": "ed25519", "crit": ["x"], "x": 1})),
            "cannot be read",
        ),
        ("an unknown key", ed25519.jwt("unknown", &good), "kid"),
        ("no name of a key", header(json!({"alg": "EdDSA"})), "kid"),
        ("expired", with(json!({"exp": now() - 120})), "expired"),
        ("expired long ago", with(json!({"exp": 0})), "expired"),
        ("no exp", with(json!({"exp": null})), "no exp"),
        ("exp as text", with(json!({"exp": "4000000000"})), "no exp"),
        ("exp below zero", with(json!({"exp": -1})), "no exp"),
        (
            "not yet valid",
            with(json!({"nbf": now() + 120})),
            "not valid yet",
        ),
        ("nbf as text", with(json!({"nbf": "0"})), "not of its type"),
        (
            "another audience",
            with(json!({"aud": "other"})),
            "somebody else",
        ),
        (
            "other audiences",
            with(json!({"aud": ["other", "runs-gateway-2"]})),
            "somebody else",
        ),
        ("no audience", with(json!({"aud": []})), "somebody else"),
        (
            "aud missing",
            with(json!({"aud": null})),
            "no exp, iss or aud",
        ),
        (
            "aud as a number",
            with(json!({"aud": 1})),
            "no exp, iss or aud",
        ),
        (
            "another issuer",
            with(json!({"iss": "https://issuer.example.evil"})),
            "issuer",
        ),
        (
            "iss missing",
            with(json!({"iss": null})),
            "no exp, iss or aud",
        ),
        (
            "a name that is a number",
            with(json!({"sub": 1})),
            "has to be text",
        ),
        (
            "a name that is true",
            with(json!({"sub": true})),
            "has to be text",
        ),
        (
            "a name that is a list",
            with(json!({"sub": ["cart"]})),
            "cannot be read",
        ),
        (
            "a name that is an object",
            with(json!({"sub": {"a": "cart"}})),
            "cannot be read",
        ),
        (
            "a name that is empty",
            with(json!({"sub": ""})),
            "has to be text",
        ),
        (
            "a name of two lines",
            with(json!({"sub": "cart\nadmin"})),
            "has to be text",
        ),
        ("no name", with(json!({"sub": null})), "has to be text"),
        ("no JWT", "secret".to_owned(), "cannot be read"),
        ("dots", "..".to_owned(), "cannot be read"),
        ("five parts", format!("{signed}.a.b"), "cannot be read"),
        (
            "white space inside",
            signed.replace('.', ". "),
            "cannot be read",
        ),
        ("nothing", String::new(), "cannot be read"),
    ];
    for (case, token, words) in &refused {
        let message = call(&gateway, token).await.expect_err(case);
        assert!(message.contains(words), "{case}: {message}");
    }
    assert_eq!(
        upstream.requests().len(),
        count,
        "what is refused reaches nothing"
    );
    gateway.drain().await;
}

#[tokio::test]
async fn what_is_presented_decides_and_a_bad_jwt_is_not_passed_over() {
    let key = Signer::ed25519();
    let (folder, upstream) = (TempDir::new().expect("a folder"), upstream().await);
    let file = write(&folder, "jwks", &jwks(&[key.jwk("k")]));
    let tokens = write(&folder, "tokens", &format!("{SECRET} the batch job\n"));
    let flags = ["--jwt-jwks-file", &file, "--tokens-file", &tokens];
    let gateway = gateway(&upstream, &flags).await;

    let jwt = |changes| format!("Bearer {}", key.jwt("k", &claims(&changes)));
    let (good, bad) = (jwt(json!({})), jwt(json!({"exp": 1})));
    let without_kid = key.sign(&json!({"alg": "EdDSA"}), &claims(&json!({})));
    let without_kid = format!("bearer  {without_kid}");
    let table: &[(&str, &[&str], Result<(), &str>)] = &[
        ("a JWT", &[&good], Ok(())),
        ("a JWT of the only key", &[&without_kid], Ok(())),
        ("a token", &["Bearer secret"], Ok(())),
        ("nothing", &[], Err("send a token")),
        ("a bad JWT", &[&bad], Err("expired")),
        ("an unknown token", &["Bearer other"], Err("--tokens-file")),
        ("two JWTs", &[&good, &good], Err("one `authorization`")),
        (
            "a JWT and a token",
            &[&good, "Bearer secret"],
            Err("one `authorization`"),
        ),
        (
            "another scheme",
            &["Basic c2VjcmV0"],
            Err("one `authorization`"),
        ),
    ];
    for (case, values, expected) in table {
        let mut request = Request::new(crate::GetRunRequest {
            thread_id: "thread_1".to_owned(),
            run_id: "run_1".to_owned(),
        });
        for value in *values {
            let value = value.parse().expect("a value");
            request.metadata_mut().append("authorization", value);
        }
        let answer = gateway.runs().get_run(request).await.map(|_| ());
        match (told(answer), expected) {
            (Ok(()), Ok(())) => {}
            (Err(message), Err(words)) if message.contains(words) => {}
            (answer, _) => panic!("{case}: {answer:?}"),
        }
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_changed_file_of_keys_takes_effect_and_a_broken_one_does_not() {
    let (old, new) = (Signer::p256(), Signer::p256());
    let (folder, upstream) = (TempDir::new().expect("a folder"), upstream().await);
    let file = write(&folder, "jwks", &jwks(&[old.jwk("old")]));
    let gateway = gateway(&upstream, &["--jwt-jwks-file", &file]).await;
    let (by_old, by_new) = (
        old.jwt("old", &claims(&json!({}))),
        new.jwt("new", &claims(&json!({}))),
    );
    until(Ok(()), || get_run(gateway.channel(), Some(&by_old))).await;
    fs::write(&file, jwks(&[new.jwk("new")])).expect("a file");
    until(Ok(()), || get_run(gateway.channel(), Some(&by_new))).await;
    assert!(call(&gateway, &by_old).await.is_err());
    for broken in [
        "",
        "{}",
        "nonsense",
        "{\"keys\":[]}",
        "{\"keys\":[{\"kty\":\"oct\",\"k\":\"AA\"}]}",
    ] {
        fs::write(&file, broken).expect("a file");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(
            call(&gateway, &by_new).await,
            Ok(()),
            "{broken}: what was read before stays"
        );
    }
    gateway.drain().await;
}

/// A place of keys that answers what the test says.
struct Published {
    server: Upstream,
    status: Arc<AtomicU16>,
    keys: Arc<Mutex<String>>,
}

impl Published {
    async fn start(keys: String) -> Self {
        let (status, keys) = (Arc::new(AtomicU16::new(200)), Arc::new(Mutex::new(keys)));
        let (state, text) = (Arc::clone(&status), Arc::clone(&keys));
        let server = Upstream::answering(move |request| {
            assert_eq!(request.header("authorization"), None);
            let text = text.lock().expect("never held over a panic").clone();
            Answer::json(state.load(SeqCst), text)
        })
        .await;
        Self {
            server,
            status,
            keys,
        }
    }

    fn publish(&self, keys: String) {
        *self.keys.lock().expect("never held over a panic") = keys;
    }

    fn url(&self) -> String {
        format!("{}/keys?a=b", self.server.url())
    }
}

#[tokio::test]
async fn a_flood_of_unknown_keys_is_one_fetch_and_then_a_pause() {
    let key = Signer::ed25519();
    let upstream = upstream().await;
    let published = Published::start(jwks(&[key.jwk("k")])).await;
    let good = key.jwt("k", &claims(&json!({})));
    for (pause, long) in [("1h", true), ("100ms", false)] {
        let before = published.server.requests().len();
        let url = published.url();
        let flags = ["--jwt-jwks-url", &url, "--jwt-jwks-pause", pause];
        let gateway = gateway(&upstream, &flags).await;
        let began = Instant::now();
        // The first call waits for the first fetch.
        assert_eq!(call(&gateway, &good).await, Ok(()));
        let calls: JoinSet<_> = (0..300)
            .map(|number| {
                let token = key.jwt(&format!("unknown-{number}"), &claims(&json!({})));
                let channel = gateway.channel();
                async move { told(get_run(channel, Some(&token)).await) }
            })
            .collect();
        for answer in calls.join_all().await {
            let message = answer.expect_err("an unknown key");
            assert!(message.contains("kid"), "{message}");
        }
        assert_eq!(call(&gateway, &good).await, Ok(()));
        let fetches = published.server.requests().len() - before;
        let pauses = began.elapsed().as_millis() / 100;
        let most = if long { 1 } else { 1 + pauses };
        assert!(
            (1..=most).contains(&(fetches as u128)),
            "{pause}: {fetches} fetches"
        );
        gateway.drain().await;
    }
}

#[tokio::test]
async fn keys_that_rotate_are_known_once_a_token_names_them() {
    let (old, new) = (Signer::p256(), Signer::ed25519());
    let upstream = upstream().await;
    let published = Published::start(jwks(&[old.jwk("old")])).await;
    let url = published.url();
    // In the background nothing is fetched while the test runs.
    let flags = [
        "--jwt-jwks-url",
        &url,
        "--jwt-jwks-pause",
        "50ms",
        "--jwt-jwks-renewal",
        "30m",
    ];
    let gateway = gateway(&upstream, &flags).await;
    let (by_old, by_new) = (
        old.jwt("old", &claims(&json!({}))),
        new.jwt("new", &claims(&json!({}))),
    );
    assert_eq!(call(&gateway, &by_old).await, Ok(()));
    assert!(call(&gateway, &by_new).await.is_err());
    published.publish(jwks(&[old.jwk("old"), new.jwk("new")]));
    until(Ok(()), || get_run(gateway.channel(), Some(&by_new))).await;
    published.publish(jwks(&[new.jwk("new")]));
    let third = Signer::p256().jwt("third", &claims(&json!({})));
    // Somebody's unknown key is what makes the gateway look.
    until(Err(Code::Unauthenticated), || async {
        _ = get_run(gateway.channel(), Some(&third)).await;
        get_run(gateway.channel(), Some(&by_old)).await
    })
    .await;
    assert_eq!(call(&gateway, &by_new).await, Ok(()));
    gateway.drain().await;
}

#[tokio::test]
async fn keys_are_renewed_in_the_background_and_those_that_cannot_be_had_age_until_nobody_is_admitted()
 {
    let key = Signer::ed25519();
    let (folder, upstream) = (TempDir::new().expect("a folder"), upstream().await);
    let published = Published::start(jwks(&[key.jwk("k")])).await;
    let tokens = write(&folder, "tokens", &format!("{SECRET}\n"));
    let url = published.url();
    let flags = [
        "--jwt-jwks-url",
        &url,
        "--jwt-jwks-pause",
        "20ms",
        "--jwt-jwks-renewal",
        "50ms",
        "--jwt-jwks-max-age",
        "3s",
        "--tokens-file",
        &tokens,
    ];
    let gateway = gateway(&upstream, &flags).await;
    let good = key.jwt("k", &claims(&json!({})));
    assert_eq!(call(&gateway, &good).await, Ok(()));
    published.server.wait_for_requests(3).await;

    published.status.store(500, SeqCst);
    let failed = published.server.requests().len() + 2;
    published.server.wait_for_requests(failed).await;
    assert_eq!(
        call(&gateway, &good).await,
        Ok(()),
        "they are not too old yet"
    );
    until(Err(Code::Unauthenticated), || {
        get_run(gateway.channel(), Some(&good))
    })
    .await;
    let message = call(&gateway, &good)
        .await
        .expect_err("keys that are too old");
    assert!(message.contains("no current keys"), "{message}");
    assert_eq!(
        call(&gateway, "secret").await,
        Ok(()),
        "tokens need no keys"
    );

    published.status.store(200, SeqCst);
    until(Ok(()), || get_run(gateway.channel(), Some(&good))).await;
    gateway.drain().await;
}

/// What a server answers to every request.
type Script = Box<dyn Fn() -> Answer + Send + Sync>;

#[tokio::test]
async fn a_place_of_keys_that_is_down_slow_or_wrong_admits_nobody_and_holds_nobody_up() {
    let key = Signer::ed25519();
    let upstream = upstream().await;
    let keys = jwks(&[key.jwk("k")]);
    let good = key.jwt("k", &claims(&json!({})));
    let elsewhere = Published::start(keys.clone()).await;
    let location = elsewhere.url();
    let answers: Vec<(&str, Script)> = vec![
        ("silent", Box::new(Answer::never)),
        ("slow", {
            let keys = keys.clone();
            Box::new(move || {
                Answer::new(200)
                    .chunked()
                    .bytes(keys[..9].to_owned())
                    .wait(&Arc::default())
            })
        }),
        ("cut", Box::new(Answer::cut_before_answer)),
        ("not found", {
            let keys = keys.clone();
            Box::new(move || Answer::json(404, keys.clone()))
        }),
        (
            "elsewhere",
            Box::new(move || Answer::json(302, "").header("location", &location)),
        ),
        ("no JSON", Box::new(|| Answer::json(200, "<html>"))),
        ("no keys", Box::new(|| Answer::json(200, "{}"))),
        ("too large", {
            let large = format!("{}{}", " ".repeat(2 << 20), keys);
            Box::new(move || Answer::json(200, large.clone()))
        }),
    ];
    for (case, answer) in answers {
        let server = Upstream::answering(move |_| answer()).await;
        let url = server.url();
        let flags = ["--jwt-jwks-url", &url, "--jwt-jwks-timeout", "200ms"];
        let gateway = gateway(&upstream, &flags).await;
        let answer = tokio::time::timeout(Duration::from_secs(10), call(&gateway, &good)).await;
        let message = answer.expect(case).expect_err(case);
        assert!(message.contains("no current keys"), "{case}: {message}");
        gateway.drain().await;
    }
    assert!(
        elsewhere.server.requests().is_empty(),
        "redirects are not followed"
    );
    // Nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    drop(listener);
    let gateway = gateway(&upstream, &["--jwt-jwks-url", &url]).await;
    let message = call(&gateway, &good).await.expect_err("no keys");
    assert!(message.contains("no current keys"), "{message}");
    gateway.drain().await;
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn keys_by_https_are_those_of_a_server_that_the_systems_roots_know() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (folder, upstream) = (TempDir::new().expect("a folder"), upstream().await);
    let key = Signer::p256();
    let published = Published::start(jwks(&[key.jwk("k")])).await;
    let good = key.jwt("k", &claims(&json!({})));
    let roots = write(&folder, "roots", authority.pem());
    let cases = [
        (
            "a certificate of the CA",
            authority.server("localhost"),
            Ok(()),
        ),
        ("another CA", stranger.server("localhost"), Err(())),
        ("another name", authority.server("issuer.example"), Err(())),
        ("expired", authority.expired_server("localhost"), Err(())),
    ];
    for (case, certificate, expected) in cases {
        let address = front(&published.server, certificate, None).await;
        let (api, keys) = (
            upstream.url(),
            format!("https://localhost:{}/keys", address.port()),
        );
        let flags = [
            "--upstream-url",
            &api,
            "--upstream-api-key",
            "sk-own",
            "--jwt-issuer",
            ISSUER,
            "--jwt-audience",
            AUDIENCE,
            "--jwt-jwks-url",
            &keys,
        ];
        // What the system's roots are, for this one process.
        let program = Running::start_in(&flags, &[("SSL_CERT_FILE", &roots)]).await;
        let answer = told(get_run(program.channel.clone(), Some(&good)).await);
        assert_eq!(answer.map_err(|_| ()), expected, "{case}");
        program.stop("-TERM").await;
    }
    assert_eq!(published.server.requests().len(), 1);
}

#[tokio::test]
async fn the_log_names_the_caller_and_never_the_token() {
    let key = Signer::ed25519();
    let (folder, upstream) = (TempDir::new().expect("a folder"), upstream().await);
    let file = write(&folder, "jwks", &jwks(&[key.jwk("k")]));
    let url = upstream.url();
    let flags = [
        "--upstream-url",
        &url,
        "--upstream-api-key",
        "sk-own",
        "--jwt-issuer",
        ISSUER,
        "--jwt-audience",
        AUDIENCE,
        "--jwt-jwks-file",
        &file,
        "--jwt-name-claim",
        "client_id",
        "--log-ids",
        "--log-format",
        "json",
    ];
    let program = Running::start(&flags).await;
    let good = key.jwt("k", &claims(&json!({"client_id": "the shop"})));
    let bad = key.jwt("k", &claims(&json!({"client_id": "the shop", "exp": 1})));
    get_run(program.channel.clone(), Some(&good))
        .await
        .expect("a JWT that holds");
    get_run(program.channel.clone(), Some(&bad))
        .await
        .expect_err("an expired JWT");
    let (_, log) = program.stop("-TERM").await;
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["fields"]["message"] == "call ended")
        .collect();
    let seen: Vec<_> = lines
        .iter()
        .map(|line| {
            (
                line["fields"]["caller"].as_str(),
                line["fields"]["error"].as_str(),
            )
        })
        .collect();
    let expired = "caller not admitted: the JWT has expired: get a new one";
    assert_eq!(
        seen,
        [(Some("the shop"), None), (None, Some(expired))],
        "{log}"
    );
    for token in [good, bad] {
        let signature = token.rsplit('.').next().expect("a signature");
        assert!(!log.contains(signature), "{log}");
    }
}
