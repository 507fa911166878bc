//! The request bodies that the API accepts, after its schema.
//!
//! Must hold: a body that passes its table fits into its message whole, so that the handlers need
//! not look for anything that the codec could not place. `stream` is in the tables and not in the
//! messages: the contract leaves it to whoever sends the body.

use super::shape::{Member, Shape};

const fn optional(name: &'static str, shape: &'static Shape) -> Member {
    Member {
        name,
        shape,
        required: false,
    }
}

const fn required(name: &'static str, shape: &'static Shape) -> Member {
    Member {
        name,
        shape,
        required: true,
    }
}

const ID: Shape = Shape::Text(1..=256);
const TEXT: Shape = Shape::Text(0..=usize::MAX);
const INSTRUCTIONS: Shape = Shape::Text(0..=256_000);
const TEMPERATURE: Shape = Shape::Number(0.0..=2.0);
const TOP_P: Shape = Shape::Number(0.0..=1.0);
const TOKENS: Shape = Shape::Integer(256..=i64::MAX);
const EFFORT: Shape = Shape::OneOf(&["none", "minimal", "low", "medium", "high", "xhigh", "max"]);
const DETAIL: Shape = Shape::OneOf(&["auto", "low", "high"]);

const RANKING: Shape = Shape::Object(&[
    optional("ranker", &Shape::OneOf(&["auto", "default_2024_08_21"])),
    required("score_threshold", &TOP_P),
    optional(
        "hybrid_search",
        &Shape::Object(&[
            optional("embedding_weight", &TOP_P),
            optional("text_weight", &TOP_P),
        ]),
    ),
]);
const FILE_SEARCH: Shape = Shape::Object(&[
    optional("max_num_results", &Shape::Integer(1..=50)),
    optional("ranking_options", &RANKING),
]);
const FUNCTION: Shape = Shape::Object(&[
    required("name", &Shape::Name),
    optional("description", &TEXT),
    optional("parameters", &Shape::Open),
    optional("strict", &Shape::Flag),
]);
const TOOL: Shape = Shape::Tagged(&[
    ("code_interpreter", &[]),
    ("file_search", &[optional("file_search", &FILE_SEARCH)]),
    ("function", &[required("function", &FUNCTION)]),
]);
const TOOL_BY_TYPE: Shape = Shape::Tagged(&[("code_interpreter", &[]), ("file_search", &[])]);
const TOOL_CHOICE: Shape = Shape::Or(
    &Shape::OneOf(&["none", "auto", "required"]),
    &Shape::Tagged(&[
        (
            "function",
            &[required(
                "function",
                &Shape::Object(&[required("name", &Shape::Name)]),
            )],
        ),
        ("code_interpreter", &[]),
        ("file_search", &[]),
    ]),
);
const RESPONSE_FORMAT: Shape = Shape::Or(
    &Shape::OneOf(&["auto"]),
    &Shape::Tagged(&[
        ("text", &[]),
        ("json_object", &[]),
        (
            "json_schema",
            &[required(
                "json_schema",
                &Shape::Object(&[
                    required("name", &Shape::Name),
                    optional("description", &TEXT),
                    optional("schema", &Shape::Open),
                    optional("strict", &Shape::Flag),
                ]),
            )],
        ),
    ]),
);
const TRUNCATION: Shape = Shape::Object(&[
    required("type", &Shape::OneOf(&["auto", "last_messages"])),
    optional("last_messages", &Shape::Integer(1..=i64::MAX)),
]);
const CHUNKING: Shape = Shape::Tagged(&[
    ("auto", &[]),
    (
        "static",
        &[required(
            "static",
            &Shape::Object(&[
                required("max_chunk_size_tokens", &Shape::Integer(100..=4096)),
                required("chunk_overlap_tokens", &Shape::Integer(0..=2048)),
            ]),
        )],
    ),
]);
const TOOL_RESOURCES: Shape = Shape::Object(&[
    optional(
        "code_interpreter",
        &Shape::Object(&[optional("file_ids", &Shape::List(0..=20, &ID))]),
    ),
    optional(
        "file_search",
        &Shape::Object(&[
            optional("vector_store_ids", &Shape::List(0..=1, &ID)),
            optional(
                "vector_stores",
                &Shape::List(
                    0..=1,
                    &Shape::Object(&[
                        optional("file_ids", &Shape::List(0..=10_000, &ID)),
                        optional("chunking_strategy", &CHUNKING),
                        optional("metadata", &Shape::Metadata),
                    ]),
                ),
            ),
        ]),
    ),
]);
const CONTENT_PART: Shape = Shape::Tagged(&[
    ("text", &[required("text", &TEXT)]),
    (
        "image_file",
        &[required(
            "image_file",
            &Shape::Object(&[required("file_id", &ID), optional("detail", &DETAIL)]),
        )],
    ),
    (
        "image_url",
        &[required(
            "image_url",
            &Shape::Object(&[
                required("url", &Shape::Text(1..=1_000_000)),
                optional("detail", &DETAIL),
            ]),
        )],
    ),
]);
const PARTS: Shape = Shape::List(1..=500, &CONTENT_PART);
const ATTACHMENT: Shape = Shape::Object(&[
    required("file_id", &ID),
    optional("tools", &Shape::List(0..=20, &TOOL_BY_TYPE)),
]);

