//! The program itself: what whoever starts it sees.

use std::{fs, net::TcpListener};

use assert_cmd::Command;
use prost_reflect::DescriptorPool;
use tonic::Code;

use crate::{
    call::Call,
    roots::contract,
    support::{
        program::{PROGRAM, Running},
        upstream::{Answer, Upstream},
    },
};

#[tokio::test]
async fn it_serves_on_a_free_port_and_drains_on_a_signal() {
    for signal in ["-TERM", "-INT"] {
        let upstream = Upstream::start().await;
        upstream.push(Answer::json(200, r#"{"id":"run_1"}"#));
        let program =
            Running::start(&["--upstream-url", &upstream.url(), "--worker-threads", "2"]).await;
        let answered = Call::get_run()
            .on(program.channel.clone())
            .await
            .expect("an answer");
        assert_eq!(answered.json["id"], "run_1");
        let (ended, log) = program.stop(signal).await;
        assert_eq!(ended.code(), Some(0), "{log}");
        assert!(log.contains("drained"), "{log}");
    }
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_an_answer_and_no_crash() {
    let free = TcpListener::bind("127.0.0.1:0")
        .expect("a free port")
        .local_addr()
        .expect("bound");
    let program = Running::start(&["--upstream-url", &format!("http://{free}")]).await;
    for call in Call::all() {
        assert_eq!(
            call.on(program.channel.clone())
                .await
                .expect_err("nobody is there")
                .code(),
            Code::Unavailable
        );
    }
    let (ended, log) = program.stop("-TERM").await;
    assert_eq!(ended.code(), Some(0), "{log}");
}

#[test]
fn what_cannot_work_is_one_line_and_exit_code_2() {
    // What is asked for, and what the line has to name. SECRET is never repeated.
    let table: &[(&[&str], &str)] = &[
        (&["nonsense"], "nonsense"),
        (&["proto"], "--out"),
        (&["serve", "--no-such-flag"], "--no-such-flag"),
        (&["serve", "--listen", "nonsense"], "--listen"),
        (&["serve", "--listen", "127.0.0.1:70000"], "--listen"),
        (&["serve", "--worker-threads", "0"], "--worker-threads"),
        (&["serve", "--answer-timeout", "soon"], "--answer-timeout"),
        (&["serve", "--log", "=="], "--log"),
        (&["serve", "--upstream-profile", "azure"], "--upstream-url"),
        (&["serve", "--upstream-url", "SECRET"], "--upstream-url"),
        (
            &["serve", "--upstream-url", "http://user:SECRET@host:port"],
            "--upstream-url",
        ),
        (
            &["serve", "--upstream-url", "http://user:SECRET@host"],
            "--upstream-url",
        ),
        (
            &["serve", "--upstream-url", "ftp://host/?key=SECRET"],
            "--upstream-url",
        ),
        (&["serve", "--upstream-api-key", ""], "--upstream-api-key"),
        (
            &["serve", "--upstream-api-key", "SECRET\u{1}"],
            "--upstream-api-key",
        ),
        (
            &[
                "serve",
                "--upstream-api-key",
                "SECRET",
                "--upstream-api-key-file",
                "f",
            ],
            "--upstream-api-key-file",
        ),
        (
            &["serve", "--upstream-api-key-file", "no/such/file"],
            "no/such/file",
        ),
        (
            &[
                "serve",
                "--upstream-api-key",
                "SECRET",
                "--listen",
                "0.0.0.0:0",
            ],
            "--allow-anonymous",
        ),
        (
            &[
                "serve",
                "--upstream-api-key",
                "SECRET",
                "--forward-metadata",
                "authorization",
            ],
            "--forward-metadata",
        ),
        (
            &["serve", "--upstream-header", "SECRET"],
            "--upstream-header",
        ),
        (
            &["serve", "--upstream-header", "authorization: SECRET"],
            "--upstream-api-key-file",
        ),
        (
            &[
                "serve",
                "--upstream-auth",
                "api-key",
                "--upstream-header",
                "Api-Key: SECRET",
            ],
            "--upstream-api-key-file",
        ),
        (
            &["serve", "--forward-metadata", "host"],
            "--forward-metadata",
        ),
        (
            &["serve", "--forward-metadata", "content-length"],
            "--forward-metadata",
        ),
    ];
    for (words, named) in table {
        let output = Command::new(PROGRAM)
            .args(*words)
            .output()
            .expect("the program runs");
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(output.stdout.is_empty(), "{words:?}");
        assert!(
            said.starts_with("runs-gateway: ") && said.ends_with('\n') && said.lines().count() == 1,
            "{words:?}: {said:?}"
        );
        assert!(said.contains(named), "{words:?}: {said}");
        assert_eq!(
            said.contains("--log"),
            *named == "--log",
            "only what is wrong is named: {words:?}: {said}"
        );
        assert!(!said.contains("SECRET"), "{words:?}: {said}");
    }
}

#[test]
fn what_fails_is_one_line_and_exit_code_1_and_what_is_only_asked_is_0() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let table: &[(&[&str], i32, &str)] = &[
        (&["serve", "--listen", &address], 1, &address),
        (&["proto", "--out", PROGRAM], 1, PROGRAM),
        (&["--version"], 0, env!("CARGO_PKG_VERSION")),
        (&["--help"], 0, "proto"),
        (&["serve", "--help"], 0, "RUNS_GATEWAY_UPSTREAM_URL"),
    ];
    for (words, code, named) in table {
        let output = Command::new(PROGRAM)
            .args(*words)
            .output()
            .expect("the program runs");
        let (said, other) = if *code == 0 {
            (output.stdout, output.stderr)
        } else {
            (output.stderr, output.stdout)
        };
        let said = String::from_utf8(said).expect("text");
        assert_eq!(output.status.code(), Some(*code), "{words:?}: {said}");
        assert!(
            said.contains(named) && other.is_empty(),
            "{words:?}: {said}"
        );
        assert!(*code == 0 || said.lines().count() == 1, "{words:?}: {said}");
    }
}

#[test]
fn the_demo_ends_by_reading_back_the_answer_that_its_stream_brought() {
    let output = Command::new(PROGRAM).arg("demo").output().expect("it runs");
    let said = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0), "{said}");
    let (_, after_delta) = said.split_once(", as it comes: ").expect("a delta");
    let streamed = after_delta.lines().next().expect("a line");
    assert!(streamed.contains("22 degrees and sunny"), "{said}");
    let lines: Vec<_> = said.lines().collect();
    let [.., asked, answer, _] = &lines[..] else {
        panic!("too few lines: {said}")
    };
    assert!(asked.starts_with("-> ListMessages"), "{said}");
    let (id, read) = answer.split_once(": ").expect("a message");
    assert!(id.starts_with("<- msg_"), "{said}");
    assert_eq!(read, streamed, "{said}");
}

