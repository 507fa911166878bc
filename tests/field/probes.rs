//! Probes of a running gateway, and the demo: rows G8, O6 and O7, on the real program.

use std::{net::TcpListener, process::Output, time::Duration};

use assert_cmd::Command;

use crate::{
    certificates::Authority,
    operators::write,
    support::program::{PROGRAM, Running},
};

/// The program's answer to these words. Not in the test's runtime, which serves nothing meanwhile.
async fn ask(words: Vec<String>, variables: Vec<(&'static str, String)>) -> Output {
    let asking = tokio::task::spawn_blocking(move || {
        Command::new(PROGRAM)
            .args(words)
            .envs(variables)
            .timeout(Duration::from_secs(60))
            .output()
            .expect("the program runs")
    });
    asking.await.expect("no panic")
}

/// G8, O6: a probe says whether the gateway serves, whatever TLS it has, and if it cannot ask, how
/// it could.
#[tokio::test]
async fn a_probe_is_answered_whatever_the_gateway_asks_of_its_callers() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let (certificate, key) = authority.server("gateway.example");
    let (certificate, key) = (
        write(&folder, "crt", certificate),
        write(&folder, "key", key),
    );
    let ca = write(&folder, "ca", authority.pem());
    let other_ca = write(&folder, "other", Authority::new().pem());
    let tls = ["--tls-cert-file", &certificate, "--tls-key-file", &key];
    let mtls = [&tls[..], &["--tls-client-ca-file", &ca]].concat();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody = free.local_addr().expect("bound").to_string();
    drop(free);

    let flag = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
    let name = flag("--tls-name", "gateway.example");
    for gateway in [&[][..], &tls, &mtls] {
        let program = Running::start(gateway).await;
        let (addr, admin) = (program.address.to_string(), program.admin.to_string());
        let admin_variable = ("RUNS_GATEWAY_ADMIN_LISTEN", admin.clone());
        let (plain, asks) = (gateway.is_empty(), gateway.len() > 4);
        let everywhere = admin.replace("127.0.0.1", "0.0.0.0");
        // Words, variables, and what is said if it does not serve.
        let table: Vec<(Vec<String>, Vec<_>, Option<&str>)> = vec![
            (flag("--admin-addr", &admin), vec![], None),
            (flag("--admin-addr", &everywhere), vec![], None),
            (vec![], vec![admin_variable.clone()], None),
            // As in the image: both variables, of which that of the admin port goes first.
            (
                vec![],
                vec![admin_variable, ("RUNS_GATEWAY_LISTEN", addr.clone())],
                None,
            ),
            (
                flag("--addr", &addr),
                vec![],
                (!plain).then_some("--admin-addr"),
            ),
            (
                vec![],
                vec![("RUNS_GATEWAY_LISTEN", addr.clone())],
                (!plain).then_some("--admin-addr"),
            ),
            (
                [
                    flag("--addr", &addr),
                    flag("--tls-ca-file", &ca),
                    name.clone(),
                ]
                .concat(),
                vec![],
                (plain || asks).then_some(&addr),
            ),
            (
                [flag("--addr", &addr), flag("--tls-ca-file", &ca)].concat(),
                vec![],
                Some(if plain { &addr } else { "is --tls-name right?" }),
            ),
            (
                [
                    flag("--addr", &addr),
                    flag("--tls-ca-file", &other_ca),
                    name.clone(),
                ]
                .concat(),
                vec![],
                Some(if plain {
                    &addr
                } else {
                    "is --tls-ca-file right?"
                }),
            ),
            (
                flag("--admin-addr", &addr),
                vec![],
                Some(if plain { "the gRPC port" } else { &addr }),
            ),
            (
                [flag("--addr", &addr), flag("--tls-ca-file", "/no/file")].concat(),
                vec![],
                Some("--tls-ca-file"),
            ),
            (flag("--admin-addr", &nobody), vec![], Some("refused")),
            (flag("--addr", &nobody), vec![], Some("refused")),
        ];
        for (words, variables, refused) in table {
            let words = [vec!["healthcheck".to_owned()], words].concat();
            let row = format!("{gateway:?} {words:?} {variables:?}");
            let output = ask(words, variables).await;
            let said = String::from_utf8(output.stderr).expect("text");
            let code = i32::from(refused.is_some());
            assert_eq!(output.status.code(), Some(code), "{row}: {said}");
            if let Some(words) = refused {
                assert!(
                    said.contains(words) && said.lines().count() == 1,
                    "{row}: {said}"
                );
                // Whoever is not there speaks no TLS either.
                assert!(words != "refused" || !said.contains("TLS"), "{row}: {said}");
                assert!(
                    !said.trim_end().ends_with("transport error"),
                    "{row}: {said}"
                );
            }
        }
    }
}

/// O7: the demo works wherever it is tried, and says what it does in the order in which it happens.
#[tokio::test]
async fn the_demo_works_whatever_is_set_and_taken() {
    // The usual ports are taken now, by this test or by somebody else.
    let _taken = ["127.0.0.1:9090", "127.0.0.1:50051"].map(TcpListener::bind);
    let variable = |name, value: &str| vec![(name, value.to_owned())];
    for variables in [
        vec![],
        vec![
            ("RUNS_GATEWAY_TLS_CERT_FILE", "/no/such".to_owned()),
            ("RUNS_GATEWAY_TLS_KEY_FILE", "/no/such".to_owned()),
        ],
        variable("RUNS_GATEWAY_LISTEN", "127.0.0.1:50051"),
        variable("RUNS_GATEWAY_ADMIN_LISTEN", "127.0.0.1:9090"),
        variable("RUNS_GATEWAY_TOKENS_FILE", "/no/such"),
        variable("RUNS_GATEWAY_NONSENSE", "x"),
        variable("OTEL_EXPORTER_OTLP_PROTOCOL", "foo"),
    ] {
        let output = ask(vec!["demo".to_owned()], variables.clone()).await;
        let said = String::from_utf8(output.stdout).expect("text");
        let complaints = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.success(), "{variables:?}: {complaints}");
        assert_eq!(complaints, "", "{variables:?}");
        let order = [
            "-> ConverseRun start",
            "<- THREAD_RUN_CREATED",
            "<- THREAD_RUN_REQUIRES_ACTION",
            "-> get_weather(",
            "submit_tool_outputs",
            "THREAD_MESSAGE_DELTA, as it comes: ",
            "<- THREAD_RUN_COMPLETED",
            "-> ListRunSteps",
            "-> GetRun",
            "<- NotFound",
        ];
        let places = order.map(|words| said.find(words));
        assert!(places.iter().all(Option::is_some), "{places:?}: {said}");
        assert!(places.is_sorted(), "{places:?}: {said}");
    }
}
