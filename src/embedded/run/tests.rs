//! What happens to a thread and its run, and what the last of it changes: `event: row`, in order, or
//! why it is refused.

use super::*;
use crate::{
    embedded::{built_in, rows::Rows, thread},
    v1::{
        Assistant, MessageContent, MessageInput, MessageRole, RunSpec, ThreadSpec, ToolCall, Usage,
    },
};

const CASES: &str = r#"
make
    thread.run.created: run Queued
    thread.run.queued: run Queued
    -: due in 15ms, reply 0+0, spent 0+0

make So?
    -: message Completed "So?"
    thread.run.created: run Queued
    thread.run.queued: run Queued
    -: due in 15ms, reply 0+0, spent 0+0

make / make
    Thread THREAD already has an active run RUN.

say So?
    -: message Completed "So?"

make / say So?
    Can't add messages to THREAD while a run RUN is active.

make / begin
    thread.run.in_progress: run InProgress
    -: due in 15ms, reply 0+0, spent 0+0

make / begin / text Hel
    thread.run.step.created: step writes InProgress expires
    thread.run.step.in_progress: step writes InProgress expires
    thread.message.created: message InProgress ""
    thread.message.in_progress: message InProgress ""
    thread.message.delta: message[0] += "Hel"
    -: due in 0ns, reply 0+0, spent 0+0

make / begin / text Hel / text lo
    thread.message.delta: message[0] += "lo"
    -: due in 0ns, reply 0+0, spent 0+0

make / begin / text Hel / refuse No.
    thread.message.delta: message[1] += "No."
    -: due in 0ns, reply 0+0, spent 0+0

make / begin / text Hel / delete / text lo
    thread.message.delta: message[0] += "lo"
    -: due in 0ns, reply 0+0, spent 0+0

make / begin / call a
    thread.run.step.created: step calls InProgress expires
    thread.run.step.in_progress: step calls InProgress expires
    thread.run.step.delta: step[0] += a: f()
    -: due in 0ns, reply 0+0, spent 0+0

make / begin / text Hel / call a
    thread.message.completed: message Completed "Hel"
    thread.run.step.completed: step writes Completed 0+0 expires
    thread.run.step.created: step calls InProgress expires
    thread.run.step.in_progress: step calls InProgress expires
    thread.run.step.delta: step[0] += a: f()
    -: due in 0ns, reply 0+0, spent 0+0

make / begin / call a / call b
    thread.run.step.delta: step[1] += b: f()
    -: due in 0ns, reply 0+0, spent 0+0

