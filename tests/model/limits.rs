//! What a reply may take, and when a request is made again.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    harness::{OnModel, call, end, text, tools},
    support::upstream::Answer,
};

#[tokio::test]
async fn a_reply_that_goes_beyond_a_limit_fails_and_names_the_flag() {
    let made = |index: usize| {
        call(
            &json!({ "index": index, "id": format!("c{index}"), "function": { "name": "a", "arguments": "{}" } }),
        )
    };
    let silent = || Answer::sse([text("Hel")]).wait(&Arc::default());
    let rows: [(&[&str], Answer, &str, &str); 4] = [
        (
            &["--model-max-reply-bytes", "5"],
            Answer::sse([text("Hel"), text("lo!"), end("stop")]),
            "failed server_error run_failed, said \"Hel\"",
            "--model-max-reply-bytes",
        ),
        (
            &["--model-max-tool-calls", "1"],
            Answer::sse([made(0), made(1), end("tool_calls")]),
            "failed server_error",
            "--model-max-tool-calls",
        ),
        (
            &["--model-timeout", "100ms"],
            silent(),
            "failed server_error run_failed, said \"Hel\"",
            "--model-timeout",
        ),
        (
            &["--stream-idle-timeout", "100ms"],
            silent(),
            "failed server_error run_failed, said \"Hel\"",
            "said nothing for 100ms",
        ),
    ];
    for (flags, answer, line, words) in rows {
        let dev = OnModel::start(flags).await;
        let outcome = dev.run(answer, tools(&["a"])).await;
        assert_eq!(outcome.line(), line, "{flags:?}");
        assert!(
            outcome.error().contains(words),
            "{flags:?}: {}",
            outcome.error()
        );
        // Nobody reads it any more.
        dev.model.closed(0).await;
    }
}

#[tokio::test]
async fn tokens_that_are_used_up_end_the_run_before_the_next_round() {
    let dev = OnModel::start(&[]).await;
    let usage = json!({ "prompt_tokens": 256, "completion_tokens": 300 });
    let last = json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "tool_calls" }], "usage": usage });
    let round = || {
        let made =
            call(&json!({ "index": 0, "id": "c", "function": { "name": "a", "arguments": "{}" } }));
        Answer::sse([made, format!("data: {last}\n\ndata: [DONE]\n\n")])
    };
    for (limit, line) in [
        ("max_completion_tokens", "incomplete max_completion_tokens"),
        ("max_prompt_tokens", "incomplete max_prompt_tokens"),
    ] {
        let mut more = tools(&["a"]);
        more[limit] = json!(256);
        let first = dev.run(round(), more).await;
        let asked = dev.model.requests().len();
        assert_eq!(dev.submit(&first.run, "1").await.line(), line);
        assert_eq!(
            dev.model.requests().len(),
            asked,
            "{limit}: it was not asked"
        );
    }
}

#[tokio::test]
async fn a_request_is_made_again_until_an_answer_begins() {
    let busy = || Answer::json(503, "{}").header("retry-after-ms", "1");
    let limited = || Answer::json(429, "{}").header("retry-after-ms", "1");
    let hi = || Answer::sse([text("Hi"), end("stop")]);
    let cut = || Answer::sse([text("Hel")]).close();
    let rows: [(&str, Vec<Answer>, &str); 4] = [
        (
            "a busy service",
            vec![busy(), hi()],
            "completed, said \"Hi\"",
        ),
        (
            "a lost connection",
            vec![Answer::cut_before_answer(), hi()],
            "completed, said \"Hi\"",
        ),
        (
            "a limit, three times",
            vec![limited(), limited(), limited()],
            "failed rate_limit_exceeded",
        ),
        (
            "words that are cut",
            vec![cut()],
            "failed server_error run_failed, said \"Hel\"",
        ),
    ];
    for (what, answers, line) in rows {
        let dev = OnModel::start(&[]).await;
        let count = answers.len();
        for answer in answers {
            dev.model.push(answer);
        }
        let outcome = dev
            .outcome("/threads/runs", crate::harness::asking(Value::Null))
            .await;
        assert_eq!(outcome.line(), line, "{what}: {}", outcome.error());
        assert_eq!(dev.model.requests().len(), count, "{what}");
    }
}
