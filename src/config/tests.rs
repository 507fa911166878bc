//! Which command lines are taken, and what comes of them.

use clap::Parser as _;
use http::HeaderName;

use super::{Cli, Command, Dev, Invalid, Serve};
use crate::upstream::AuthStyle;

fn serve(flags: &str) -> Result<Serve, Invalid> {
    let words = ["runs-gateway", "serve"]
        .into_iter()
        .chain(flags.split_whitespace());
    let cli = Cli::try_parse_from(words).map_err(|error| Invalid::new(error.to_string()))?;
    match cli.command {
        Command::Serve(args) => Serve::try_from(*args),
        _ => unreachable!("the first word is serve"),
    }
}

fn dev(flags: &str) -> Result<Dev, Invalid> {
    let words = ["runs-gateway", "dev"]
        .into_iter()
        .chain(flags.split_whitespace());
    let cli = Cli::try_parse_from(words).map_err(|error| Invalid::new(error.to_string()))?;
    match cli.command {
        Command::Dev(args) => Dev::try_from(*args),
        _ => unreachable!("the first word is dev"),
    }
}

#[test]
fn a_model_that_cannot_be_asked_or_whose_key_others_could_use_is_refused() {
    let refused = [
        "--model-url nonsense",
        "--model-url ftp://host",
        "--model-url https://user:secret@host/v1",
        "--model-url https://host/v1#part",
        "--model-url https://host/v1/chat/completions",
        "--model-url http://host/v1 --model-timeout 0s",
        "--model-url http://host/v1 --model-max-reply-bytes 0",
        "--model m",
        "--model-api-key-file k",
        "--model-url http://host/v1 --model-api-key-file k --listen 0.0.0.0:1",
        "--model-url http://host/v1 --model-api-key-file k --rest-listen 0.0.0.0:1",
        "--model-url http://host/v1 --model-api-key-file k --web-origins *",
        "--model-url http://host/v1 --model-api-key-file k --tokens-file t --rest-listen 0.0.0.0:1",
    ];
    for flags in refused {
        let line = dev(flags).expect_err(flags).to_string();
        assert!(!line.contains("secret"), "{line}");
    }
    let admitted = [
        "",
        "--listen 0.0.0.0:1 --rest-listen 0.0.0.0:2",
        "--model-url http://host/v1 --listen 0.0.0.0:1 --rest-listen 0.0.0.0:2",
        "--model-url http://host/v1 --model-api-key-file k",
        "--model-url http://host/v1 --model-api-key-file k --listen 0.0.0.0:1 --allow-anonymous",
        "--model-url http://host/v1 --model-api-key-file k --tokens-file t --listen 0.0.0.0:1",
    ];
    for flags in admitted {
        assert_eq!(
            dev(flags).expect(flags).model.is_some(),
            flags.contains("--model-url"),
            "{flags}"
        );
    }
}

#[test]
fn a_profile_gives_url_authentication_and_query_and_flags_override_it() {
    let azure = "--upstream-profile azure --upstream-url https://r.example/openai";
    let api_key = || AuthStyle::Header(HeaderName::from_static("api-key"));
    let cases = [
        ("", "https://api.aimlapi.com/", AuthStyle::Bearer),
        (
            "--upstream-profile openai",
            "https://api.openai.com/v1",
            AuthStyle::Bearer,
        ),
        (
            azure,
            "https://r.example/openai?api-version=2024-05-01-preview",
            api_key(),
        ),
        (
            &format!("{azure} --upstream-query api-version=1&a=b"),
            "https://r.example/openai?api-version=1&a=b",
            api_key(),
        ),
        (
            &format!("{azure}?api-version=2 --upstream-auth bearer"),
            "https://r.example/openai?api-version=2",
            AuthStyle::Bearer,
        ),
        (
            "--upstream-profile foundry --upstream-url https://r.example/api/projects/p",
            "https://r.example/api/projects/p?api-version=v1",
            AuthStyle::Bearer,
        ),
        (
            "--upstream-url http://h/v1 --upstream-auth x-key",
            "http://h/v1",
            AuthStyle::Header("x-key".parse().expect("a name")),
        ),
    ];
    for (flags, url, auth) in cases {
        let upstream = serve(flags).expect(flags).upstream;
        assert_eq!(
            (upstream.base.as_str(), upstream.auth),
            (url, auth),
            "{flags}"
        );
    }
}

#[test]
fn a_profile_names_its_provider_and_says_whether_its_service_has_ended() {
    let (url, provider) = ("--upstream-url https://h", "--upstream-provider me");
    let cases = [
        (String::new(), "aimlapi", false),
        (url.to_owned(), "unknown", false),
        (format!("{url} {provider}"), "me", false),
        ("--upstream-profile openai".to_owned(), "openai", true),
        (format!("--upstream-profile openai {url}"), "openai", false),
        (
            format!("--upstream-profile azure {url}"),
            "azure.ai.openai",
            true,
        ),
        (
            format!("--upstream-profile foundry {url}"),
            "azure.ai.agents",
            false,
        ),
    ];
    for (flags, provider, ended) in cases {
        let serve = serve(&flags).expect(&flags);
        assert_eq!(
            (&*serve.provider, serve.notice.is_some()),
            (provider, ended),
            "{flags}"
        );
    }
}

