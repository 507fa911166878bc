//! Generates the gateway's stubs from its contract.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let services = ["assistant", "message", "run", "run_step", "thread"]
        .map(|name| format!("runsgateway/v1/{name}_service.proto"));
    tonic_build::configure()
        .build_server(false)
        .compile_fds(protox::compile(services, ["../../proto"])?)?;
    println!("cargo::rerun-if-changed=../../proto");
    Ok(())
}
