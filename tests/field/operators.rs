//! What operators do before anything is served: rows O1, O3, O4 and O6 of the field cases, on the
//! real program.

use std::{fs, path::Path, process::Output, time::Duration};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    certificates::Authority,
    support::program::{PROGRAM, Running},
};

/// `printf %s secret | sha256sum`
pub(crate) const HASH: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

/// A file of a test.
pub(crate) fn write(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    fs::write(&path, content).expect("a file");
    text(&path)
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}

/// `command` with these, which ends by itself only if they are refused.
fn run(command: &[&str], flags: &str, variables: &[(&str, &str)]) -> Output {
    Command::new(PROGRAM)
        .args(command)
        .args(flags.split_whitespace())
        .envs(variables.iter().copied())
        .timeout(Duration::from_secs(20))
        .output()
        .expect("the program runs")
}

/// What is tried, flags, variables, and what the one line says.
type Row<'a> = (&'a str, String, &'a [(&'a str, &'a str)], &'a [&'a str]);

#[test]
fn what_would_be_ignored_or_serve_nobody_is_refused_with_a_line_that_says_what_to_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, other) = (Authority::new(), Authority::new());
    let file = |name: &str, content: &str| write(&folder, name, content);
    let pair = |name: &str, (certificate, key): (String, String)| {
        let certificate = file(&format!("{name}.crt"), &certificate);
        let key = file(&format!("{name}.key"), &key);
        (certificate, key)
    };
    let (good, good_key) = pair("good", ours.server("localhost"));
    let (_, other_key) = pair("other", other.server("localhost"));
    let (expired, expired_key) = pair("expired", ours.expired_server("localhost"));
    let (future, future_key) = pair("future", ours.future_server("localhost"));
    let (old_client, old_client_key) = pair("client", ours.expired_client("gateway"));
    let (of_client, of_client_key) = pair("of-client", ours.client("gateway"));
    let nobody = file("nobody", "# nobody\n");
    let nothing = file("nothing", "");
    let blank = file("blank", " \n");
    let damaged = file(
        "damaged",
        "-----BEGIN CERTIFICATE-----\nMIIBaaaa\n-----END CERTIFICATE-----\n",
    );
    let cut = file("cut", "-----BEGIN CERTIFICATE-----\nMIIBaaaa\n");
    let folder_path = text(folder.path());
    let api_key = |name: &str, content: &str| {
        let path = file(name, content);
        format!("--upstream-api-key-file {path}")
    };

    let key = |rest: &str| format!("--upstream-api-key k {rest}");
    let tls = |certificate: &str, key: &str| {
        format!("--tls-cert-file {certificate} --tls-key-file {key}")
    };
    let client = |certificate: &str, key: &str| {
        format!(
            "--upstream-url https://localhost:1 --upstream-client-cert-file {certificate} \
             --upstream-client-key-file {key}"
        )
    };
    let flags = str::to_owned;
    let mut table: Vec<Row> = vec![
        // O1: misspelt variables, and restrictions that need something else.
        (
            "O1",
            flags(""),
            &[("RUNS_GATEWAY_ALLOWD_CLIENT", "a")],
            &["RUNS_GATEWAY_ALLOWED_CLIENT?"],
        ),
        (
            "O1 case",
            flags(""),
            &[("RUNS_GATEWAY_Listen", "a")],
            &["RUNS_GATEWAY_LISTEN?"],
        ),
        (
            "O1 plural",
            flags(""),
            &[("RUNS_GATEWAY_TOKEN_FILE", "a")],
            &["RUNS_GATEWAY_TOKENS_FILE?"],
        ),
        (
            "O1 a flag of another command, which reads another variable",
            flags(""),
            &[("RUNS_GATEWAY_TLS_CA_FILE", "a")],
            &["RUNS_GATEWAY_TLS_CA_FILE is unknown"],
        ),
        (
            "O1 read",
            flags(""),
            &[("RUNS_GATEWAY_ALLOWED_CLIENT", "a")],
            &["--tls-client-ca-file"],
        ),
        (
            "O1 old",
            flags(""),
            &[("RUNS_GATEWAY_ALLOWED_CLIENTS", "a")],
            &["--tls-client-ca-file"],
        ),
        // O3: nobody could call.
        (
            "O3 tokens, empty",
            key(&format!("--tokens-file {nothing}")),
            &[],
            &["--tokens-file", "empty"],
        ),
        (
            "O3 tokens, comments",
            key(&format!("--tokens-file {nobody}")),
            &[],
            &["--tokens-file", "nobody could call"],
        ),
        (
            "O3 tokens, blank",
            key(&format!("--tokens-file {blank}")),
            &[],
            &["--tokens-file", "nobody could call"],
        ),
        (
            "O3 tokens, clear",
            key(&format!("--tokens-file {good_key}")),
            &[],
            &["--tokens-file", "line 1", "SHA-256"],
        ),
        (
            "O3 expired",
            tls(&expired, &expired_key),
            &[],
            &["--tls-cert-file", "expired", "renew"],
        ),
        (
            "O3 not yet valid",
            tls(&future, &future_key),
            &[],
            &["--tls-cert-file", "not valid yet", "clock"],
        ),
        (
            "O3 another key",
            tls(&good, &other_key),
            &[],
            &["--tls-key-file is not the key of --tls-cert-file"],
        ),
        (
            "O3 key is a certificate",
            tls(&good, &good),
            &[],
            &["--tls-key-file", "no private key"],
        ),
        (
            "O3 client expired",
            client(&old_client, &old_client_key),
            &[],
            &["--upstream-client-cert-file", "expired"],
        ),
        (
            "O3 no client CA",
            format!("{} --tls-client-ca-file {good_key}", tls(&good, &good_key)),
            &[],
            &["--tls-client-ca-file", "no certificate"],
        ),
        (
            "O3 upstream CA",
            flags("--upstream-url https://h --upstream-ca-file ") + &blank,
            &[],
            &["--upstream-ca-file", "no certificate"],
        ),
        (
            "O3 blank key",
            flags("--upstream-api-key-file ") + &blank,
            &[],
            &["--upstream-api-key-file", "empty"],
        ),
        // O3: a key with something around it, which no upstream takes.
        (
            "O3 key, bearer",
            api_key("bearer", "Bearer sk-SECRET\n"),
            &[],
            &["--upstream-api-key-file", "/bearer", "leave that out"],
        ),
        (
            "O3 key, quotes",
            api_key("quotes", "\"sk-SECRET\"\n"),
            &[],
            &["--upstream-api-key-file", "/quotes", "in quotes"],
        ),
        (
            "O3 key, single quotes and a mark",
            api_key("marked", "\u{FEFF}'sk-SECRET'"),
            &[],
            &["--upstream-api-key-file", "in quotes"],
        ),
        (
            "O3 key, lines",
            api_key("lines", "# the key\nsk-SECRET\n"),
            &[],
            &["--upstream-api-key-file", "/lines", "several lines"],
        ),
        (
            "O3 key, a variable",
            api_key("variable", "OPENAI_API_KEY=sk-SECRET\n"),
            &[],
            &["--upstream-api-key-file", "NAME=…"],
        ),
        (
            "O3 key, a mark alone",
            api_key("mark", "\u{FEFF}\n"),
            &[],
            &["--upstream-api-key-file", "empty"],
        ),
        (
            "O3 key, in a variable",
            flags(""),
            &[("RUNS_GATEWAY_UPSTREAM_API_KEY", "bearer sk-SECRET")],
            &["--upstream-api-key", "leave that out"],
        ),
        // O3: nothing could be asked.
        (
            "O3 url",
            flags("--upstream-url http://h/v1/threads"),
            &[],
            &["--upstream-url", "/threads"],
        ),
        (
            "O3 url, slash",
            flags("--upstream-url http://h/v1/threads/"),
            &[],
            &["--upstream-url", "/threads"],
        ),
        (
            "O3 url, assistants",
            flags("--upstream-url http://h/assistants"),
            &[],
            &["--upstream-url", "/assistants"],
        ),
        (
            "O3 url, large",
            flags("--upstream-url http://h/v1/THREADS"),
            &[],
            &["--upstream-url", "/THREADS"],
        ),
        (
            "O3 url, chat",
            flags("--upstream-url http://h/v1/chat/completions"),
            &[],
            &["--upstream-url", "/completions"],
        ),
        (
            "O3 url, messages",
            flags("--upstream-url http://h/v1/messages"),
            &[],
            &["--upstream-url", "/messages"],
        ),
        (
            "O3 CA without TLS",
            format!("--upstream-url http://h --upstream-ca-file {good}"),
            &[],
            &["--upstream-ca-file", "http://"],
        ),
        (
            "O3 certificate without TLS",
            client(&good, &good_key).replace("https:", "http:"),
            &[],
            &["--upstream-client-cert-file", "http://"],
        ),
        (
            "O3 auth, a header of the gateway's",
            key("--upstream-auth host"),
            &[],
            &["--upstream-auth", "the gateway sets"],
        ),
        (
            "O3 header, of the gateway's",
            flags("--upstream-header accept-encoding:gzip"),
            &[],
            &["--upstream-header", "accept-encoding", "the gateway sets"],
        ),
        (
            "O3 query, a question mark",
            flags("--upstream-query ?q=r"),
            &[],
            &["--upstream-query", "name=value"],
        ),
        (
            "O3 upstream's CA expired",
            format!("--upstream-url https://localhost:1 --upstream-ca-file {expired}"),
            &[],
            &["--upstream-ca-file", "expired"],
        ),
        (
            "O3 clients' CA expired",
            format!("{} --tls-client-ca-file {expired}", tls(&good, &good_key)),
            &[],
            &["--tls-client-ca-file", "expired"],
        ),
        (
            "O3 a client's certificate as the server's",
            tls(&of_client, &of_client_key),
            &[],
            &["--tls-cert-file", "may not be used as a server's"],
        ),
        (
            "O3 url, fragment",
            flags("--upstream-url http://h/#x"),
            &[],
            &["--upstream-url", "fragment"],
        ),
        (
            "O3 query",
            flags("--upstream-query nonsense"),
            &[],
            &["--upstream-query", "name=value"],
        ),
        (
            "O3 query, no name",
            flags("--upstream-query =x"),
            &[],
            &["--upstream-query", "name=value"],
        ),
        // O3: what is told, and to whom.
        (
            "O3 otlp",
            flags(""),
            &[("OTEL_EXPORTER_OTLP_PROTOCOL", "foo")],
            &["OTEL_EXPORTER_OTLP_PROTOCOL", "grpc or http/protobuf"],
        ),
        (
            "O3 otlp json",
            flags(""),
            &[("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json")],
            &[
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
                "grpc or http/protobuf",
            ],
        ),
        (
            "O3 otlp url",
            flags(""),
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")],
            &["OTEL_EXPORTER_OTLP_ENDPOINT", "http://"],
        ),
        (
            "O3 exporter",
            flags(""),
            &[("OTEL_TRACES_EXPORTER", "jaeger")],
            &["OTEL_TRACES_EXPORTER", "otlp or none"],
        ),
        (
            "O3 sampler",
            flags(""),
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
                ("OTEL_TRACES_SAMPLER", "sometimes"),
            ],
            &["OTEL_TRACES_SAMPLER", "traceidratio"],
        ),
        (
            "O3 sampler's ratio",
            flags(""),
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
                ("OTEL_TRACES_SAMPLER_ARG", "10%"),
            ],
            &["OTEL_TRACES_SAMPLER_ARG", "from 0 to 1"],
        ),
        (
            "O3 otlp timeout",
            flags(""),
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
                ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "10s"),
            ],
            &["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "milliseconds"],
        ),
        (
            "O3 otlp headers",
            flags(""),
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "SECRET"),
            ],
            &["OTEL_EXPORTER_OTLP_HEADERS", "name=value"],
        ),
        ("O3 log", flags("--log debugg"), &[], &["--log", "debugg"]),
        (
            "O3 log, number",
            flags("--log 5"),
            &[],
            &["--log", "\"5\"", "level"],
        ),
        (
            "O3 log, a target's number",
            flags("--log runs_gateway=3"),
            &[],
            &["--log", "runs_gateway=3"],
        ),
        (
            "O3 log, target",
            flags("--log runs_gateway=debugg"),
            &[],
            &["--log", "debugg"],
        ),
        (
            "O3 log, second",
            flags("--log info,h2=loud"),
            &[],
            &["--log", "loud"],
        ),
        (
            "O3 log, hyphen",
            flags("--log info,runs-gateway=debug"),
            &[],
            &["--log", "runs_gateway?"],
        ),
        (
            "O3 log, misspelt target",
            flags("--log runs_gatewy::server=debug"),
            &[],
            &["--log", "runs_gateway?"],
        ),
        (
            "O3 log, variable",
            flags(""),
            &[("RUNS_GATEWAY_LOG", "verbose")],
            &["--log", "verbose"],
        ),
        // O3: two listeners, one port.
        (
            "O3 ports",
            flags("--listen 127.0.0.1:50999 --admin-listen 127.0.0.1:50999"),
            &[],
            &["--listen", "--admin-listen"],
        ),
        (
            "O3 ports, all",
            flags("--listen 0.0.0.0:50999 --admin-listen 127.0.0.1:50999"),
            &[],
            &["--listen", "--admin-listen"],
        ),
        (
            "O3 ports, name",
            flags("--listen localhost:50999 --admin-listen localhost:50999"),
            &[],
            &["--listen", "--admin-listen"],
        ),
        // O6: what to change, by its flag.
        (
            "O6 tip",
            flags("--upstream-ur http://h"),
            &[],
            &["--upstream-url"],
        ),
        (
            "O6 tip of a value",
            flags("--log-format jsn"),
            &[],
            &["--log-format", "json"],
        ),
        (
            "O6 tip of a profile",
            flags("--upstream-profile openia"),
            &[],
            &["--upstream-profile", "openai"],
        ),
        (
            "O6 no port",
            flags("--listen localhost"),
            &[],
            &["--listen", "127.0.0.1:50051"],
        ),
        (
            "O6 no host",
            flags("--listen :50051"),
            &[],
            &["--listen", "127.0.0.1:50051"],
        ),
        (
            "O6 url to listen on",
            flags("--listen http://localhost:1"),
            &[],
            &["--listen", "127.0.0.1:50051"],
        ),
        (
            "O6 damaged",
            tls(&damaged, &good_key),
            &[],
            &["--tls-cert-file", "/damaged: ", "damaged: it is"],
        ),
        (
            "O6 cut",
            tls(&cut, &good_key),
            &[],
            &["--tls-cert-file", "/cut: ", "PEM"],
        ),
        (
            "O6 damaged CA",
            flags("--upstream-url https://h --upstream-ca-file ") + &damaged,
            &[],
            &["--upstream-ca-file", "/damaged: ", "damaged"],
        ),
        (
            "O6 no file",
            key("--tokens-file /no/such/file"),
            &[],
            &["--tokens-file", "/no/such/file"],
        ),
        (
            "O6 no key file",
            flags("--upstream-api-key-file /no/such/file"),
            &[],
            &["--upstream-api-key-file", "/no/such/file"],
        ),
        (
            "O6 folder",
            tls(&folder_path, &good_key),
            &[],
            &["--tls-cert-file", "not a regular file"],
        ),
        (
            "A4 device",
            key("--tokens-file /dev/zero"),
            &[],
            &["--tokens-file", "not a regular file"],
        ),
    ];
    // O3: limits at which nothing goes.
    let zero = [
        "max-calls 0",
        "max-connections 0",
        "max-streams-per-connection 0",
        "max-metadata-bytes 1",
        "max-held-bytes 10",
        "poll-floor 6s",
        "max-request-bytes 1",
        "max-answer-bytes 1",
        "max-event-bytes 1",
        "max-live-streams 0",
        "max-polled-runs 0",
        "max-upstream-requests 0",
        "stream-window 0",
        "connection-window 4294967295",
        "handshake-timeout 0s",
        "max-deadline 0s",
        "connect-timeout 0s",
        "answer-timeout 0s",
        "ping-timeout 0s",
        "stream-idle-timeout 0s",
        "event-log-run-entries 0",
        "event-log-bytes 0",
        "event-log-timeout 0s",
        "event-log-lease 0s",
        "max-source-age 0s",
    ];
    let zero = zero.map(|limit| {
        (
            format!("--{limit}"),
            limit.split(' ').next().expect("a flag"),
        )
    });
    for (flags, named) in &zero {
        table.push(("O3 limit", flags.clone(), &[], std::slice::from_ref(named)));
    }

    let defaults = "--listen 127.0.0.1:0 --admin-listen 127.0.0.1:0";
    for (row, flags, variables, named) in table {
        let flags = if flags.contains("listen") {
            flags
        } else {
            format!("{flags} {defaults}")
        };
        for command in [&["serve"][..], &["serve", "--check"]] {
            let output = run(command, &flags, variables);
            let said = String::from_utf8(output.stderr).expect("text");
            let row = format!("{row} {command:?} {flags}: {said}");
            assert_eq!(output.status.code(), Some(2), "{row}");
            assert_eq!(said.lines().count(), 1, "{row}");
            assert!(named.iter().all(|word| said.contains(word)), "{row}");
            assert!(output.stdout.is_empty(), "{row}");
        }
    }
}