#[test]
fn a_configuration_that_would_give_the_key_away_or_cannot_work_is_refused() {
    let refused = [
        "--upstream-api-key k --listen 0.0.0.0:1",
        "--upstream-api-key k --listen [::]:1",
        "--upstream-api-key k --forward-metadata authorization",
        "--tokens-file tokens",
        "--tokens-file tokens --upstream-profile azure --upstream-url https://h --upstream-api-key k --forward-metadata authorization",
        "--upstream-api-key k --tls-cert-file c",
        "--upstream-api-key k --tls-client-ca-file c",
        "--upstream-api-key k --web-origins *",
        "--web-origins https://app.example/",
        "--web-origins http://localhost:5173,nonsense",
        "--upstream-api-key k --jwt-issuer i",
        "--upstream-api-key k --jwt-issuer i --jwt-audience a",
        "--upstream-api-key k --jwt-issuer i --jwt-jwks-file f",
        "--upstream-api-key k --jwt-audience a --jwt-jwks-file f",
        "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-file f --jwt-jwks-url https://h/",
        "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-url http://h/jwks",
        "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-url https://u:secret@h/jwks",
        "--upstream-api-key k --jwt-issuer i --jwt-audience , --jwt-jwks-file f",
        "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-url https://h --jwt-jwks-max-age 5m",
        "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-url https://h --jwt-jwks-pause 0s",
        "--jwt-issuer i --jwt-audience a --jwt-jwks-file f",
        "--upstream-api-key k --tokens-file t --isolate-callers",
        "--upstream-api-key k --tokens-file t --isolation-key-file Cargo.lock",
        "--upstream-api-key k --tokens-file t --isolate-callers --isolation-key-file missing",
        "--upstream-api-key k --tokens-file t --isolate-callers --isolation-key-file .gitignore --isolate-unmarked maybe",
        "--upstream-api-key k --isolate-callers --isolation-key-file Cargo.lock",
        "--isolate-callers --isolation-key-file Cargo.lock --mesh-identity l5d-client-id --mesh-peer loopback",
        "--upstream-api-key k --isolate-assistants --tokens-file t",
        "--jwt-name-claim email",
        "--upstream-api-key k --jwt-issuer i --jwt-audience a --jwt-jwks-file f --jwt-jwks-pause 1s",
        "--upstream-api-key k --mesh-identity xfcc",
        "--upstream-api-key k --mesh-peer loopback",
        "--upstream-api-key k --mesh-identity xfcc --mesh-peer 0.0.0.0/0",
        "--upstream-api-key k --mesh-identity xfcc --mesh-peer name:proxy",
        "--upstream-api-key k --mesh-identity nonsense --mesh-peer loopback",
        "--upstream-key-command get-token --upstream-api-key k",
        "--upstream-key-command get-token --upstream-api-key-file k",
        "--upstream-key-command '",
        "--upstream-key-command get-token --upstream-key-command-timeout 0s",
        "--upstream-key-command get-token --listen 0.0.0.0:1",
        "--upstream-profile azure",
        "--upstream-profile foundry",
        "--upstream-url ftp://host",
        "--upstream-url https://user:secret@host",
        "--upstream-header nonsense",
        "--listen nonsense",
    ];
    for flags in refused {
        let line = serve(flags).expect_err(flags).to_string();
        assert!(!line.contains("secret"), "{line}");
    }
    let tls =
        "--tls-cert-file c --tls-key-file k --tls-client-ca-file a --allowed-client spiffe://d/s";
    let admitted = [
        "--upstream-api-key k --listen 0.0.0.0:1 --tokens-file tokens",
        "--upstream-api-key k --web-origins https://app.example,http://localhost:5173",
        "--upstream-api-key k --web-origins * --tokens-file tokens",
        "--web-origins *",
        // Any file of 32 bytes is a secret.
        "--upstream-api-key k --tokens-file t --isolate-callers --isolation-key-file Cargo.lock --isolate-assistants",
        &format!("--upstream-api-key k --listen 0.0.0.0:1 {tls}"),
        "--upstream-api-key k --listen 0.0.0.0:1 --jwt-issuer i --jwt-audience a,b --jwt-jwks-url https://h/jwks",
        "--upstream-api-key k --listen 0.0.0.0:1 --jwt-issuer i --jwt-audience a --jwt-jwks-url http://[::1]:1/jwks",
        "--upstream-api-key k --web-origins * --jwt-issuer i --jwt-audience a --jwt-jwks-file f",
        "--upstream-api-key k --listen 0.0.0.0:1 --mesh-identity xfcc --mesh-peer loopback,10.0.0.0/8",
        &format!(
            "--upstream-api-key k --listen 0.0.0.0:1 --mesh-identity xfcc --mesh-peer name:proxy {tls}"
        ),
        // Callers' own keys, and the mesh says whose they are.
        "--listen 0.0.0.0:1 --mesh-identity l5d-client-id --mesh-peer loopback",
    ];
    for flags in admitted {
        serve(flags).expect(flags);
    }
    for flags in [
        "--upstream-api-key k --listen 0.0.0.0:1 --allow-anonymous",
        "--listen 0.0.0.0:1",
        "--upstream-api-key k",
    ] {
        serve(flags).expect(flags);
    }
}
