//! What the events of a run say, in words.
//!
//! Must hold: of each message only that is shown which was not shown before. Where a text has a
//! hole, which nobody can fill in the middle, it is shown again as a whole, and that is said.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant, SystemTime},
};

use super::{printable::printable_line, screen::Screen};
use crate::{
    conversation::required_calls,
    json,
    v1::{
        ContentPart, ContentPartDelta, Gap, ImageFile, MessageDelta, RequiredToolCall, Run,
        RunError, RunEvent, RunEventType, RunStatus, RunStep, RunStepStatus, StepDetails,
        TextContent, ThreadMessage, ToolCall, Usage, run_event::Payload,
    },
};

/// The most characters of a tool call's arguments, or of an error, that are shown.
const MAX_TEXT: usize = 300;

/// The most characters of an id or a name that are shown.
const MAX_NAME: usize = 100;

/// Whose time is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timing {
    /// The command's, which made the run.
    Command,
    /// The run's, which somebody made before.
    Run,
}

/// What is known of the run, and what is on the screen of it.
pub(super) struct View {
    screen: Screen,
    timing: Timing,
    began: Instant,
    run: Run,
    /// What was said of the run's status; empty before anything was.
    status: String,
    steps: HashMap<String, (RunStepStatus, i64)>,
    /// What was shown of each message.
    messages: HashMap<String, String>,
    /// The message whose text grows.
    current: String,
}