make / begin / call a / arguments {
    thread.run.step.delta: step[0] += : ({)
    -: due in 0ns, reply 0+0, spent 0+0

make / begin / text Hel / arguments {
    -: due in 0ns, reply 0+0, spent 0+0

make / begin / text Hel / end
    thread.message.completed: message Completed "Hel"
    thread.run.step.completed: step writes Completed 3+2 expires
    -: step writes Completed 3+2
    thread.run.completed: run Completed 3+2
    -: due in 0ns, reply 3+2, spent 3+2

make / begin / call a / arguments {} / end
    thread.run.requires_action: run RequiresAction a
    -: due in 0ns, reply 3+2, spent 3+2

make / begin / end
    thread.run.completed: run Completed 3+2
    -: due in 0ns, reply 3+2, spent 3+2

make / begin / text Hel / delete / end
    thread.run.step.completed: step writes Completed 3+2 expires
    -: step writes Completed 3+2
    thread.run.completed: run Completed 3+2
    -: due in 0ns, reply 3+2, spent 3+2

make / begin / text Hel / length
    thread.message.incomplete: message Incomplete "Hel" max_tokens
    thread.run.step.completed: step writes Completed 3+2 expires
    -: step writes Completed 3+2
    thread.run.incomplete: run Incomplete 3+2 max_completion_tokens
    -: due in 0ns, reply 3+2, spent 3+2

make / begin / text Hel / filter
    thread.message.incomplete: message Incomplete "Hel" content_filter
    thread.run.step.completed: step writes Completed 3+2 expires
    -: step writes Completed 3+2
    thread.run.incomplete: run Incomplete 3+2
    -: due in 0ns, reply 3+2, spent 3+2

make / begin / fail
    thread.run.failed: run Failed 0+0 rate_limit_exceeded
    -: due in 0ns, reply 0+0, spent 0+0

make / begin / text Hel / fail
    thread.message.incomplete: message Incomplete "Hel" run_failed
    thread.run.step.failed: step writes Failed 0+0 expires
    -: step writes Failed 0+0
    thread.run.failed: run Failed 0+0 rate_limit_exceeded
    -: due in 0ns, reply 0+0, spent 0+0

make / begin / call a / arguments {} / end / output a
    thread.run.step.completed: step calls Completed a: f({}) = 22 3+2 expires
    thread.run.queued: run Queued
    -: due in 15ms, reply 0+0, spent 3+2

make / begin / call a / arguments {} / end / output b
    Expected tool outputs for call_ids ['a'], got ['b']

make / begin / call a / output a
    Runs in status "in_progress" do not accept tool outputs.

make / begin / text Hel / cancel
    thread.run.cancelling: run Cancelling
    -: due in 15ms, reply 0+0, spent 0+0

make / cancel / cancel
    Cannot cancel run with status 'cancelling'.

make / begin / end / cancel
    Cannot cancel run with status 'completed'.

make / begin / text Hel / cancel / cancelled
    thread.message.incomplete: message Incomplete "Hel" run_cancelled
    thread.run.step.cancelled: step writes Cancelled 0+0 expires
    -: step writes Cancelled 0+0
    thread.run.cancelled: run Cancelled 0+0

make / begin / call a / arguments {} / end / expire
    thread.run.step.expired: step calls Expired a: f({}) 3+2 expires
    -: step calls Expired a: f({}) 3+2
    thread.run.expired: run Expired 3+2
"#;

const NOW: Duration = Duration::from_secs(1_000);

#[test]
fn given_rows_what_happens_changes_these_rows_and_has_these_events() {
    for case in CASES.trim().split("\n\n") {
        let (story, expected) = case.split_once('\n').expect("changes");
        let (mut rows, mut changes) = (Rows::default(), Ok(thread_on_which("Hi")));
        for command in story.split(" / ") {
            for change in changes.unwrap_or_default() {
                rows.put(change.row);
            }
            changes = changes_by(command, &rows);
        }
        let changes = match &changes {
            Ok(changes) => changes.iter().map(line).collect(),
            Err(error) => vec![without_ids(
                error.error.message.as_deref().unwrap_or_default(),
                &rows,
            )],
        };
        let expected: Vec<_> = expected.lines().map(str::trim).collect();
        assert_eq!(changes, expected, "{story}");
    }
}

/// The changes that a command causes.
fn changes_by(command: &str, rows: &Rows) -> Result<Vec<Change>, Error> {
    let (name, text) = command.split_once(' ').unwrap_or((command, ""));
    let run = || rows.runs.last().expect("a run");
    let take = |piece| Ok(run().take(piece, &rows.messages, NOW));
    let finish = |ending| Ok(run().end(ending, &rows.messages, NOW));
    let (id, owned) = (text.to_owned(), text.to_owned());
    let cost = Tokens {
        prompt: 3,
        completion: 2,
        ..Tokens::default()
    };
    match name {
        "say" => {
            let message = thread::add_message(rows, says(text), NOW)?;
            Ok(vec![Row::Message(message).without_event()])
        }
        "make" => {
            let spec = RunSpec {
                additional_messages: (!text.is_empty()).then(|| says(text)).into_iter().collect(),
                ..RunSpec::default()
            };
            let made = create(rows, &Assistant::default(), spec, None, &*built_in(), NOW);
            made.map(|(_, changes)| changes)
        }
        "begin" => Ok(run().begin(NOW)),
        "text" => take(ModelChunk::Text(owned)),
        "refuse" => take(ModelChunk::Refusal(owned)),
        "call" => take(ModelChunk::Call {
            id,
            name: "f".to_owned(),
        }),
        "arguments" => take(ModelChunk::Arguments {
            call: 0,
            text: owned,
        }),
        "end" => take(ModelChunk::End(End::Whole, cost)),
        "length" => take(ModelChunk::End(End::CompletionTokens, cost)),
        "filter" => take(ModelChunk::End(End::Filtered, cost)),
        "fail" => take(ModelChunk::failed("rate_limit_exceeded", "Later.")),
        "output" => {
            let output = ToolOutput {
                tool_call_id: id,
                output: Some("22".to_owned()),
                ..ToolOutput::default()
            };
            run().submit(vec![output], NOW)
        }
        "cancel" => run().cancel(NOW),
        "cancelled" => finish(Ending::Cancelled),
        "expire" => finish(Ending::Expired),
        "delete" => {
            let written = rows.messages.last().expect("a message").id.clone();
            Ok(vec![Row::DeletedMessage(written).without_event()])
        }
        other => panic!("{other}"),
    }
}

fn says(text: &str) -> MessageInput {
    MessageInput {
        role: MessageRole::User.into(),
        content: Some(MessageContent {
            text: Some(text.to_owned()),
            ..MessageContent::default()
        }),
        ..MessageInput::default()
    }
}

fn thread_on_which(text: &str) -> Vec<Change> {
    let spec = ThreadSpec {
        messages: vec![says(text)],
        ..ThreadSpec::default()
    };
    thread::create(spec, NOW)
}

fn without_ids(text: &str, rows: &Rows) -> String {
    let run = &rows.runs.last().expect("a run").resource.id;
    text.replace(&rows.resource.id, "THREAD")
        .replace(run, "RUN")
}

fn line(change: &Change) -> String {
    let event = change.event.unwrap_or("-");
    let words = words(&change.row).into_iter();
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    format!("{event}: {}", words.join(" "))
}

fn words(row: &Row) -> Vec<String> {
    match row {
        Row::Thread(_) => vec!["thread".to_owned()],
        Row::DeletedMessage(_) => vec!["deleted message".to_owned()],
        Row::Message(message) => {
            let text = message.content.iter().flat_map(|part| &part.text);
            let text: String = text.filter_map(|text| text.value.clone()).collect();
            let incomplete = message.incomplete_details.as_ref();
            let incomplete = incomplete.map(|details| details.reason.clone());
            let said = format!("message {:?} {text:?}", message.status());
            vec![said, incomplete.unwrap_or_default()]
        }
        Row::MessageDelta(delta) => {
            let part = &delta.delta.as_ref().expect("a delta").content[0];
            let text = part.text.as_ref().and_then(|text| text.value.as_ref());
            let text = text.or(part.refusal.as_ref()).expect("text");
            vec![format!("message[{}] += {text:?}", part.index())]
        }
        Row::Run(run) => {
            let action = run.required_action.as_ref();
            let action = action.and_then(|action| action.submit_tool_outputs.as_ref());
            let calls = action.into_iter().flat_map(|action| &action.tool_calls);
            let calls = calls.map(|call| call.id.clone()).collect();
            let error = run.last_error.as_ref().map(|error| &error.code);
            let incomplete = run.incomplete_details.as_ref();
            let why = error.or(incomplete.map(|details| &details.reason));
            let why = why.cloned().unwrap_or_default();
            let status = format!("run {:?}", run.status());
            vec![status, calls, cost(run.usage.as_ref()), why]
        }
        Row::Progress(progress) => {
            let due = progress.due.saturating_sub(NOW);
            let reply = cost(Some(&usage(progress.reply)));
            let spent = cost(Some(&usage(progress.spent)));
            vec![format!("due in {due:?}, reply {reply}, spent {spent}")]
        }
        Row::Step(step) => {
            let details = step.step_details.as_ref().expect("details");
            let does = details.message_creation.as_ref().map(|_| "writes");
            let calls = details.tool_calls.iter().map(call).collect();
            let expires = step.expires_at.map_or("", |_| "expires").to_owned();
            let status = format!("step {} {:?}", does.unwrap_or("calls"), step.status());
            vec![status, calls, cost(step.usage.as_ref()), expires]
        }
        Row::StepDelta(delta) => {
            let details = delta.delta.as_ref().and_then(|it| it.step_details.as_ref());
            let piece = &details.expect("details").tool_calls[0];
            vec![format!("step[{}] += {}", piece.index(), call(piece))]
        }
    }
}

/// Tokens that were read and written.
fn cost(usage: Option<&Usage>) -> String {
    let numbers = usage.and_then(|usage| usage.prompt_tokens.zip(usage.completion_tokens));
    let numbers = numbers.map(|(read, written)| format!("{read}+{written}"));
    numbers.unwrap_or_default()
}

fn call(call: &ToolCall) -> String {
    let function = call.function.as_ref().expect("a function");
    let output = function
        .output
        .as_ref()
        .map(|output| format!(" = {output}"));
    let (arguments, output) = (function.arguments(), output.unwrap_or_default());
    format!("{}: {}({arguments}){output}", call.id, function.name)
}
