//! Gathers the pages of the error codes, so that `holdfast explain` works without a network.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut pages: Vec<(u16, PathBuf)> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number =
                path.file_name()?.to_str()?.strip_prefix("HF-")?.strip_suffix(".md")?.parse().ok()?;
            Some((number, path.canonicalize().ok()?))
        })
        .collect();
    pages.sort();
    let mut code = String::from("&[\n");
    for (number, path) in pages {
        println!("cargo::rerun-if-changed={}", path.display());
        writeln!(code, "    ({number}, include_str!({path:?})),").expect("writing into a String cannot fail");
    }
    code.push_str("]\n");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    std::fs::write(out.join("error_pages.rs"), code).expect("the output folder can be written");
}
