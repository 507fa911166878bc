//! Bodies of requests: what a caller may send, and which field is named when it may not.

use runs_gateway::{
    json::{self, Document, Violation},
    v1::{
        FileSearchSettings, FunctionDefinition, InputContentPart, JsonSchemaFormat, MessageContent,
        MessageInput, RankingOptions, ResponseFormat, Run, RunSpec, Tool, ToolChoice,
        ToolChoiceFunction, ToolOutput, ToolOutputs, TruncationStrategy,
    },
};

fn body<M: Document>(message: &M) -> Result<String, Violation> {
    json::encode_request(message, &["stream"])
        .map(|body| String::from_utf8(body).expect("JSON is UTF-8"))
}

fn extra(extra_json: &str) -> RunSpec {
    RunSpec {
        assistant_id: "asst_1".into(),
        extra_json: extra_json.into(),
        ..RunSpec::default()
    }
}

fn tools(tools: impl Into<Vec<Tool>>) -> RunSpec {
    RunSpec {
        tools: tools.into(),
        ..RunSpec::default()
    }
}

fn function(function: FunctionDefinition) -> Tool {
    Tool {
        function: Some(function),
        ..Tool::default()
    }
}

fn parameters(parameters_json: &str) -> RunSpec {
    tools([function(FunctionDefinition {
        parameters_json: parameters_json.into(),
        ..FunctionDefinition::default()
    })])
}

fn choice(tool_choice: ToolChoice) -> RunSpec {
    RunSpec {
        tool_choice: Some(tool_choice),
        ..RunSpec::default()
    }
}

fn content(content: MessageContent) -> RunSpec {
    let message = MessageInput {
        content: Some(content),
        ..MessageInput::default()
    };
    RunSpec {
        additional_messages: vec![message],
        ..RunSpec::default()
    }
}

