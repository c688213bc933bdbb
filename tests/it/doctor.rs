//! `mosaic doctor`, run on this machine as it is, with calls refused that sandboxes need, and as an ordinary user.

use mosaic::inside::confine::{Need, PRIMITIVES};
use mosaic::inside::seccomp::{self, Condition, Rule};
use mosaic::sandbox::limits::LIMITS;
use serde_json::Value;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// A user that no distribution gives to anybody.
const ORDINARY_UID: u32 = 64_218;

fn doctor(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mosaic"));
    // An engine that happens to be here would have rows of its own.
    command.arg("doctor").args(args).env_remove("MOSAIC_LOG").env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    command
}

/// Runs it as on a host where the kernel or a container's profile refuses these calls.
fn behind(rules: &'static [Rule], args: &[&str]) -> Output {
    let program = seccomp::compile(rules);
    let mut command = doctor(args);
    // SAFETY: the calls that install a filter are async-signal-safe; the program was compiled before.
    unsafe { command.pre_exec(move || seccomp::install(&program)) };
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn rows(output: &Output) -> Vec<Value> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(output)));
    report["sections"].as_array().unwrap().iter().flat_map(|section| section["rows"].as_array().unwrap().clone()).collect()
}

#[test]
fn every_primitive_and_every_limit_of_this_machine_is_shown() {
    let output = doctor(&["-o", "json"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let rows = rows(&output);
    let of_processes = PRIMITIVES.iter().filter(|primitive| primitive.process != Need::Never);
    for name in of_processes.map(|primitive| primitive.name).chain(LIMITS.iter().map(|limit| limit.name)) {
        let found: Vec<&Value> = rows.iter().filter(|row| row["name"] == name).collect();
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_ne!(found[0]["verdict"], "missing", "{found:?}");
    }
}

#[test]
fn pods_that_cannot_be_made_are_told_before_the_first() {
    let mut command = doctor(&["-o", "json", "--link-address", "198.51.100.1:7443"]);
    let output = command.env("KUBECONFIG", "/nonexistent/kubeconfig").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let rows = rows(&output);
    let row = rows.iter().find(|row| row["name"] == "cluster").unwrap();
    assert!(row["verdict"] == "missing" && row["detail"].as_str().unwrap().contains("KUBECONFIG"), "{row}");
    assert!(row["remedy"].as_str().unwrap().contains("--link-address"), "{row}");
}

#[test]
fn what_is_missing_is_named_with_what_helps() {
    const LANDLOCK: &[Rule] = &[Rule { call: libc::SYS_landlock_create_ruleset, errno: libc::ENOSYS, when: &[] }];
    let output = behind(LANDLOCK, &[]);
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    let line = shown.lines().find(|line| line.contains("landlock")).unwrap();
    assert!(line.contains("MISSING") && line.contains("what helps") && shown.contains("lsm="), "{shown}");
    assert!(shown.contains("no agent can start here"), "{shown}");
    let allowed = behind(LANDLOCK, &["--allow-missing", "landlock"]);
    assert!(allowed.status.success() && text(&allowed).contains("allowed to be missing"), "{}", text(&allowed));
}

#[test]
fn within_a_container_that_may_make_no_namespaces_it_says_so() {
    const NO_NAMESPACES: &[Rule] = &[
        Rule {
            call: libc::SYS_clone,
            errno: libc::EPERM,
            when: &[Condition { argument: 0, mask: libc::CLONE_NEWPID as u32 | libc::CLONE_NEWNS as u32, is_one: false, values: &[0] }],
        },
        Rule { call: libc::SYS_unshare, errno: libc::EPERM, when: &[] },
        Rule { call: libc::SYS_clone3, errno: libc::ENOSYS, when: &[] },
    ];
    let output = behind(NO_NAMESPACES, &[]);
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    for word in ["MISSING", "failed to make a pid-namespace", "--privileged"] {
        assert!(shown.contains(word), "{word:?} in {shown}");
    }
}

#[test]
fn an_ordinary_user_reads_what_is_weaker() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(folder.path(), Some(ORDINARY_UID), Some(ORDINARY_UID)).unwrap();
    let mut command = doctor(&["-o", "json"]);
    let init = folder.path().join("mosaic-init");
    std::fs::copy(mosaic::sandbox::init_binary::find_init().unwrap(), &init).unwrap();
    command.uid(ORDINARY_UID).gid(ORDINARY_UID).current_dir("/").env("HOME", folder.path()).env("MOSAIC_INIT", init);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let rows = rows(&output);
    let verdict = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap()["verdict"].clone();
    assert_eq!(
        (verdict("user"), verdict("trees"), verdict("memory"), verdict("seccomp")),
        ("weak".into(), "weak".into(), "ok".into(), "ok".into())
    );
}
