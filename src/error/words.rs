//! Errors that mean more than their status, by their names and words: services give them none of
//! their own.
//!
//! Must hold: pure. A request that is wrong is no conflict, whatever it says of runs: the tables have
//! what services say, and no more.

/// Names of errors about another run of the thread that is at work.
const ACTIVE_RUN_NAMES: [&str; 6] = [
    "threadlocked",
    "threadbusy",
    "activerun",
    "runactive",
    "runinprogress",
    "concurrentrun",
];

/// Names of errors about the state of a thread or run.
const CONFLICT_NAMES: [&str; 13] = [
    "failedprecondition",
    "stateconflict",
    "invalidstate",
    "invalidrunstate",
    "invalidrunstatus",
    "runnotactive",
    "runnotcancel",
    "runexpired",
    "runalready",
    "runcompleted",
    "runcancelled",
    "runcanceled",
    "runfinished",
];

/// gRPC's number for `FAILED_PRECONDITION`, which a grpc-gateway writes.
const GRPC_FAILED_PRECONDITION: &str = "9";

/// Words about another run of the thread that is at work: all of one row are there, in any order, in
/// the spelling of [`spelt`].
const ACTIVE_RUN_WORDS: [&[&str]; 15] = [
    &["active run"],
    &[" run", "is active"],
    &["while run"],
    &[" run", "in progress"],
    &[" run", "is in_progress"],
    &[" run", " thread", " in_progress"],
    &[" run", "is queued"],
    &[" run is running"],
    &[" run run_", "is running"],
    &[" run", " thread", "is running"],
    &[" run", " thread", "ongoing"],
    &["concurrent run"],
    &["only one", " run", " thread"],
    &[" thread", "is locked"],
    &[" thread", "is busy"],
];

/// The same about the state of the run itself.
const CONFLICT_WORDS: [&[&str]; 26] = [
    // No outputs are waited for.
    &["not accept tool outputs"],
    &["cannot submit", "output"],
    &["not waiting for", "output"],
    &["not awaiting"],
    &["not expect", "tool output"],
    &["no pending tool"],
    &["no tool", "pending"],
    &["no tool", "awaiting"],
    &["no tool", "expected"],
    &["not require", "action"],
    &["not in", "requires_action"],
    &[" run", "must be in", "requires_action"],
    // The run is over.
    &["output", " already", "submitted"],
    &[" run", " already"],
    &[" run expired"],
    &[" run run_", " expired"],
    &[" run", " terminal"],
    // This cannot be done to it.
    &["cannot update", " run"],
    &["cannot modify", " run"],
    &["cannot cancel", " run"],
    &["cannot be updated", " run"],
    &["cannot be modified", " run"],
    &["cannot be cancelled", " run"],
    &[" run", "not cancellable"],
    &[" run", " state changed"],
    &[" conflict ", " run"],
];

/// Words for a run that came to its end, such as `has expired`: one of the first, then one of the
/// others.
const END_VERBS: [&str; 4] = ["has", "was", "is", "been"];
const ENDS: [&str; 4] = ["completed", "cancelled", "expired", "finished"];

/// Words that only speak of a value of the request.
const VALUE_WORDS: [&str; 9] = [
    "invalid value",
    "invalid type",
    "one of",
    "expected a ",
    "expected an ",
    "must be a ",
    "must be an ",
    "is required",
    "unknown parameter",
];

/// Names of errors about a credential, or parts of them.
const KEY_NAMES: [&str; 7] = [
    "api_key",
    "apikey",
    "authentication",
    "unauthenticated",
    "unauthorized",
    "invalid_token",
    "expired_token",
];

/// Words for a credential, and for what is wrong with it.
const KEY_WORDS: [&str; 4] = ["api key", "api-key", "access token", "bearer token"];
const KEY_FAULTS: [&str; 9] = [
    "incorrect",
    "invalid",
    "not valid",
    "expired",
    "missing",
    "revoked",
    "disabled",
    "wrong",
    "provide",
];

/// Whether the state of the thread or run is to blame, not the request, of an error with these
/// `names` (code and type).
pub(super) fn is_state_conflict(names: [&str; 2], message: &str) -> bool {
    if is_active_run(names, message)
        || has_name(names, &CONFLICT_NAMES)
        || names.contains(&GRPC_FAILED_PRECONDITION)
    {
        return true;
    }
    let message = spelt(message);
    let has = |words: &&str| message.contains(*words);
    let is_over = |verb: &&str| ENDS.iter().any(|end| has(&&*format!(" {verb} {end}")));
    let is_conflict =
        has_row(&message, &CONFLICT_WORDS) || has(&" run") && END_VERBS.iter().any(is_over);
    is_conflict && !VALUE_WORDS.iter().any(has)
}

/// Whether it is another run of the thread that is in the way.
pub(super) fn is_active_run(names: [&str; 2], message: &str) -> bool {
    let message = spelt(message);
    has_name(names, &ACTIVE_RUN_NAMES)
        || has_row(&message, &ACTIVE_RUN_WORDS)
            && !VALUE_WORDS.iter().any(|words| message.contains(words))
}

/// The first word that has the form of a run's id.
pub(super) fn named_run(message: &str) -> Option<&str> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "_-".contains(letter);
    let mut words = message.split(|letter| !is_part(letter));
    words.find(|word| word.len() > 4 && word.starts_with("run_"))
}

/// Whether one of the names has a known one in it, in whatever spelling.
fn has_name(names: [&str; 2], known: &[&str]) -> bool {
    let is_known = |name: &str| {
        let letters = name.chars().filter(char::is_ascii_alphanumeric);
        let name: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
        known.iter().any(|known| name.contains(known))
    };
    names.into_iter().any(is_known)
}

