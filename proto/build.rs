//! Compiles the `.proto` files without a system `protoc`, and keeps the descriptor set for reflection.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["agent", "alert", "common", "data", "fleet", "policy", "report", "run", "snapshot", "status"]
            .map(|name| format!("holdfast/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=holdfast");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true);
    let descriptors = compiler.open_files(&files)?.file_descriptor_set();
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("holdfast.v1.bin");
    std::fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".holdfast.v1.PutPackRequest")
        .bytes(".holdfast.v1.ReadPackResponse")
        .bytes(".holdfast.v1.LookupBlobsRequest")
        .bytes(".holdfast.v1.LookupBlobsResponse")
        .bytes(".holdfast.v1.LocateBlobsRequest")
        .compile_fds(descriptors)?;
    Ok(())
}
