//! `ConverseRun`: the whole tool loop on one stream, against a scripted upstream and against the
//! embedded API.

mod approvals;
mod attach;
mod caller;
mod cuts;
mod embedded;
mod ends;
mod harness;
mod mistakes;
mod moves;
mod rounds;
mod soak;
#[path = "../support/mod.rs"]
mod support;
