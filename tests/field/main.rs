//! Failures from the field: what services, clients, attackers and operators really do, each case
//! as a small input over a real socket, with its neighbours.

mod attackers;
mod clients;
mod gateway;
mod operators;
#[path = "../support/mod.rs"]
mod support;
mod upstream;
