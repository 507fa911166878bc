//! The official client of the API, pointed at the embedded one by its base URL alone.

use tokio::process::Command;

use crate::client::Embedded;

#[tokio::test]
async fn the_official_python_client_finds_what_it_expects() {
    let api = Embedded::running().await;
    let run = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/run");
    let status = Command::new(run)
        .arg(&api.url)
        .kill_on_drop(true)
        .status()
        .await
        .expect("bash is there");
    assert!(status.success(), "tests/sdk/run: {status}");
}
