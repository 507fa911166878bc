//! What Azure's agents send and take besides the documented API, as they write it: approvals, calls
//! of MCP servers and REST APIs, quotations of pages; and what has no fields, which is kept.
//!
//! Shapes: azure-rest-api-specs, `specification/ai/Azure.AI.Agents`, api-version v1.

use crate::roots::{ROOTS, descriptor, round};

/// A run's members around `required_action`.
fn run(action: &str) -> String {
    format!(
        r#"{{"id":"run_1","object":"thread.run","created_at":1764400000,"assistant_id":"asst_1","thread_id":"thread_1",
        "status":"requires_action","started_at":1764400001,"expires_at":1764400600,"cancelled_at":null,"failed_at":null,
        "completed_at":null,"required_action":{action},"last_error":null,"model":"gpt-4o","instructions":"Be brief.",
        "tools":[],"tool_resources":{{}},"metadata":{{}},"temperature":1.0,"top_p":1.0,"max_completion_tokens":null,
        "max_prompt_tokens":null,"truncation_strategy":{{"type":"auto","last_messages":null}},"incomplete_details":null,
        "usage":null,"response_format":"auto","tool_choice":"auto","parallel_tool_calls":true}}"#
    )
}

/// A step's members around its calls.
fn step(calls: &str) -> String {
    format!(
        r#"{{"id":"step_1","object":"thread.run.step","created_at":1764400002,"run_id":"run_1","assistant_id":"asst_1",
        "thread_id":"thread_1","type":"tool_calls","status":"completed","cancelled_at":null,"completed_at":1764400003,
        "expires_at":null,"failed_at":null,"last_error":null,"step_details":{{"type":"tool_calls","tool_calls":[{calls}]}},
        "usage":{{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}}}}"#
    )
}

fn delta(kind: &str, calls: &str) -> String {
    format!(
        r#"{{"id":"step_1","object":"thread.run.step.delta","delta":{{"step_details":{{"type":"{kind}","tool_calls":[{calls}]}}}}}}"#
    )
}

fn message(annotation: &str) -> String {
    format!(
        r#"{{"id":"msg_1","object":"thread.message","created_at":1764400004,"assistant_id":"asst_1","thread_id":"thread_1",
        "run_id":"run_1","role":"assistant","content":[{{"type":"text","text":{{"value":"See 【1†source】.","annotations":[{annotation}]}}}}],
        "attachments":[],"metadata":{{}}}}"#
    )
}

#[test]
fn what_azures_agents_send_and_take_is_in_fields_and_what_is_not_typed_is_kept() {
    let mcp = r#"{"id":"call_1","type":"mcp","name":"search","arguments":"{\"query\":\"rest\"}","server_label":"github"}"#;
    let called = r#"{"id":"call_1","type":"mcp","name":"search","arguments":"{}","output":"[1]","server_label":"github"}"#;
    let openapi = r#"{"id":"call_2","type":"openapi","openapi":{"name":"weather_get","arguments":"{\"city\":\"Oslo\"}","output":"{}"}}"#;
    // As services write it, whatever is documented.
    let called_as_function = r#"{"id":"call_2","type":"openapi","function":{"name":"weather_get","arguments":"{\"city\":\"Oslo\"}","output":"{'temp': '4'}"}}"#;
    let computer = r#"{"id":"call_4","type":"computer_use_preview","computer_use_preview":{"action":{"type":"click","x":4,"y":2.5},"pending_safety_checks":[]}}"#;
    let screenshot = r#"{"type":"computer_call_output","tool_call_id":"call_4","output":{"type":"computer_screenshot","file_id":"file_1"},"acknowledged_safety_checks":[]}"#;
    let listed = r#""activities","activities":[{"id":"activity_1","type":"mcp_list_tools","server_label":"github","tools":{"search":{"parameters":{"type":"object"}}}}]"#;
    let bing = r#"{"id":"call_3","type":"bing_grounding","bing_grounding":{"requesturl":"https://a.example","response_metadata":"{}"}}"#;
    let page = r#"{"type":"url_citation","text":"【1†source】","start_index":4,"end_index":14,"url_citation":{"url":"https://b.example/x","title":"X"}}"#;
    // Document, message, and how many of its members have no fields.
    let rows = [
        (
            "Run",
            run(&format!(
                r#"{{"type":"submit_tool_approval","submit_tool_approval":{{"tool_calls":[{mcp}]}}}}"#
            )),
            0,
        ),
        // Its type, and what it asks for.
        (
            "Run",
            run(r#"{"type":"submit_payment","submit_payment":{"amount":1}}"#),
            2,
        ),
        (
            "ToolOutputs",
            r#"{"tool_approvals":[{"tool_call_id":"call_1","approve":true,"headers":{"authorization":"Bearer x"}},{"tool_call_id":"call_2","approve":false}]}"#.to_owned(),
            0,
        ),
        ("RunStep", step(&format!("{called},{openapi}")), 0),
        ("RunStep", step(bing), 2),
        ("RunStep", step(called_as_function), 0),
        // The step's type, and that of its details, and they.
        (
            "RunStep",
            step("")
                .replace(r#""type":"tool_calls","status""#, r#""type":"activities","status""#)
                .replace(r#""tool_calls","tool_calls":[]"#, listed),
            3,
        ),
        (
            "Run",
            run(&format!(
                r#"{{"type":"submit_tool_outputs","submit_tool_outputs":{{"tool_calls":[{computer}]}}}}"#
            )),
            2,
        ),
        // Its type, its output, which is no text, and what it acknowledges.
        ("ToolOutputs", format!(r#"{{"tool_outputs":[{screenshot}]}}"#), 3),
        (
            "RunStepDelta",
            delta("mcp", r#"{"index":0,"id":"call_1","type":"mcp","arguments":"{\"qu"}"#),
            0,
        ),
        (
            "RunStepDelta",
            delta("openapi", r#"{"index":0,"id":"call_2","type":"openapi","openapi":{"arguments":"{"}}"#),
            0,
        ),
        (
            "RunStepDelta",
            delta("tool_calls", r#"{"index":0,"type":"openapi","function":{"arguments":"\":\""}}"#),
            0,
        ),
        // Parts that are no text are kept whole.
        (
            "RunStepDelta",
            delta("tool_calls", r#"{"index":0,"id":"call_2","type":"openapi","openapi":{"status":200}}"#),
            1,
        ),
        ("ThreadMessage", message(page), 0),
        ("ThreadMessage", message(r#"{"type":"hologram","text":"x"}"#), 1),
    ];
    for (name, text, kept) in rows {
        let root = ROOTS.iter().find(|root| root.name == name).expect("a root");
        assert_eq!(
            round(root, &descriptor(root), &text),
            kept,
            "members in extra_json of {text}"
        );
    }
}
