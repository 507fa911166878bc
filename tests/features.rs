//! What the crate's features bring along.
//!
//! Must hold: who calls a gateway builds none, and needs no C compiler for it.

use std::{collections::BTreeSet, env, process::Command};

/// Crates that only a gateway needs; `cc` is in each tree that compiles C.
const OF_GATEWAY: [&str; 9] = [
    "axum",
    "cc",
    "clap",
    "libmimalloc-sys",
    "opentelemetry",
    "reqwest",
    "ring",
    "rustls",
    "tracing-subscriber",
];

/// Crates that only a client needs.
const OF_CLIENT: [&str; 3] = ["hyper", "tokio", "tonic"];

/// What is built for a program that depends on the crate with these features, and for its build.
fn crates(features: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--frozen", "--no-default-features", "--features"])
        .args([features, "--edges", "normal,build", "--prefix", "none"])
        .args(["--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let names = lines.lines().filter_map(|line| line.split(' ').next());
    names.map(str::to_owned).collect()
}

#[test]
fn each_feature_brings_what_it_needs_and_no_more() {
    for (features, with, without) in [
        ("", vec!["prost"], [&OF_CLIENT[..], &OF_GATEWAY].concat()),
        ("client", OF_CLIENT.to_vec(), OF_GATEWAY.to_vec()),
        ("gateway", [&OF_CLIENT[..], &OF_GATEWAY].concat(), vec![]),
    ] {
        let crates = crates(features);
        let missing: Vec<_> = with.iter().filter(|it| !crates.contains(**it)).collect();
        assert!(missing.is_empty(), "{features:?} lacks {missing:?}");
        let needless: Vec<_> = without.iter().filter(|it| crates.contains(**it)).collect();
        assert!(needless.is_empty(), "{features:?} brings {needless:?}");
    }
}
