//! A kill that cannot ask the container engine says that it does not know, whatever keeps it from asking.

use super::text;
use crate::e2e::harness::program;
use std::os::unix::process::CommandExt;
use std::process::{Output, Stdio};

/// More open files than a kill of nothing needs.
const FILES_MAX: u64 = 48;

/// `mosaic kill --all` on a state folder, with so many open files allowed.
fn kill_all_with(state: &std::path::Path, files: u64) -> Output {
    let mut command = program();
    command.arg("--state").arg(state).args(["kill", "--all"]).stdin(Stdio::null());
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let limit = rustix::process::Rlimit { current: Some(files), maximum: Some(files) };
            Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?)
        });
    }
    command.output().unwrap()
}

#[test]
fn engine_that_cannot_be_asked_for_want_of_descriptors_is_unknown_and_not_empty() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir_all(state.join("runs")).unwrap();
    mosaic::kill::engine::remember(&state, "unix:///nonexistent/docker.sock", "installation-1").unwrap();
    let mut asked = 0;
    for files in 3..=FILES_MAX {
        let output = kill_all_with(&state, files);
        let told = text(&output);
        assert!(!output.status.success(), "{files} open files: {told}");
        asked += usize::from(told.contains("UNKNOWN: containers without a folder"));
    }
    assert!(asked > 10, "only {asked} of {FILES_MAX} came so far as to say what is unknown");
}