impl View {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            screen: Screen::new(),
            timing,
            began: Instant::now(),
            run: Run::default(),
            status: String::new(),
            steps: HashMap::new(),
            messages: HashMap::new(),
            current: String::new(),
        }
    }

    /// The run's name is known before any event.
    pub(super) fn name_run(&mut self, thread_id: &str, run_id: &str) {
        thread_id.clone_into(&mut self.run.thread_id);
        run_id.clone_into(&mut self.run.id);
    }

    /// Thread and run, as a line may have them.
    pub(super) fn run_name(&self) -> Option<(String, String)> {
        let name = |id| printable_line(id, MAX_NAME);
        (!self.run.id.is_empty()).then(|| (name(&self.run.thread_id), name(&self.run.id)))
    }

    pub(super) fn status(&self) -> RunStatus {
        self.run.status()
    }

    /// The run was made and is not known to be over.
    pub(super) fn may_go_on(&self) -> bool {
        !self.run.id.is_empty() && !self.run.status().is_terminal()
    }

    /// A line of the program's own.
    pub(super) fn note(&mut self, line: &str) -> io::Result<()> {
        self.screen.note(line)
    }

    /// The time has gone on.
    pub(super) fn tick(&mut self) -> io::Result<()> {
        let steps = self.steps.len();
        let status = if self.status.is_empty() {
            "waiting"
        } else {
            &self.status
        };
        let line = format!(
            "{status} · {steps} {} · {}{}",
            if steps == 1 { "step" } else { "steps" },
            self.tokens()
                .map_or(String::new(), |all| format!("{all} tokens · ")),
            seconds(self.time()),
        );
        self.screen.status(&line)
    }

    /// Shows what an event says.
    pub(super) fn heed(&mut self, event: &RunEvent) -> io::Result<()> {
        match &event.payload {
            Some(Payload::Run(run)) => self.run(run)?,
            Some(Payload::RunStep(step)) => self.step(step)?,
            Some(Payload::MessageDelta(delta)) => self.delta(delta)?,
            Some(Payload::Message(message)) if is_whole(event) => self.message(message)?,
            Some(Payload::Gap(gap)) => self.gap(gap)?,
            Some(Payload::Unknown(unknown)) => {
                let name = printable_line(&unknown.name, MAX_NAME);
                self.screen
                    .note(&format!("an event that is not known: {name}"))?;
            }
            _ => {}
        }
        self.tick()
    }

    fn run(&mut self, run: &Run) -> io::Result<()> {
        if self.status.is_empty() {
            let model = printable_line(&run.model, MAX_NAME);
            let [thread, id] = [&run.thread_id, &run.id].map(|id| printable_line(id, MAX_NAME));
            self.screen
                .note(&format!("run {id} on thread {thread}, model {model}"))?;
        }
        self.run = run.clone();
        let status = run.status().as_str_name();
        let status = name_of(status, "RUN_STATUS_", &run.extra_json, "status");
        if status == self.status {
            return Ok(());
        }
        self.status = status;
        // The conclusion tells the last one.
        if run.status().is_terminal() {
            return Ok(());
        }
        self.screen.note(&format!("status {}", self.status))?;
        for (call, is_approval) in required_calls(run) {
            let id = printable_line(&call.id, MAX_NAME);
            let wants = if is_approval { " wants approval" } else { "" };
            let called = required(call);
            self.screen
                .note(&format!("tool call {id}{wants}: {called}"))?;
        }
        Ok(())
    }

    fn step(&mut self, step: &RunStep) -> io::Result<()> {
        let tokens = step.usage.as_ref().map_or(0, Usage::total_tokens);
        let now = (step.status(), tokens);
        let before = self.steps.insert(step.id.clone(), now);
        if before.is_some_and(|(status, _)| status == now.0) {
            return Ok(());
        }
        let (kind, status) = (step.r#type().as_str_name(), step.status().as_str_name());
        self.screen.note(&format!(
            "step {} {} {}",
            printable_line(&step.id, MAX_NAME),
            name_of(kind, "RUN_STEP_TYPE_", &step.extra_json, "type"),
            name_of(status, "RUN_STEP_STATUS_", &step.extra_json, "status"),
        ))?;
        if step.status() == RunStepStatus::Completed {
            for call in step.step_details.iter().flat_map(calls) {
                self.screen.note(&format!("  {call}"))?;
            }
        }
        let mut failures = step.last_error.iter().map(failure);
        failures.try_for_each(|failure| self.screen.note(&format!("  {failure}")))
    }

    fn delta(&mut self, delta: &MessageDelta) -> io::Result<()> {
        let parts = delta.delta.iter().flat_map(|delta| &delta.content);
        let text: String = parts.map(delta_text).collect();
        self.add(&delta.id, &text)
    }

    /// A message that is whole: what is missing of it.
    fn message(&mut self, message: &ThreadMessage) -> io::Result<()> {
        let text: String = message.content.iter().map(part_text).collect();
        let shown = self.messages.entry(message.id.clone()).or_default();
        if let Some(rest) = text.strip_prefix(shown.as_str()) {
            let rest = rest.to_owned();
            self.add(&message.id, &rest)?;
        } else {
            shown.clear();
            self.screen.end_line()?;
            self.screen
                .note("the text above has a hole; here is the whole of it")?;
            self.add(&message.id, &text)?;
        }
        self.screen.end_line()
    }

    fn add(&mut self, message: &str, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if self.current != message {
            self.screen.end_line()?;
            message.clone_into(&mut self.current);
        }
        self.messages
            .entry(message.to_owned())
            .or_default()
            .push_str(text);
        self.screen.text(text)
    }

    fn gap(&mut self, gap: &Gap) -> io::Result<()> {
        let (steps, messages) = (gap.run_step_ids.len(), gap.message_ids.len());
        self.screen.note(&match (steps, messages) {
            (0, 0) => "gap: something was missed".to_owned(),
            _ => format!("gap: missed the ends of {steps} steps and {messages} messages"),
        })
    }

    /// The last lines: how the run ended, and what it took.
    pub(super) fn conclude(&mut self) -> io::Result<()> {
        self.screen.end_line()?;
        let run = &self.run;
        let mut lines = Vec::new();
        lines.extend(run.last_error.as_ref().map(failure));
        let reason = run.incomplete_details.as_ref().map(|it| &it.reason);
        let reason = reason.map(|it| format!("reason: {}", printable_line(it, MAX_TEXT)));
        lines.extend(reason);
        let took = seconds(self.time());
        let used = run.usage.as_ref().map_or(String::new(), |usage| {
            let (read, written) = (usage.prompt_tokens(), usage.completion_tokens());
            format!(", {read} tokens read, {written} written")
        });
        lines.push(format!("{} after {took}{used}", self.status));
        if run.status() == RunStatus::RequiresAction {
            let mut calls = required_calls(run);
            let wanted = if calls.any(|(_, is_approval)| is_approval) {
                "approvals of tool calls"
            } else {
                "tool outputs"
            };
            let line = format!("it waits for {wanted}, which cannot be given here");
            lines.push(format!("{line}: SubmitToolOutputs gives them"));
        }
        lines.iter().try_for_each(|line| self.screen.note(line))
    }

    /// Takes the line of the status away.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.screen.close()
    }

    /// The run's tokens as far as they are known: before its end, those of its steps.
    fn tokens(&self) -> Option<i64> {
        let of_steps: i64 = self.steps.values().map(|(_, tokens)| tokens).sum();
        let of_run = self.run.usage.as_ref().and_then(|usage| usage.total_tokens);
        of_run.or((of_steps > 0).then_some(of_steps))
    }

    fn time(&self) -> Duration {
        let Some(created) = self.run.created_at.filter(|_| self.timing == Timing::Run) else {
            return self.began.elapsed();
        };
        let run = &self.run;
        let ended = run.completed_at.or(run.failed_at).or(run.cancelled_at);
        let ended = ended.and_then(|time| SystemTime::try_from(time).ok());
        let ended = ended.unwrap_or_else(SystemTime::now);
        let created = SystemTime::try_from(created).unwrap_or(ended);
        ended.duration_since(created).unwrap_or_default()
    }
}

