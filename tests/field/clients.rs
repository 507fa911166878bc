//! What clients send.
