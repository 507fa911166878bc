//! How long the error path takes: from the upstream's error body to an error, and from that to the
//! gRPC status with its details.
//!
//! An upstream that is down or limits its callers makes every call take this path, at the worst
//! time. `cargo bench --bench errors`.

use std::hint::black_box;

use criterion::Criterion;
use runs_gateway::{error::Error, upstream::error_event};
use tonic::Code;

/// Bodies as services send them, and what becomes of them.
const BODIES: [(&str, &str, Code); 3] = [
    (
        "rate limit",
        r#"{"error":{"message":"Rate limit reached for gpt-4o in organization org-Xk2 on tokens per min (TPM): Limit 30000, Used 29620, Requested 812. Please try again in 864ms.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#,
        Code::ResourceExhausted,
    ),
    (
        "invalid field",
        r#"{"error":{"message":"Invalid value: 'sometimes'. Supported values are: 'none', 'auto', and 'required'.","type":"invalid_request_error","param":"tool_choice","code":"invalid_value"}}"#,
        Code::InvalidArgument,
    ),
    // An error inside of another one's message, as gateways wrap them.
    (
        "wrapped",
        r#"{"statusCode":500,"message":"500 {\"error\":{\"message\":\"The server had an error while processing your request.\",\"type\":\"server_error\",\"param\":null,\"code\":null}}","requestId":"7f3c2a9e"}"#,
        Code::Internal,
    ),
];

fn errors(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("error");
    for (name, body, code) in BODIES {
        let error: Error = error_event(body.as_bytes(), false);
        assert_eq!(error.status().code(), code, "{name}");
        group.bench_function(format!("{name}/read"), |bencher| {
            bencher.iter(|| error_event(black_box(body.as_bytes()), false));
        });
        group.bench_function(format!("{name}/status"), |bencher| {
            bencher.iter(|| black_box(&error).status());
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    errors(&mut criterion);
    criterion.final_summary();
}
