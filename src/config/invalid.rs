//! What is said of a configuration that cannot be run.

use std::fmt;

/// A configuration that cannot be run: one line that says what to change.
#[derive(Debug)]
pub struct Invalid(String);

impl fmt::Display for Invalid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

impl Invalid {
    /// What to change, in one line that holds no key.
    pub fn new(line: impl Into<String>) -> Self {
        Self(line.into())
    }
}
