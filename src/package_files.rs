//! Man pages and shell completions, written from the command line as clap knows it, for packages.

use std::{fs, io, path::Path};

use clap::{Command, ValueEnum as _};
use clap_complete::Shell;

/// The name of the program.
const NAME: &str = "runs-gateway";

/// Writes `man/*.1` and `completions/SHELL/*` below `out`, making folders where needed.
///
/// # Errors
///
/// A folder or file that cannot be written.
pub fn write(mut command: Command, out: &Path) -> io::Result<()> {
    let man = out.join("man");
    fs::create_dir_all(&man)?;
    // First: completions add a page for the help of each command.
    clap_mangen::generate_to(command.clone(), man)?;
    for shell in Shell::value_variants() {
        let folder = out.join("completions").join(shell.to_string());
        fs::create_dir_all(&folder)?;
        clap_complete::generate_to(*shell, &mut command, NAME, folder)?;
    }
    Ok(())
}
