//! Load for `benches/peers/run`. One thread, so that it stays on the core that it is given, away
//! from what is measured.
//!
//! | command | what it does |
//! |---|---|
//! | `upstream --listen ADDRESS` | serves runs and their event streams over HTTP/1.1 |
//! | `streams --to ADDRESS --call create/watch/steps/sse --thread PLAN` | opens streams and checks that every event comes once and in order; told what to do on standard input |
//! | `latency --to ADDRESS --call get/transcoded/json --rate N --seconds N` | calls at a fixed rate, each timed from when it was due |
//! | `start --to ADDRESS COMMAND…` | starts a command; the time until it has answered a call |
//!
//! Answers are lines of `name=value` words on standard output. Anything unexpected ends the program
//! with an error: a load that lost answers measures nothing.

mod call;
mod frames;
mod latency;
mod start;
mod streams;
mod upstream;

use std::{collections::HashMap, env, error::Error, process::ExitCode};

type Failure = Box<dyn Error + Send + Sync>;
type Done = Result<(), Failure>;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    match runtime.block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Done {
    let mut words = env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let flags = Flags::new(words);
    match &*command {
        "upstream" => upstream::run(&flags).await,
        "streams" => streams::run(&flags).await,
        "latency" => latency::run(&flags).await,
        "start" => start::run(&flags).await,
        _ => Err(format!("no such command: {command:?}").into()),
    }
}

/// `--name value` pairs, and what follows them.
struct Flags {
    named: HashMap<String, String>,
    rest: Vec<String>,
}

impl Flags {
    fn new(mut words: impl Iterator<Item = String>) -> Self {
        let mut named = HashMap::new();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--") else {
                return Self {
                    named,
                    rest: [word].into_iter().chain(words).collect(),
                };
            };
            named.insert(name.to_owned(), words.next().unwrap_or_default());
        }
        Self {
            named,
            rest: Vec::new(),
        }
    }

    fn text(&self, name: &str) -> Result<&str, Failure> {
        self.named
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| format!("--{name} is missing").into())
    }

    fn number(&self, name: &str) -> Result<u64, Failure> {
        self.text(name)?
            .parse()
            .map_err(|_| format!("--{name} must be a number").into())
    }
}