#[test]
fn a_check_says_what_would_be_served_and_serves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = write(&folder, "tokens", HASH);
    // The port is taken by none, and may be: nothing listens.
    let table = [
        (
            "",
            "upstream https://api.aimlapi.com; admitted: anybody, with a key of their own; no TLS",
        ),
        (
            "--upstream-url http://h:1/v1 --log-ids",
            "upstream http://h:1; ",
        ),
        (
            &format!("--upstream-api-key SECRET --tokens-file {tokens}"),
            "admitted: 1 callers by 1 tokens",
        ),
        (
            "--upstream-api-key SECRET",
            "admitted: anybody, with the gateway's key",
        ),
    ];
    for (flags, words) in table {
        let output = run(&["serve", "--check"], flags, &[]);
        let said = String::from_utf8(output.stdout).expect("text");
        assert_eq!(output.status.code(), Some(0), "{flags}: {said}");
        assert_eq!(said.lines().count(), 1, "{flags}: {said}");
        assert!(
            said.contains(words) && !said.contains("SECRET"),
            "{flags}: {said}"
        );
        assert!(output.stderr.is_empty(), "{flags}");
    }
}

/// O1: a variable that no command has; who is no gateway has nothing to leave open.
#[test]
fn a_variable_that_no_command_has_is_a_warning_where_nothing_is_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = format!("--out {}", text(folder.path()));
    for (variable, words) in [
        ("RUNS_GATEWAY_XYZZY", "is unknown. Correct it or unset it"),
        ("RUNS_GATEWAY_TOKENFILE", "did you mean"),
    ] {
        let output = run(&["proto"], &out, &[(variable, "x")]);
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let has = |it: &str| said.contains(it);
        assert!(has("warning") && has(variable) && has(words), "{said}");
    }
    let output = run(&["proto"], &out, &[("RUNS_GATEWAY_TOKEN_FILE", "x")]);
    assert!(output.stderr.is_empty(), "a caller's variable");
}

