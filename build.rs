//! Compiles the contract: message types (prost), service stubs (`build/stubs.rs`), the descriptor
//! that reflection serves, the JSON codec (`build/codec.rs`), the protobuf encoder
//! (`build/wire.rs`), and the calls themselves (`build/calls.rs`).
//!
//! The embedded API's own messages (`src/embedded/proto`) go through the same codec, and are no
//! part of the descriptor.
//!
//! Must hold: nothing but cargo is needed. The protobuf compiler is protox, a Rust library.

use std::{env, error::Error, fs, io, path::PathBuf};

#[path = "build/calls.rs"]
mod calls;
#[path = "build/codec.rs"]
mod codec;
#[path = "build/stubs.rs"]
mod stubs;
#[path = "build/wire.rs"]
mod wire;

/// The contract, which is published, and what only this crate sees.
const CONTRACT: &str = "proto/runsgateway/v1";
const INTERNAL: &str = "src/embedded/proto/runsgateway/embedded/v1";
const INCLUDES: [&str; 2] = ["proto", "src/embedded/proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=src/embedded/proto");
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    fs::write(out.join("protos.rs"), embedded()?)?;
    // Encoded by protox, not by prost: prost would drop comments' neighbours that it does not know,
    // custom options among them.
    fs::write(
        out.join("descriptor.bin"),
        compile(&[CONTRACT])?.encode_file_descriptor_set(),
    )?;
    let compiler = compile(&[CONTRACT, INTERNAL])?;
    prost_build::Config::new()
        .enable_type_names()
        // Maps in key order: what goes out is the same each time.
        .btree_map(["."])
        // An event is moved several times on its way; its size is that of the largest payload.
        .boxed("RunEvent.payload.thread")
        .boxed("RunEvent.payload.run")
        .boxed("RunEvent.payload.run_step")
        .boxed("RunEvent.payload.run_step_delta")
        .boxed("RunEvent.payload.message")
        .boxed("RunEvent.payload.message_delta")
        .boxed("RunEvent.payload.gap")
        .boxed("RunEvent.payload.unknown")
        .service_generator(Box::new(stubs::Stubs::new()))
        .compile_fds(compiler.file_descriptor_set())?;
    fs::write(
        out.join("codec.rs"),
        codec::generate(&compiler.descriptor_pool())?,
    )?;
    fs::write(
        out.join("wire.rs"),
        wire::generate(&compiler.descriptor_pool())?,
    )?;
    fs::write(
        out.join("client.rs"),
        calls::client(&compiler.descriptor_pool())?,
    )?;
    fs::write(
        out.join("services.rs"),
        calls::services(&compiler.descriptor_pool())?,
    )?;
    Ok(())
}

fn compile(directories: &[&str]) -> Result<protox::Compiler, Box<dyn Error>> {
    let mut compiler = protox::Compiler::new(INCLUDES)?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files(files(directories)?)?;
    Ok(compiler)
}

fn files(directories: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for directory in directories {
        for entry in fs::read_dir(directory)? {
            files.push(entry?.path());
        }
    }
    files.sort();
    Ok(files)
}

/// The contract's files as Rust text: an array of path and content, for `runs-gateway proto`.
fn embedded() -> Result<String, Box<dyn Error>> {
    let entries = files(&[CONTRACT])?.into_iter().map(|file| {
        let path = file.strip_prefix(INCLUDES[0])?;
        let (path, source) = (
            path.display().to_string(),
            fs::canonicalize(file)?.display().to_string(),
        );
        Ok(format!("({path:?}, include_str!({source:?})),\n"))
    });
    Ok(format!(
        "[\n{}]",
        entries.collect::<Result<String, Box<dyn Error>>>()?
    ))
}
