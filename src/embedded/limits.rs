//! What the embedded API holds at most.

/// How much is kept. Whatever goes beyond drives out the oldest of its kind, of threads the one that
/// was not used for longest; refused are a body that is too large, and what would add to threads
/// that are all in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Threads, with all that is on them.
    pub threads: usize,
    /// Messages on one thread.
    pub messages: usize,
    /// Runs on one thread.
    pub runs: usize,
    /// Assistants, besides the one that is always there.
    pub assistants: usize,
    /// Bytes in the body of a request.
    pub body: usize,
    /// Bytes in all threads together, as protobuf messages; in memory it is a small multiple.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            threads: 10_000,
            messages: 1_000,
            runs: 1_000,
            assistants: 100,
            body: 1 << 20,
            bytes: 128 << 20,
        }
    }
}