/// A message to be made.
pub(super) const MESSAGE: Shape = Shape::Object(&[
    required("role", &Shape::OneOf(&["user", "assistant"])),
    required("content", &Shape::Or(&Shape::Text(1..=256_000), &PARTS)),
    optional("attachments", &Shape::List(0..=100, &ATTACHMENT)),
    optional("metadata", &Shape::Metadata),
]);

/// A change of a message or of a run.
pub(super) const UPDATE: Shape = Shape::Object(&[optional("metadata", &Shape::Metadata)]);

/// A thread to be made.
pub(super) const THREAD: Shape = Shape::Object(&[
    optional("messages", &Shape::List(0..=10_000, &MESSAGE)),
    optional("tool_resources", &TOOL_RESOURCES),
    optional("metadata", &Shape::Metadata),
]);

/// A change of a thread.
pub(super) const THREAD_UPDATE: Shape = Shape::Object(&[
    optional("tool_resources", &TOOL_RESOURCES),
    optional("metadata", &Shape::Metadata),
]);

/// An assistant to be made, which needs a model, or a change of one.
pub(super) const ASSISTANT: Shape = Shape::Object(&[
    optional("model", &ID),
    optional("name", &Shape::Text(0..=256)),
    optional("description", &Shape::Text(0..=512)),
    optional("instructions", &INSTRUCTIONS),
    optional("reasoning_effort", &EFFORT),
    optional("tools", &Shape::List(0..=128, &TOOL)),
    optional("tool_resources", &TOOL_RESOURCES),
    optional("metadata", &Shape::Metadata),
    optional("temperature", &TEMPERATURE),
    optional("top_p", &TOP_P),
    optional("response_format", &RESPONSE_FORMAT),
]);

/// A run to be made.
pub(super) const RUN: Shape = Shape::Object(&[
    required("assistant_id", &ID),
    optional("model", &ID),
    optional("reasoning_effort", &EFFORT),
    optional("instructions", &INSTRUCTIONS),
    optional("additional_instructions", &INSTRUCTIONS),
    optional("additional_messages", &Shape::List(0..=10_000, &MESSAGE)),
    optional("tools", &Shape::List(0..=20, &TOOL)),
    optional("metadata", &Shape::Metadata),
    optional("temperature", &TEMPERATURE),
    optional("top_p", &TOP_P),
    optional("max_prompt_tokens", &TOKENS),
    optional("max_completion_tokens", &TOKENS),
    optional("truncation_strategy", &TRUNCATION),
    optional("tool_choice", &TOOL_CHOICE),
    optional("parallel_tool_calls", &Shape::Flag),
    optional("response_format", &RESPONSE_FORMAT),
    optional("stream", &Shape::Flag),
]);

/// A thread and a run on it, to be made.
pub(super) const THREAD_AND_RUN: Shape = Shape::Object(&[
    required("assistant_id", &ID),
    optional("thread", &THREAD),
    optional("model", &ID),
    optional("instructions", &INSTRUCTIONS),
    optional("tools", &Shape::List(0..=20, &TOOL)),
    optional("tool_resources", &TOOL_RESOURCES),
    optional("metadata", &Shape::Metadata),
    optional("temperature", &TEMPERATURE),
    optional("top_p", &TOP_P),
    optional("max_prompt_tokens", &TOKENS),
    optional("max_completion_tokens", &TOKENS),
    optional("truncation_strategy", &TRUNCATION),
    optional("tool_choice", &TOOL_CHOICE),
    optional("parallel_tool_calls", &Shape::Flag),
    optional("response_format", &RESPONSE_FORMAT),
    optional("stream", &Shape::Flag),
]);

/// Outputs of tool calls.
pub(super) const TOOL_OUTPUTS: Shape = Shape::Object(&[
    required(
        "tool_outputs",
        &Shape::List(
            0..=1_000,
            &Shape::Object(&[required("tool_call_id", &ID), optional("output", &TEXT)]),
        ),
    ),
    optional("stream", &Shape::Flag),
]);
