//! What operators do: rows O of the field cases, on the real program.

use std::{fs, process::Output, time::Duration};

use assert_cmd::Command;

use crate::support::program::{PROGRAM, Running};

const HASH: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

/// `serve` with these, which ends by itself only if they are refused.
fn serve(flags: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(PROGRAM)
        .arg("serve")
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .args(flags)
        .envs(variables.iter().copied())
        .timeout(Duration::from_secs(20))
        .output()
        .expect("the program runs")
}

/// What is tried, flags, variables, and what the line says.
type Row<'a> = (&'a str, Vec<&'a str>, &'a [(&'a str, &'a str)], &'a str);

#[test]
fn what_would_be_ignored_or_serve_nobody_is_refused_with_a_line_that_says_what_to_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().join("empty");
    fs::write(&empty, "# nobody\n").expect("a file");
    let empty = empty.to_str().expect("text");
    let key = ["--upstream-api-key", "k", "--tokens-file"];
    let with_key = |file| [&key[..], &[file]].concat();
    let table: &[Row] = &[
        (
            "O1",
            vec![],
            &[("RUNS_GATEWAY_ALLOWD_CLIENT", "a")],
            "RUNS_GATEWAY_ALLOWED_CLIENT?",
        ),
        (
            "O1 lower",
            vec![],
            &[("RUNS_GATEWAY_Listen", "a")],
            "RUNS_GATEWAY_LISTEN?",
        ),
        (
            "O1 none",
            vec![],
            &[("RUNS_GATEWAY_TOKEN_FILE", "a")],
            "RUNS_GATEWAY_TOKENS_FILE?",
        ),
        (
            "O1 read",
            vec![],
            &[("RUNS_GATEWAY_ALLOWED_CLIENT", "a")],
            "--tls-client-ca-file",
        ),
        (
            "O1 old",
            vec![],
            &[("RUNS_GATEWAY_ALLOWED_CLIENTS", "a")],
            "--tls-client-ca-file",
        ),
        ("O3 tokens", with_key(empty), &[], "--tokens-file"),
        (
            "A4 device",
            with_key("/dev/zero"),
            &[],
            "not a regular file",
        ),
        (
            "O3 url",
            vec!["--upstream-url", "http://h/v1/threads/"],
            &[],
            "--upstream-url",
        ),
        (
            "O3 url",
            vec!["--upstream-url", "http://h/assistants"],
            &[],
            "--upstream-url",
        ),
        (
            "O3 url",
            vec!["--upstream-url", "http://h/#x"],
            &[],
            "--upstream-url",
        ),
        (
            "O3 query",
            vec!["--upstream-query", "nonsense"],
            &[],
            "--upstream-query",
        ),
        (
            "O6 tip",
            vec!["--upstream-ur", "http://h"],
            &[],
            "--upstream-url",
        ),
    ];
    for (row, flags, variables, named) in table {
        let output = serve(flags, variables);
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{row}: {said}");
        assert_eq!(said.lines().count(), 1, "{row}: {said}");
        assert!(said.contains(named), "{row}: {said}");
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
    ];
    let program = Running::start_in(&["--stream-linger=2s"], &variables).await;
    program.signal("-HUP");
    let (ended, log) = program.stop("-TERM").await;
    assert_eq!(ended.code(), Some(0), "{log}");
}

#[tokio::test]
async fn a_hangup_reads_the_files_again_and_ends_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, HASH).expect("a file");
    let flags = [
        "--upstream-api-key",
        "k",
        "--reload-interval",
        "0s",
        "--tokens-file",
    ];
    let flags = [&flags[..], &[tokens.to_str().expect("text")]].concat();
    let program = Running::start(&flags).await;
    for (content, line) in [
        (format!("{HASH} name"), "are in use"),
        (String::new(), "the file is empty"),
        ("# nobody".to_owned(), "nobody could call"),
    ] {
        fs::write(&tokens, content).expect("a file");
        program.signal("-HUP");
        let seen = async {
            while !program.log().iter().any(|it| it.contains(line)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(20), seen).await;
        assert!(seen.is_ok(), "{line}: {:?}", program.log());
    }
    let (ended, log) = program.stop("-TERM").await;
    assert_eq!(ended.code(), Some(0), "{log}");
}