/// Flags, variables, and what the line says.
type Started<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

#[tokio::test]
async fn one_line_says_what_was_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let (certificate, key) = authority.server("localhost");
    let certificate = write(&folder, "crt", certificate);
    let key = write(&folder, "key", key);
    let tokens = write(
        &folder,
        "tokens",
        format!("{HASH} a\n{} b\n{} b", "0".repeat(64), "1".repeat(64)),
    );
    let ca = write(&folder, "ca", authority.pem());
    let own = format!(
        "--upstream-api-key SECRET --upstream-header x-a:SECRET --upstream-query k=SECRET --tokens-file {tokens}"
    );
    let mtls = format!(
        "--tls-cert-file {certificate} --tls-key-file {key} --tls-client-ca-file {ca} \
         --allowed-client spiffe://prod/billing"
    );
    let table: [Started; 5] = [
        (
            "",
            &[],
            &[
                "upstream https://api.aimlapi.com;",
                "anybody, with a key of their own",
                "no TLS",
            ],
        ),
        (
            "--upstream-url http://u.example:81/v1?key=SECRET",
            &[],
            &["upstream http://u.example:81;"],
        ),
        (
            &own,
            &[],
            &["2 callers by 3 tokens", "--upstream-api-key …"],
        ),
        (
            &mtls,
            &[],
            &[
                "client certificates of spiffe://prod/billing",
                "TLS with the certificate of",
                "until 4000-01-01",
                "1 CAs of clients",
            ],
        ),
        (
            "--max-calls 7",
            &[
                ("RUNS_GATEWAY_MAX_STREAM_AGE", "3s"),
                ("RUNS_GATEWAY_UPSTREAM_API_KEY", "SECRET"),
            ],
            &[
                "--max-calls 7",
                "--max-stream-age 3s",
                "with the gateway's key",
            ],
        ),
    ];
    for (flags, variables, words) in table {
        let flags: Vec<_> = flags.split_whitespace().collect();
        let program = Running::start_in(&flags, variables).await;
        let (grpc, admin) = (program.address.to_string(), program.admin.to_string());
        let (_, log) = program.stop("-TERM").await;
        let lines = log.lines().filter(|line| line.contains("serving: "));
        let lines: Vec<Value> = lines
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 1, "{flags:?}: {log}");
        let fields = &lines[0]["fields"];
        assert_eq!(fields["version"], env!("CARGO_PKG_VERSION"), "{flags:?}");
        assert_eq!(
            (&fields["grpc"], &fields["admin"]),
            (&grpc.into(), &admin.into()),
            "{flags:?}"
        );
        let message = fields["message"].as_str().expect("text");
        for word in words {
            assert!(message.contains(word), "{word}: {message}");
        }
        assert!(!log.contains("SECRET"), "{log}");
    }
}

#[tokio::test]
async fn service_links_are_no_mistake_and_old_names_are_taken() {
    let variables = [
        ("RUNS_GATEWAY_PORT", "tcp://10.0.0.1:50051"),
        ("RUNS_GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("RUNS_GATEWAY_SERVICE_PORT_GRPC", "50051"),
        ("RUNS_GATEWAY_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("RUNS_GATEWAY_POLL_PATIENCE", "3s"),
        // Of the probe in the same container.
        ("RUNS_GATEWAY_HEALTHCHECK_CA_FILE", "/ca.pem"),
        ("RUNS_GATEWAY_HEALTHCHECK_TLS_NAME", "gateway"),
    ];
    let program = Running::start_in(&["--stream-linger=2s"], &variables).await;
    program.signal("-HUP");
    let (ended, log) = program.stop("-TERM").await;
    assert_eq!(ended.code(), Some(0), "{log}");
}
