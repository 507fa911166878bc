//! Flags as variables of the environment, and names that flags had before.
//!
//! Must hold: the variable of `--some-flag` is `RUNS_GATEWAY_SOME_FLAG`, derived here and written
//! nowhere else. A `RUNS_GATEWAY_…` variable that no command has is refused by a gateway: a misspelt
//! one would leave a restriction out without a word. The other commands warn. An old name works for
//! one release, hidden from `--help`; the log names the new one.
//!
//! Why not clap's `env = "…"` at each flag: a name written twice differs one day.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    sync::OnceLock,
};

use clap::{
    Arg, ArgMatches, Command, CommandFactory as _, FromArgMatches as _, parser::ValueSource,
};

use super::{Cli, Invalid};

const PREFIX: &str = "RUNS_GATEWAY_";

/// Variables of this project's own tests, which start the program with them in its environment.
const TESTS: [&str; 4] = [
    "RUNS_GATEWAY_BIN",
    "RUNS_GATEWAY_SOAK_SECONDS",
    "RUNS_GATEWAY_SOAK_SEED",
    "RUNS_GATEWAY_TEST_CHILD",
];

/// Flags that had another name: the old one, the new one.
const RENAMED: [(&str, &str); 6] = [
    // These two were names of variables only.
    ("allowed-clients", "allowed-client"),
    ("upstream-headers", "upstream-header"),
    ("farewell-timeout", "cancel-timeout"),
    ("left-write-hold", "abandoned-write-hold"),
    ("poll-patience", "poll-failure-timeout"),
    ("stream-linger", "done-timeout"),
];

/// What was set by flags and variables, as it was set, without secrets.
static SETTINGS: OnceLock<String> = OnceLock::new();

/// What was set by flags and variables, for the log: `--max-calls 100 …`. Values that may be
/// secrets are left out.
pub fn settings() -> &'static str {
    SETTINGS.get().map_or("", String::as_str)
}

fn set(command: &Command, matches: &ArgMatches) -> String {
    let is_set = |arg: &&Arg| {
        let source = matches.value_source(arg.get_id().as_str());
        source.is_some_and(|source| source != ValueSource::DefaultValue)
    };
    let words = command.get_arguments().filter(is_set).filter_map(|arg| {
        let flag = arg.get_long()?;
        let is_secret =
            arg.is_hide_env_values_set() || flag.starts_with("upstream-") || flag == "model-url";
        let values = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
        let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
        Some(match values.join(",") {
            _ if is_secret => format!("--{flag} …"),
            values => format!("--{flag} {values}"),
        })
    });
    words.collect::<Vec<_>>().join(" ")
}

impl Cli {
    /// Reads the process's arguments and environment.
    pub fn from_process() -> Result<Self, clap::Error> {
        let command = command_line();
        let mut matches: ArgMatches = command.clone().try_get_matches()?;
        if let Some((name, matches)) = matches.subcommand()
            && let Some(command) = command.find_subcommand(name)
        {
            // Read once: a second reading says nothing new.
            let _ = SETTINGS.set(set(command, matches));
        }
        Self::from_arg_matches_mut(&mut matches)
    }
}

/// The command line, each flag with its variable and its old name.
pub fn command_line() -> Command {
    Cli::command().mut_subcommands(|command| command.mut_args(with_variable))
}

fn with_variable(arg: Arg) -> Arg {
    let Some(flag) = arg.get_long().map(str::to_owned) else {
        return arg;
    };
    // Where clap was given a flag's name, it takes that for its value's, too.
    let is_of_value = arg.get_value_names().is_some_and(|names| names[0] != flag);
    let arg = if is_of_value || !arg.get_action().takes_values() {
        arg
    } else {
        arg.value_name(flag.to_ascii_uppercase().replace('-', "_"))
    };
    let old = RENAMED.iter().find(|(_, new)| *new == flag);
    let arg = old.map_or(arg.clone(), |(old, _)| arg.alias(*old));
    if arg.get_env().is_some() {
        return arg;
    }
    let new = variable(&flag);
    let name = old
        .map(|(old, _)| variable(old))
        .filter(|old| std::env::var_os(&new).is_none() && std::env::var_os(old).is_some())
        .unwrap_or(new);
    arg.env(name)
}

