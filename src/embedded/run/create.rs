//! A run is made, of what its caller and its assistant say.

use std::time::Duration;

use crate::{
    embedded::{
        clock::stamp,
        error::Error,
        id,
        model::{Model, Unsupported},
        rows::{Change, Progress, Row, Rows},
        steering::Steering,
        thread,
    },
    v1::{
        Assistant, MessageRole, ResponseFormat, ResponseFormatMode, Run, RunSpec, RunStatus,
        ToolChoice, ToolChoiceMode, ToolResources, TruncationStrategy, TruncationStrategyType,
    },
};

/// How long a run may take, outputs of its calls included.
const LIFETIME: Duration = Duration::from_secs(600);

/// A run is made on a thread that has no active one; the run, and all that changes by it.
pub(in crate::embedded) fn create(
    rows: &Rows,
    assistant: &Assistant,
    spec: RunSpec,
    tool_resources: Option<ToolResources>,
    model: &dyn Model,
    now: Duration,
) -> Result<(Run, Vec<Change>), Error> {
    let thread_id = &rows.resource.id;
    if let Some(active) = rows.active_run() {
        let (thread, run) = (thread_id, &active.resource.id);
        return Err(Error::conflict(format!(
            "Thread {thread} already has an active run {run}."
        )));
    }
    let steering = Steering::of(&spec.metadata)?;
    if let Some(status) = steering.refusal {
        return Err(Error::refused(status));
    }
    let additional = spec.additional_instructions.clone();
    let instructions = [
        spec.instructions.clone().or(assistant.instructions.clone()),
        additional,
    ];
    let instructions = instructions
        .into_iter()
        .flatten()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join("\n");
    let added = spec.additional_messages.into_iter();
    let added: Vec<_> = added
        .map(|input| thread::message(thread_id, input, now))
        .collect();
    let messages: Vec<_> = rows.messages.iter().chain(&added).collect();
    let user = messages
        .iter()
        .any(|message| message.role() == MessageRole::User);
    if !user && instructions.is_empty() {
        let message =
            "Run creation requires a Thread with a user message or an assistant with instructions.";
        return Err(Error::conflict(message).with_code("invalid_thread"));
    }
    let run = Run {
        id: id::new("run"),
        object: "thread.run".to_owned(),
        status: RunStatus::Queued.into(),
        created_at: Some(stamp(now)),
        thread_id: thread_id.clone(),
        assistant_id: spec.assistant_id,
        expires_at: Some(stamp(now + LIFETIME)),
        model: if spec.model.is_empty() {
            assistant.model.clone()
        } else {
            spec.model
        },
        instructions: Some(instructions),
        tools: if spec.tools.is_empty() {
            assistant.tools.clone()
        } else {
            spec.tools
        },
        tool_resources: tool_resources.or(assistant.tool_resources.clone()),
        metadata: spec.metadata,
        temperature: spec.temperature.or(assistant.temperature).or(Some(1.0)),
        top_p: spec.top_p.or(assistant.top_p).or(Some(1.0)),
        max_prompt_tokens: spec.max_prompt_tokens,
        max_completion_tokens: spec.max_completion_tokens,
        truncation_strategy: Some(
            spec.truncation_strategy
                .unwrap_or_else(|| TruncationStrategy {
                    r#type: TruncationStrategyType::Auto.into(),
                    ..TruncationStrategy::default()
                }),
        ),
        tool_choice: Some(spec.tool_choice.unwrap_or_else(|| ToolChoice {
            mode: ToolChoiceMode::Auto.into(),
            ..ToolChoice::default()
        })),
        parallel_tool_calls: spec.parallel_tool_calls.or(Some(true)),
        response_format: spec
            .response_format
            .or_else(|| assistant.response_format.clone())
            .or_else(|| {
                Some(ResponseFormat {
                    mode: ResponseFormatMode::Auto.into(),
                    ..ResponseFormat::default()
                })
            }),
        reasoning_effort: if spec.reasoning_effort.is_empty() {
            assistant.reasoning_effort.clone()
        } else {
            spec.reasoning_effort
        },
        ..Run::default()
    };
    if let Some(Unsupported { param, message }) = model.unsupported(&run, &messages) {
        return Err(Error::parameter(&param, "unsupported_parameter", message));
    }
    let progress = Progress {
        due: now + steering.step,
        ..Progress::default()
    };
    let row = Row::Run(Box::new(run.clone()));
    let mut changes: Vec<_> = added
        .into_iter()
        .map(Row::Message)
        .map(Row::without_event)
        .collect();
    changes.extend([
        row.clone().with_event("thread.run.created"),
        row.with_event("thread.run.queued"),
        Row::Progress(progress).without_event(),
    ]);
    Ok((run, changes))
}