#[test]
fn a_flag_is_an_environment_variable_too_and_wins_over_it() {
    let run = |flags: &[&str]| {
        let output = Command::new(PROGRAM)
            .arg("serve")
            .args(flags)
            .env("RUNS_GATEWAY_UPSTREAM_API_KEY", "SECRET")
            .env("RUNS_GATEWAY_LISTEN", "0.0.0.0:1")
            .output()
            .expect("the program runs");
        String::from_utf8(output.stderr).expect("text")
    };
    // Both are read, and together they are refused.
    assert!(run(&[]).contains("0.0.0.0:1 can be reached by others"));
    assert!(run(&["--listen", "[::]:2"]).contains("[::]:2 can be reached by others"));
}

#[test]
fn the_contract_comes_out_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("new/folder");
    Command::new(PROGRAM)
        .args(["proto", "--out"])
        .arg(&out)
        .assert()
        .success()
        .stdout("")
        .stderr("");
    let files = fs::read_dir(out.join("runsgateway/v1")).expect("the package's folder");
    let files: Vec<_> = files.map(|entry| entry.expect("an entry").path()).collect();
    let written = DescriptorPool::from_file_descriptor_set(
        protox::compile(&files, [&out]).expect("files that compile"),
    )
    .expect("a contract");
    let names = |pool: &DescriptorPool| {
        let messages = pool.all_messages().map(|it| it.full_name().to_owned());
        let methods = pool.services().flat_map(|it| {
            it.methods()
                .map(|it| it.full_name().to_owned())
                .collect::<Vec<_>>()
        });
        let mut names: Vec<_> = messages
            .chain(methods)
            .filter(|name| name.starts_with("runsgateway.v1."))
            .collect();
        names.sort();
        names
    };
    assert!(names(&written).contains(&"runsgateway.v1.RunService.CreateRun".to_owned()));
    assert_eq!(names(&written), names(&contract()));
}
