//! Mosaic as an ordinary user who may use the engine: the same contract, once more, with that user's own ids.

use crate::engine::engine;
use mosaic::sandbox::init_binary::find_init;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A user that no distribution gives to anybody.
const ORDINARY_UID: u32 = 64_218;

/// What is run again.
const AGAIN: &[&str] = &[
    "docker::docker_driver_keeps_the_contract",
    "docker::inside::agent_that_floods_the_sockets_of_init_gets_nothing_and_init_keeps_its_lease",
    "docker::inside::paused_container_is_stopped",
    "docker::limits::each_bomb_ends_for_its_limit",
];

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_user_of_the_engine_has_the_same_contract() {
    let Some(engine) = engine("docker::user::ordinary_user_of_the_engine_has_the_same_contract").await else { return };
    let Some(socket) = engine.socket().filter(|_| rustix::process::geteuid().is_root()) else { return };
    // Whoever the socket belongs to may use it.
    let group = fs::metadata(socket).unwrap().gid();
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &std::path::Path, name: &str| {
        let to = folder.path().join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let program = copy(&std::env::current_exe().unwrap(), "tests");
    let init = copy(&find_init().unwrap(), "mosaic-init");
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    for path in [folder.path(), &temporary] {
        chown(path, Some(ORDINARY_UID), Some(ORDINARY_UID)).unwrap();
    }
    let mut command = Command::new(program);
    command.args(AGAIN).args(["--exact", "--test-threads", "2"]).current_dir("/");
    command.env("MOSAIC_INIT", init).env("TMPDIR", &temporary).env("HOME", &temporary);
    // SAFETY: the calls are async-signal-safe and allocate nothing.
    unsafe {
        command.pre_exec(move || {
            let (uid, gid) = (rustix::process::Uid::from_raw(ORDINARY_UID), rustix::process::Gid::from_raw(ORDINARY_UID));
            rustix::thread::set_thread_groups(&[rustix::process::Gid::from_raw(group)])?;
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
        });
    }
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let told = format!("{} passed; 0 failed", AGAIN.len());
    assert!(output.status.success() && text.contains(&told), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
