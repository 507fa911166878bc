//! What the gateway itself ends, holds or repeats.
