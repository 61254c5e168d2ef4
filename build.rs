//! Compiles `proto/` without an installed protoc: protox parses it, prost and tonic write the code.

use std::{env, error::Error, fs, path::PathBuf};

const GATEWAY: &str = "plex/v1/gateway.proto";
const AUTHENTICATOR: &str = "plex/v1/authenticator.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile([GATEWAY, AUTHENTICATOR], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // What reflection tells: nothing of the service that a backend may serve, and no comments.
    let mut served = descriptors.clone();
    served.file.retain(|file| file.name() != AUTHENTICATOR);
    for file in &mut served.file {
        file.source_code_info = None;
    }
    fs::write(out.join("plex.binpb"), prost::Message::encode_to_vec(&served))?;
    let serves = env::var_os("CARGO_FEATURE_SERVER").is_some();
    tonic_prost_build::configure().build_server(serves).compile_fds(descriptors)?;
    Ok(())
}