fn variable(flag: &str) -> String {
    format!("{PREFIX}{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// Commands of callers. Their variables say nothing to a gateway, and one of them in its environment
/// may be a misspelt one of its own.
const CALLERS: [&str; 2] = ["run", "watch"];

/// Who reads the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// A gateway, which a misspelt variable may leave open.
    Gateway,
    /// Any other command: a shell may have variables for all of them.
    Other,
}

/// Refuses a variable of this program's that no command of this kind has.
pub fn check_environment(reader: Reader) -> Result<(), Invalid> {
    check(reader, std::env::vars_os())
}

fn check(
    reader: Reader,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(), Invalid> {
    let commands = command_line();
    let is_known = |name| reader == Reader::Other || !CALLERS.contains(&name);
    // What a flag's variable is, clap knows: some flags have one of another name.
    let read = commands
        .get_subcommands()
        .filter(|command| is_known(command.get_name()))
        .flat_map(Command::get_arguments)
        .filter_map(Arg::get_env)
        .map(|name| name.to_string_lossy().into_owned());
    let renamed = RENAMED
        .iter()
        .flat_map(|(old, new)| [variable(old), variable(new)]);
    let known: BTreeSet<String> = read.chain(renamed).collect();
    let mut unknown: Vec<String> = variables
        .filter(|(name, value)| !is_service_link(&name.to_string_lossy(), value))
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .filter(|name| is_ours(name) && !known.contains(name) && !TESTS.contains(&&**name))
        .collect();
    unknown.sort();
    let Some(name) = unknown.first() else {
        return Ok(());
    };
    let upper = name.to_ascii_uppercase();
    let distance = |known: &&String| strsim::levenshtein(known, &upper);
    // Of a name that is further away, nobody meant this.
    let most = 1.max((upper.len() - PREFIX.len()) / 3);
    let nearest = known.iter().min_by_key(distance);
    let meant = nearest
        .filter(|known| distance(known) <= most)
        .map(|known| format!(": did you mean {known}?"));
    Err(Invalid::new(format!(
        "the variable {name} is unknown{} Correct it or unset it",
        meant.as_deref().unwrap_or(".")
    )))
}

fn is_ours(name: &str) -> bool {
    name.get(..PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// Kubernetes gives each container variables of the services in its namespace. Those of a service
/// called `runs-gateway`, or `runs-gateway-…`, begin like this program's.
fn is_service_link(name: &str, value: &OsStr) -> bool {
    let Some(rest) = name.strip_prefix("RUNS_GATEWAY") else {
        return false;
    };
    let protocols = ["tcp", "udp", "sctp"];
    let is_url = value
        .to_str()
        .and_then(|value| value.split_once("://"))
        .is_some_and(|(scheme, _)| protocols.contains(&scheme));
    let is_port = |port: &str| {
        let mut words = port.split('_');
        words
            .next()
            .is_some_and(|number| number.parse::<u16>().is_ok())
            && words
                .next()
                .is_some_and(|word| protocols.contains(&&*word.to_ascii_lowercase()))
            && words
                .next()
                .is_none_or(|word| ["PROTO", "PORT", "ADDR"].contains(&word))
            && words.next().is_none()
    };
    rest.ends_with("_SERVICE_HOST")
        || rest.ends_with("_SERVICE_PORT")
        || rest.contains("_SERVICE_PORT_")
        || (rest.ends_with("_PORT") && is_url)
        || rest
            .match_indices("_PORT_")
            .any(|(at, word)| is_port(&rest[at + word.len()..]))
}

/// Logs which old names are in use, each with its new one.
pub fn log_old_names() {
    let words: Vec<OsString> = std::env::args_os().collect();
    for (old, new) in RENAMED {
        let flag = format!("--{old}");
        let is_flag = |word: &OsString| {
            word.to_str()
                .and_then(|word| word.strip_prefix(&flag))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        if words.iter().any(is_flag) {
            tracing::warn!("{flag} is now called --{new}: the next release takes that name only");
        }
        let (old, new) = (variable(old), variable(new));
        if std::env::var_os(&old).is_some() {
            let ignored = std::env::var_os(&new).is_some();
            tracing::warn!(
                ignored,
                "the variable {old} is now called {new}: the next release takes that name only"
            );
        }
    }
}
