//! A model by HTTPS: only one whose certificate holds is asked.

use std::fs;

use serde_json::json;

use crate::{
    certificates::Authority,
    front::front,
    harness::{OnModel, asking, end, text},
    support::upstream::{Answer, Upstream},
};

#[tokio::test]
async fn only_a_model_whose_certificate_holds_is_asked() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let folder = tempfile::TempDir::new().expect("a folder");
    let ca = folder.path().join("ca.crt");
    fs::write(&ca, authority.pem()).expect("written");
    let private: &[&str] = &["--model-ca-file", ca.to_str().expect("a path of text")];
    let signed = authority.server("localhost");
    let rows = [
        ("the CA's", signed.clone(), private, true),
        ("the CA's, to the system's CAs", signed, &[], false),
        ("another CA's", stranger.server("localhost"), private, false),
        (
            "another name's",
            authority.server("internal.example"),
            private,
            false,
        ),
        (
            "an expired one",
            authority.expired_server("localhost"),
            private,
            false,
        ),
    ];
    for (whose, certificate, flags, holds) in rows {
        let model = Upstream::start().await;
        let address = front(&model, certificate, None).await;
        let url = format!("https://localhost:{}/v1", address.port());
        let flags = [flags, &["--max-retries", "0"]].concat();
        let dev = OnModel::start_at(model, &url, &flags).await;
        let line = if holds {
            dev.model.push(Answer::sse([text("Hi"), end("stop")]));
            "completed, said \"Hi\""
        } else {
            "failed server_error"
        };
        let outcome = dev.outcome("/threads/runs", asking(json!({}))).await;
        assert_eq!(outcome.line(), line, "{whose}: {}", outcome.error());
        assert_eq!(dev.model.requests().len(), usize::from(holds), "{whose}");
        assert!(!outcome.error().contains("upstream"), "{}", outcome.error());
    }
}
