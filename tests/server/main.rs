//! The server over real sockets: what a caller sees of its limits, deadlines and drain.

mod calls;
mod connections;
mod descriptors;
mod drain;
mod harness;
mod page;
mod reflection;
mod web;
