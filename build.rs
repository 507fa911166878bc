//! Compiles the contract: message types and service stubs (tonic-build), the descriptor that reflection serves, and the JSON codec
//! (`build/codec.rs`).
//!
//! The embedded API's own messages (`src/embedded/proto`) go through the same codec, and are no part of the descriptor.
//!
//! Must hold: nothing but cargo is needed. The protobuf compiler is protox, a Rust library.

use std::{env, error::Error, fs, io, path::PathBuf};

#[path = "build/codec.rs"]
mod codec;

/// The contract, which is published, and what only this crate sees.
const CONTRACT: &str = "proto/runsgateway/v1";
const INTERNAL: &str = "src/embedded/proto/runsgateway/embedded/v1";
const INCLUDES: [&str; 2] = ["proto", "src/embedded/proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=src/embedded/proto");
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    // Encoded by protox, not by prost: prost would drop comments' neighbours that it does not know, custom options among them.
    fs::write(out.join("descriptor.bin"), compile(&[CONTRACT])?.encode_file_descriptor_set())?;
    let compiler = compile(&[CONTRACT, INTERNAL])?;
    tonic_build::configure()
        // Maps in key order: what goes out is the same each time.
        .btree_map(".")
        .compile_fds(compiler.file_descriptor_set())?;
    fs::write(out.join("codec.rs"), codec::generate(&compiler.descriptor_pool())?)?;
    Ok(())
}

fn compile(directories: &[&str]) -> Result<protox::Compiler, Box<dyn Error>> {
    let mut files = Vec::new();
    for directory in directories {
        let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        files.extend(entries);
    }
    files.sort();
    let mut compiler = protox::Compiler::new(INCLUDES)?;
    compiler.include_source_info(true).include_imports(true).open_files(files)?;
    Ok(compiler)
}
