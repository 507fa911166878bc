//! Compiles the contract: message types and service stubs (tonic-build), the descriptor that reflection serves, and the JSON codec
//! (`build/codec.rs`).
//!
//! Must hold: nothing but cargo is needed. The protobuf compiler is protox, a Rust library.

use std::{env, error::Error, fs, path::PathBuf};

#[path = "build/codec.rs"]
mod codec;

const INCLUDES: [&str; 1] = ["proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut files = Vec::new();
    for entry in fs::read_dir("proto/runsgateway/v1")? {
        files.push(entry?.path());
    }
    files.sort();
    fs::write(out.join("protos.rs"), embedded(&files)?)?;
    let mut compiler = protox::Compiler::new(INCLUDES)?;
    compiler.include_source_info(true).include_imports(true).open_files(files)?;

    // Encoded by protox, not by prost: prost would drop comments' neighbours that it does not know, custom options among them.
    fs::write(out.join("descriptor.bin"), compiler.encode_file_descriptor_set())?;
    tonic_build::configure()
        // Maps in key order: what goes out is the same each time.
        .btree_map(".")
        .compile_fds(compiler.file_descriptor_set())?;
    fs::write(out.join("codec.rs"), codec::generate(&compiler.descriptor_pool())?)?;
    Ok(())
}

/// The contract's files as Rust text: an array of path and content, for `runs-gateway proto`.
fn embedded(files: &[PathBuf]) -> Result<String, Box<dyn Error>> {
    let entries = files.iter().map(|file| {
        let path = file.strip_prefix(INCLUDES[0])?;
        let (path, source) = (path.display().to_string(), fs::canonicalize(file)?.display().to_string());
        Ok(format!("({path:?}, include_str!({source:?})),\n"))
    });
    Ok(format!("[\n{}]", entries.collect::<Result<String, Box<dyn Error>>>()?))
}
