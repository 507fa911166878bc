//! Generates the gateway's stubs from its contract.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let services = [
        "runsgateway/v1/run_service.proto",
        "runsgateway/v1/run_step_service.proto",
    ];
    tonic_build::configure()
        .build_server(false)
        .compile_fds(protox::compile(services, ["../../proto"])?)?;
    println!("cargo::rerun-if-changed=../../proto");
    Ok(())
}