fn is_whole(event: &RunEvent) -> bool {
    use RunEventType::{ThreadMessageCompleted, ThreadMessageIncomplete};
    matches!(
        event.r#type(),
        ThreadMessageCompleted | ThreadMessageIncomplete
    )
}

/// The REST API's name of a value of an enum: `member` of `extra_json`, if the contract does not
/// know it.
fn name_of(value: &str, prefix: &str, extra_json: &str, member: &str) -> String {
    json::text_member(extra_json.as_bytes(), member).map_or_else(
        || value.trim_start_matches(prefix).to_lowercase(),
        |name| printable_line(&name, MAX_NAME),
    )
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn failure(error: &RunError) -> String {
    let code = printable_line(&error.code, MAX_NAME);
    let message = printable_line(error.message(), MAX_TEXT);
    format!("error {code}: {message}")
}

fn called(name: &str, arguments: Option<&str>) -> String {
    let (name, arguments) = (
        printable_line(name, MAX_NAME),
        printable_line(arguments.unwrap_or_default(), MAX_TEXT),
    );
    format!("{name}({arguments})")
}

/// A call that the run waits for.
fn required(call: &RequiredToolCall) -> String {
    let kind = call.r#type().as_str_name();
    match &call.function {
        Some(function) => called(&function.name, function.arguments.as_deref()),
        None if call.name.is_empty() => name_of(kind, "TOOL_TYPE_", &call.extra_json, "type"),
        None => called(&call.name, call.arguments.as_deref()),
    }
}

/// The tool calls of a step that is done.
fn calls(details: &StepDetails) -> impl Iterator<Item = String> {
    details.tool_calls.iter().map(|call| {
        if let Some((name, arguments, output)) = named(call) {
            let called = called(name, arguments);
            match output {
                Some(output) => format!("{called} gave {}", printable_line(output, MAX_TEXT)),
                None => called,
            }
        } else if let Some(code) = &call.code_interpreter {
            called("code_interpreter", code.input.as_deref())
        } else {
            let kind = call.r#type().as_str_name();
            name_of(kind, "TOOL_TYPE_", &call.extra_json, "type")
        }
    })
}

/// Name, arguments and output of a call of a function, of an MCP server's tool or of a REST API.
fn named(call: &ToolCall) -> Option<(&str, Option<&str>, Option<&str>)> {
    if let Some(function) = &call.function {
        let (arguments, output) = (function.arguments.as_deref(), function.output.as_deref());
        return Some((&function.name, arguments, output));
    }
    if !call.name.is_empty() {
        return Some((
            &call.name,
            call.arguments.as_deref(),
            call.output.as_deref(),
        ));
    }
    let part = |name| call.openapi.get(name).map(String::as_str);
    Some((part("name")?, part("arguments"), part("output")))
}

fn delta_text(part: &ContentPartDelta) -> String {
    content(part.text.as_ref(), part.image_file.as_ref(), part.refusal())
}

fn part_text(part: &ContentPart) -> String {
    content(part.text.as_ref(), part.image_file.as_ref(), part.refusal())
}

fn content(text: Option<&TextContent>, image: Option<&ImageFile>, refusal: &str) -> String {
    match (text, image) {
        (Some(text), _) => text.value().to_owned(),
        (None, Some(image)) => format!("[image {}]", image.file_id),
        (None, None) => refusal.to_owned(),
    }
}
