//! Compiles the contract: message types and service stubs (tonic-build), the descriptor that
//! reflection serves, the JSON codec (`build/codec.rs`), the protobuf encoder (`build/wire.rs`),
//! and the calls themselves (`build/calls.rs`).
//!
//! The embedded API's own messages (`src/embedded/proto`) go through the same codec, and are no
//! part of the descriptor.
//!
//! Without the feature `gateway` there are neither servers nor the gateway's way to encode and
//! decode messages; without `client` there are messages alone.
//!
//! Must hold: nothing but cargo is needed. The protobuf compiler is protox, a Rust library.

use std::{env, error::Error, fs, io, path::PathBuf};

#[path = "build/calls.rs"]
mod calls;
#[path = "build/codec.rs"]
mod codec;
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
    let mut config = tonic_build::Config::new();
    config.enable_type_names();
    let [client, gateway] =
        ["CLIENT", "GATEWAY"].map(|it| env::var_os(format!("CARGO_FEATURE_{it}")).is_some());
    let codec = if gateway {
        "crate::service::BoundedCodec"
    } else {
        "tonic_prost::ProstCodec"
    };
    tonic_build::configure()
        .build_client(client)
        .build_server(gateway)
        // Maps in key order: what goes out is the same each time.
        .btree_map(".")
        // An event is moved several times on its way; its size is that of the largest payload.
        .boxed("RunEvent.payload.thread")
        .boxed("RunEvent.payload.run")
        .boxed("RunEvent.payload.run_step")
        .boxed("RunEvent.payload.run_step_delta")
        .boxed("RunEvent.payload.message")
        .boxed("RunEvent.payload.message_delta")
        .boxed("RunEvent.payload.gap")
        .boxed("RunEvent.payload.unknown")
        .codec_path(codec)
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    for (file, package) in [
        ("codec.rs", "runsgateway.v1"),
        ("embedded_codec.rs", "runsgateway.embedded.v1"),
    ] {
        let codec = codec::generate(&compiler.descriptor_pool(), package)?;
        fs::write(out.join(file), codec)?;
    }
    fs::write(
        out.join("wire.rs"),
        wire::generate(&compiler.descriptor_pool())?,
    )?;
    fs::write(
        out.join("client.rs"),
        calls::client(&compiler.descriptor_pool())?,
    )?;
    fs::write(
        out.join("not_ids.rs"),
        calls::not_ids(&compiler.descriptor_pool())?,
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