#[test]
fn a_body_that_would_not_say_what_the_fields_say_is_refused_and_the_field_is_named() {
    let weather = || ToolChoiceFunction {
        name: "weather".into(),
        extra_json: String::new(),
    };
    let part = |extra_json: &str| InputContentPart {
        text: Some("a".into()),
        extra_json: extra_json.into(),
        ..Default::default()
    };
    let ranked = |score| FileSearchSettings {
        ranking_options: Some(RankingOptions {
            score_threshold: Some(score),
            ..RankingOptions::default()
        }),
        ..FileSearchSettings::default()
    };
    let cases = vec![
        // Not one object.
        (extra("5"), "extra_json", "one JSON object"),
        (extra("null"), "extra_json", "one JSON object"),
        (extra("[]"), "extra_json", "one JSON object"),
        (extra("\"a\""), "extra_json", "one JSON object"),
        (extra(" "), "extra_json", "one JSON object"),
        (extra("{"), "extra_json", "one JSON object"),
        (extra("{a:1}"), "extra_json", "one JSON object"),
        (extra("{\"a\":1e}"), "extra_json", "one JSON object"),
        (extra("{\"a\":1,}"), "extra_json", "one JSON object"),
        (extra("{\"a\":01}"), "extra_json", "one JSON object"),
        (extra("{\"a\":\"\n\"}"), "extra_json", "one JSON object"),
        (extra("\u{c}{}"), "extra_json", "one JSON object"),
        (extra("\u{feff}{}"), "extra_json", "one JSON object"),
        (
            extra(&format!("{{\"a\":{}{}}}", "[".repeat(128), "]".repeat(128))),
            "extra_json",
            "nested too deeply",
        ),
        // Injection.
        (
            extra("{} , \"stream\":true"),
            "extra_json",
            "one JSON object",
        ),
        (
            extra("{},\"stream\":true,{}"),
            "extra_json",
            "one JSON object",
        ),
        (extra("{}}"), "extra_json", "one JSON object"),
        (extra("{} {}"), "extra_json", "one JSON object"),
        (extra("}, {"), "extra_json", "one JSON object"),
        (extra("\"stream\":true"), "extra_json", "one JSON object"),
        // What the gateway owns.
        (
            extra("{\"stream\":true}"),
            "extra_json",
            "the gateway sets it",
        ),
        (
            extra("{\"stream\":null}"),
            "extra_json",
            "the gateway sets it",
        ),
        (
            extra("{\"a\":1, \"str\\u0065am\" : true}"),
            "extra_json",
            "the gateway sets it",
        ),
        // What a field says too.
        (
            extra("{\"assistant_id\":\"asst_2\"}"),
            "extra_json",
            "\"assistant_id\", which is also set as a field",
        ),
        (
            extra("{\"\\u0061ssistant_id\":\"asst_1\"}"),
            "extra_json",
            "also set as a field",
        ),
        (
            extra("{\"model\":1,\"model\":2,\"assistant_id\":null}"),
            "extra_json",
            "also set as a field",
        ),
        (
            tools([
                Tool::default(),
                function(FunctionDefinition {
                    name: "a".into(),
                    extra_json: "{\"name\":\"b\"}".into(),
                    ..FunctionDefinition::default()
                }),
            ]),
            "tools[1].function.extra_json",
            "also set as a field",
        ),
        (
            tools([Tool {
                r#type: 1,
                extra_json: "{\"type\":null}".into(),
                ..Tool::default()
            }]),
            "tools[0].extra_json",
            "also set",
        ),
        (
            tools([Tool {
                extra_json: "[]".into(),
                ..Tool::default()
            }]),
            "tools[0].extra_json",
            "one JSON object",
        ),
        // JSON text that is none.
        (
            parameters("{"),
            "tools[0].function.parameters_json",
            "one JSON value",
        ),
        (
            parameters(" "),
            "tools[0].function.parameters_json",
            "one JSON value",
        ),
        (
            parameters("1 2"),
            "tools[0].function.parameters_json",
            "one JSON value",
        ),
        (
            parameters("{} , \"stream\":true"),
            "tools[0].function.parameters_json",
            "one JSON value",
        ),
        (
            parameters("{}}],\"stream\":true,\"x\":[{\"y\":{}"),
            "tools[0].function.parameters_json",
            "one JSON value",
        ),
        (
            RunSpec {
                response_format: Some(ResponseFormat {
                    json_schema: Some(JsonSchemaFormat {
                        schema_json: "{'a':1}".into(),
                        ..JsonSchemaFormat::default()
                    }),
                    ..ResponseFormat::default()
                }),
                ..RunSpec::default()
            },
            "response_format.json_schema.schema_json",
            "one JSON value",
        ),
        // Numbers that have no JSON.
        (
            tools([
                Tool::default(),
                Tool {
                    r#type: 99,
                    ..Tool::default()
                },
            ]),
            "tools[1].type",
            "99",
        ),
        (
            choice(ToolChoice {
                mode: -1,
                ..ToolChoice::default()
            }),
            "tool_choice.mode",
            "-1",
        ),
        (
            choice(ToolChoice {
                r#type: 99,
                ..ToolChoice::default()
            }),
            "tool_choice.type",
            "99",
        ),
        (
            RunSpec {
                temperature: Some(f64::NAN),
                ..RunSpec::default()
            },
            "temperature",
            "finite",
        ),
        (
            RunSpec {
                top_p: Some(f64::NEG_INFINITY),
                ..RunSpec::default()
            },
            "top_p",
            "finite",
        ),
        (
            tools([Tool {
                file_search: Some(ranked(f64::INFINITY)),
                ..Tool::default()
            }]),
            "tools[0].file_search.ranking_options.score_threshold",
            "finite",
        ),
        // Two forms at once.
        (
            choice(ToolChoice {
                mode: 2,
                function: Some(weather()),
                ..ToolChoice::default()
            }),
            "tool_choice.mode",
            "excludes",
        ),
        (
            choice(ToolChoice {
                mode: 2,
                r#type: 1,
                ..ToolChoice::default()
            }),
            "tool_choice.mode",
            "excludes",
        ),
        (
            choice(ToolChoice {
                mode: 2,
                extra_json: "{}".into(),
                ..ToolChoice::default()
            }),
            "tool_choice.mode",
            "excludes",
        ),
        (
            content(MessageContent {
                text: Some(String::new()),
                parts: vec![part("")],
            }),
            "additional_messages[0].content.text",
            "excludes",
        ),
        (
            content(MessageContent {
                text: None,
                parts: vec![part(""), part("{\"text\":\"b\"}")],
            }),
            "additional_messages[0].content.parts[1].extra_json",
            "also set as a field",
        ),
    ];
    for (spec, field, description) in cases {
        let violation = body(&spec).expect_err(&format!("{spec:?} is sent"));
        assert_eq!(violation.field, field, "{spec:?}: {violation}");
        assert!(
            violation.description.contains(description),
            "{spec:?}: {violation}"
        );
    }
}

