//! The kept seeds of the fuzz targets (`make fuzz`), run through the same functions on every test run and with every compiler.

#[path = "../../fuzz/bodies.rs"]
mod bodies;

use std::path::Path;

fn run_seeds(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut seeds = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        body(&std::fs::read(&path).unwrap());
        seeds += 1;
    }
    assert!(seeds >= 3, "{target} has {seeds} seeds");
}

#[test]
fn records() {
    run_seeds("record", bodies::record);
}

#[test]
fn gates_files() {
    run_seeds("gates_file", bodies::gates_file);
}

#[test]
fn results() {
    run_seeds("result", bodies::result);
}

#[test]
fn progress_lines() {
    run_seeds("progress", bodies::progress);
}

#[test]
fn link_messages() {
    run_seeds("link", bodies::link);
}

#[test]
fn trees() {
    run_seeds("tree_reader", bodies::tree_reader);
}
