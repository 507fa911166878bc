//! `runs-gateway run` and `runs-gateway watch`: the program, real gateways, real sockets.

#[path = "../access/certificates.rs"]
mod certificates;
#[path = "../streams/script.rs"]
#[allow(dead_code, reason = "the tests of streams use all of it")]
mod script;
#[path = "../support/mod.rs"]
mod support;

mod interrupts;
mod resuming;
mod runs;
mod screen;
mod shown;