#[test]
fn a_body_is_its_fields_and_then_what_extra_json_adds() {
    let spec = |spec: RunSpec, expected: &str| {
        assert_eq!(body(&spec).as_deref(), Ok(expected), "{spec:?}");
    };
    spec(RunSpec::default(), "{}");
    spec(extra(" { } "), r#"{"assistant_id":"asst_1"}"#);
    spec(
        extra("{\"metadata\":{},\"model\":null,\"made_up\":1e400}"),
        r#"{"assistant_id":"asst_1","metadata":{},"model":null,"made_up":1e400}"#,
    );
    spec(
        RunSpec {
            extra_json: "{\"\":[]}".into(),
            ..RunSpec::default()
        },
        r#"{"":[]}"#,
    );
    // What is owned is owned at the top alone.
    spec(
        tools([Tool {
            r#type: 1,
            extra_json: "{\"stream\":1}".into(),
            ..Tool::default()
        }]),
        r#"{"tools":[{"type":"code_interpreter","stream":1}]}"#,
    );
    spec(
        parameters(" {\"b\":1.0, \"a\":9007199254740993} "),
        r#"{"tools":[{"type":"function","function":{"parameters":{"b":1.0, "a":9007199254740993}}}]}"#,
    );
    spec(
        RunSpec {
            instructions: Some(String::new()),
            temperature: Some(0.0),
            ..RunSpec::default()
        },
        r#"{"instructions":"","temperature":0.0}"#,
    );
    let outputs = ToolOutputs {
        tool_outputs: vec![ToolOutput {
            tool_call_id: "call_1".into(),
            output: Some("\u{1}\"é\\".into()),
            ..ToolOutput::default()
        }],
        ..ToolOutputs::default()
    };
    assert_eq!(
        body(&outputs).as_deref(),
        Ok(r#"{"tool_outputs":[{"tool_call_id":"call_1","output":"\u0001\"é\\"}]}"#)
    );
}

#[test]
fn a_missing_type_is_inferred_when_exactly_one_payload_is_set() {
    let spec = |spec: RunSpec, expected: &str| {
        assert_eq!(body(&spec).as_deref(), Ok(expected), "{spec:?}");
    };
    let function = || Some(FunctionDefinition::default());
    let search = || Some(FileSearchSettings::default());
    spec(
        tools([Tool {
            function: function(),
            ..Tool::default()
        }]),
        r#"{"tools":[{"type":"function","function":{}}]}"#,
    );
    spec(
        tools([Tool {
            file_search: search(),
            ..Tool::default()
        }]),
        r#"{"tools":[{"type":"file_search","file_search":{}}]}"#,
    );
    spec(
        tools([Tool {
            file_search: search(),
            function: function(),
            ..Tool::default()
        }]),
        r#"{"tools":[{"function":{},"file_search":{}}]}"#,
    );
    spec(tools([Tool::default()]), r#"{"tools":[{}]}"#);
    // A type that is set stays, and so does one that only extra_json can say.
    spec(
        tools([Tool {
            r#type: 1,
            function: function(),
            ..Tool::default()
        }]),
        r#"{"tools":[{"type":"code_interpreter","function":{}}]}"#,
    );
    spec(
        tools([Tool {
            function: function(),
            extra_json: r#"{"type":"made_up"}"#.into(),
            ..Tool::default()
        }]),
        r#"{"tools":[{"function":{},"type":"made_up"}]}"#,
    );
    let truncation = TruncationStrategy {
        last_messages: Some(3),
        ..TruncationStrategy::default()
    };
    spec(
        RunSpec {
            truncation_strategy: Some(truncation),
            ..RunSpec::default()
        },
        r#"{"truncation_strategy":{"type":"last_messages","last_messages":3}}"#,
    );
    spec(
        choice(ToolChoice {
            function: Some(ToolChoiceFunction::default()),
            ..ToolChoice::default()
        }),
        r#"{"tool_choice":{"type":"function","function":{}}}"#,
    );
    let part = InputContentPart {
        text: Some("a".into()),
        ..InputContentPart::default()
    };
    spec(
        content(MessageContent {
            text: None,
            parts: vec![part],
        }),
        r#"{"additional_messages":[{"content":[{"type":"text","text":"a"}]}]}"#,
    );
    // In documents nothing is inferred: they are written as they are.
    let tool = Tool {
        function: function(),
        ..Tool::default()
    };
    assert_eq!(
        json::encode(&tool).as_deref(),
        Ok(&br#"{"function":{}}"#[..])
    );
}

#[test]
fn bare_forms_are_written_bare() {
    let spec = |spec: RunSpec, expected: &str| {
        assert_eq!(body(&spec).as_deref(), Ok(expected), "{spec:?}");
    };
    spec(
        choice(ToolChoice {
            mode: 3,
            ..ToolChoice::default()
        }),
        r#"{"tool_choice":"required"}"#,
    );
    spec(choice(ToolChoice::default()), r#"{"tool_choice":{}}"#);
    spec(
        content(MessageContent {
            text: Some(String::new()),
            parts: vec![],
        }),
        r#"{"additional_messages":[{"content":""}]}"#,
    );
    spec(
        content(MessageContent::default()),
        r#"{"additional_messages":[{"content":[]}]}"#,
    );
}

#[test]
fn a_document_that_no_upstream_sent_is_refused_too() {
    let time = |seconds, nanos| Run {
        started_at: Some(prost_types::Timestamp { seconds, nanos }),
        ..Run::default()
    };
    let cases = [
        (time(0, 1), "started_at"),
        (time(253_402_300_800, 0), "started_at"),
        (
            Run {
                status: 99,
                ..Run::default()
            },
            "status",
        ),
        (
            Run {
                top_p: Some(f64::NAN),
                ..Run::default()
            },
            "top_p",
        ),
        (
            Run {
                extra_json: "{".into(),
                ..Run::default()
            },
            "extra_json",
        ),
        (
            Run {
                extra_json: "1 2".into(),
                ..Run::default()
            },
            "extra_json",
        ),
        (
            Run {
                tools: vec![Tool {
                    extra_json: "nul".into(),
                    ..Tool::default()
                }],
                ..Run::default()
            },
            "tools[0].extra_json",
        ),
    ];
    for (run, field) in cases {
        assert_eq!(
            json::encode(&run).map_err(|violation| violation.field),
            Err(field.to_owned()),
            "{run:?}"
        );
    }
}

#[test]
fn members_that_services_always_send_are_written_even_when_empty_but_not_twice() {
    let written = String::from_utf8(json::encode(&Run::default()).expect("it is written"))
        .expect("JSON is UTF-8");
    for member in [
        r#""tools":[]"#,
        r#""metadata":{}"#,
        r#""last_error":null"#,
        r#""started_at":null"#,
        r#""instructions":null"#,
    ] {
        assert!(written.contains(member), "{member} is not in {written}");
    }
    let unfit = Run {
        extra_json: r#"{"tools":5,"\u0075sage":[]}"#.into(),
        ..Run::default()
    };
    let written =
        String::from_utf8(json::encode(&unfit).expect("it is written")).expect("JSON is UTF-8");
    assert!(
        !written.contains("\"tools\":[]") && !written.contains("\"usage\""),
        "{written}"
    );
}
