//! Callgrind, which counts.

use std::{env, path::Path, process::Command};

use tempfile::NamedTempFile;

/// What begins the command of a program that is to be counted. What callgrind says goes to `log`.
///
/// The C library copies with `rep movsb` where the processor is good at it, of which callgrind
/// counts every byte: it is told that this processor is not.
pub(crate) fn command(log: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--log-file={}", log.display()))
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS,-FSRM");
    command
}

/// The instructions of this program with these words.
pub(crate) fn counted(words: [&str; 3]) -> u64 {
    let log = NamedTempFile::new().expect("a file");
    let mut command = command(log.path());
    command.arg(env::current_exe().expect("this program"));
    let status = command.args(words).status().expect("valgrind is installed");
    assert!(status.success(), "{words:?} has failed");
    collected(&std::fs::read_to_string(log.path()).expect("text"))
}

/// The count that a log ends with.
pub(crate) fn collected(log: &str) -> u64 {
    let collected = log
        .lines()
        .find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    collected.unwrap_or_else(|| panic!("{log}"))
}
