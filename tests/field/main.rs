//! Failures from the field: what services, clients, attackers and operators really do, each case
//! as a small input over a real socket, with its neighbours.

mod attackers;
#[path = "../access/certificates.rs"]
mod certificates;
mod clients;
mod errors;
mod foundry;
#[path = "../access/front.rs"]
mod front;
mod gateway;
mod guarded;
mod handshakes;
mod operators;
mod probes;
mod reloads;
#[path = "../streams/script.rs"]
#[allow(
    dead_code,
    reason = "what upstreams say of runs, of which this needs a part"
)]
mod script;
mod seen;
#[path = "../support/mod.rs"]
mod support;
mod troubles;
mod upstream;