fn has_row(message: &str, rows: &[&[&str]]) -> bool {
    let has = |words: &&str| message.contains(*words);
    rows.iter().any(|row| row.iter().all(has))
}

/// Whether the credential is to blame. Not all services answer so with 401.
pub(super) fn is_about_key(names: [&str; 2], message: &str) -> bool {
    let is_known = |name: &str| {
        let name = name.to_ascii_lowercase();
        KEY_NAMES.iter().any(|known| name.contains(known))
    };
    if names.into_iter().any(is_known) {
        return true;
    }
    let message = message.to_ascii_lowercase();
    let has = |words: &&str| message.contains(*words);
    KEY_WORDS.iter().any(has) && KEY_FAULTS.iter().any(has)
}

/// Words in one spelling, with a blank before each, and nothing but blanks between them.
fn spelt(message: &str) -> String {
    const SPELLINGS: [(&str, &str); 14] = [
        ("\u{2019}", "'"),
        ("can't", "cannot"),
        ("n't", " not"),
        ("can not", "cannot"),
        ("could not", "cannot"),
        ("unable to", "cannot"),
        ("canceled", "cancelled"),
        ("cancelable", "cancellable"),
        (" currently", ""),
        (" still", ""),
        (" the run", " run"),
        (" a run", " run"),
        (" this run", " run"),
        (" another run", " run"),
    ];
    let message = format!(" {} ", message.to_ascii_lowercase());
    let respelt = |message: String, &(one, other): &(&str, &str)| message.replace(one, other);
    let message = SPELLINGS.iter().fold(message, respelt);
    let is_mark = |letter: char| !letter.is_alphanumeric() && letter != '_';
    message.replace(is_mark, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_active_run_is_told_by_its_words_and_named_by_them() {
        for (message, run) in [
            (
                "Thread thread_1 already has an active run run_1.",
                Some("run_1"),
            ),
            (
                "Can't add messages to thread_1 while a run run_aB-2 is active.",
                Some("run_aB-2"),
            ),
            ("Thread has an active run", None),
            ("A run 'run_x' is active", Some("run_x")),
            ("Thread thread_1 is locked by run run_2", Some("run_2")),
        ] {
            assert!(is_active_run(["", ""], message), "{message}");
            assert_eq!(named_run(message), run, "{message}");
        }
        assert!(!is_active_run(
            ["", ""],
            "Run run_1 is not waiting for outputs"
        ));
    }

    #[test]
    fn a_state_conflict_is_told_by_its_name() {
        for name in [
            "run_not_active",
            "RunNotCancellable",
            "RUN_EXPIRED",
            "run-already-completed",
            "thread_busy",
            "ConcurrentRunNotAllowed",
            "FAILED_PRECONDITION",
            "9",
        ] {
            assert!(is_state_conflict([name, ""], "No"), "{name}");
            assert!(is_state_conflict(["", name], "No"), "{name}");
        }
        for name in ["", "invalid_request_error", "run_not_found", "99", "400"] {
            assert!(!is_state_conflict([name, ""], "No"), "{name}");
        }
    }

    #[test]
    fn a_state_conflict_is_told_by_its_words() {
        let is_conflict = |message: &str| is_state_conflict(["", ""], message);
        for conflict in [
            "Thread thread_1 already has an active run run_1.",
            "Runs in status \"queued\" do not accept tool outputs.",
            "Can't add messages to thread_1 while a run run_1 is active.",
            "Cannot update run with status 'in_progress'.",
            "Cannot cancel run with status 'completed'.",
            "run run_1 cannot cancel",
            "Run status is \"completed\", cannot submit tool outputs",
            "Run is already cancelled",
            "The run was already completed.",
            "run_1 is not in status requires_action: cannot submit outputs",
            "Run run_1 is not in requires_action state",
            "This run does not require action",
            "Run cannot be cancelled in status failed",
            "There are no pending tool outputs for this run.",
            "No tool outputs are expected for run run_1.",
            "Cannot modify run in status expired.",
            "A run is already in progress for this thread.",
            "Another run is still running on thread_1.",
            "Thread thread_1 is locked by run run_2",
            "Run run_1 has expired.",
            "The run was canceled.",
            "Run run_1 isn\u{2019}t in requires_action state",
            "Run must be in 'requires_action' to submit outputs",
            "Run run_1 is in a terminal state",
            "Run is completed and can't be modified",
            "A run is still in_progress for this thread",
            "Thread is currently locked",
            "Another run is running",
            "Run run_1 is still running",
            "Concurrent runs are not allowed on a thread",
            "Only one run may be active per thread",
            "The run is not cancellable",
            "This run isn't cancelable",
            "Tool outputs have already been submitted",
            "This run expired",
            "Run run_1 expired at 12:00.",
            "Conflict: run state changed",
        ] {
            assert!(is_conflict(conflict), "{conflict}");
        }
        for other in [
            "Invalid 'status'.",
            "Invalid value: 'requires_action'. Supported values are: 'auto'.",
            "tool_outputs is required",
            "No run found with id 'run_1'.",
            "Invalid assistant_id did you create this assistant beforehand?",
            "The run's metadata must be an object that has not already more than 16 keys.",
            "run_id cannot be empty",
            "Missing required parameter: 'run.assistant_id'.",
            "An error occurred while parsing the run: invalid JSON",
            "Invalid 'tools[0].type': expected one of 'function', 'file_search'.",
            "The requested model 'run-1' does not exist.",
            "Failed to create run: validation has failed",
            "truncation_strategy is already an object",
            "'status' of the run must be one of queued, in_progress, completed on a thread",
            "Conflicting parameters: temperature and top_p",
        ] {
            assert!(!is_conflict(other), "{other}");
        }
    }
}
