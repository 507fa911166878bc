//! What upstreams answer.
