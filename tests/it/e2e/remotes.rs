//! The main job over https: the credential is looked for wherever it must not be, all the while.

use super::harness::{Mosaic, Remote, gates, git, task};
use crate::servers::{Https, USER, https_missing, make_certificates, private};
use crate::skip::skip;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const CANARY: &str = "canary-token-that-appears-nowhere-4711";

/// The canary and how basic authentication spells it.
fn spellings() -> Vec<Vec<u8>> {
    use base64::Engine;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{CANARY}"));
    vec![CANARY.as_bytes().to_vec(), basic.into_bytes()]
}

fn holds(bytes: &[u8]) -> bool {
    spellings().iter().any(|canary| bytes.windows(canary.len()).any(|part| part == canary))
}

/// Arguments and environments of all processes that show the canary; counts those of `git` that were seen.
fn sample(shown: &mut BTreeSet<String>, seen: &AtomicUsize) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if !entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        for name in ["cmdline", "environ"] {
            let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
            if bytes.windows(16).any(|part| part == b"git-remote-https") || bytes.windows(12).any(|part| part == b"remote-https") {
                seen.fetch_add(1, Ordering::Relaxed);
            }
            if holds(&bytes) {
                shown.insert(format!("{name}: {}", String::from_utf8_lossy(&bytes)));
            }
        }
    }
}

/// Files beneath a folder that hold the canary.
fn files_with_canary(folder: &Path) -> Vec<PathBuf> {
    let mut left = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(path) = left.pop() {
        let Ok(seen) = std::fs::symlink_metadata(&path) else { continue };
        if seen.is_dir() {
            left.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if seen.is_file() && holds(&std::fs::read(&path).unwrap_or_default()) {
            found.push(path);
        }
    }
    found
}

#[test]
fn agent_is_delivered_over_https_and_the_credential_appears_nowhere() {
    if let Some(why) = https_missing() {
        return skip("e2e::remotes::agent_is_delivered_over_https_and_the_credential_appears_nowhere", why);
    }
    let keys = tempfile::tempdir().unwrap();
    make_certificates(keys.path());
    let token = private(&keys.path().join("token"), CANARY);
    let repositories = tempfile::tempdir().unwrap();
    let remote = Remote::new(repositories.path(), "repo", &[(".mosaic/gates.toml", gates("true", "env").as_str())]);
    let server = Https::start(repositories.path(), keys.path(), "good", &token, "plain");
    let text = format!(
        "[[remote]]\nprefix = {:?}\nnamespaces = [\"default\"]\nusername = \"{USER}\"\ntoken_file = {:?}\nca = {:?}\n",
        server.url(""),
        token,
        keys.path().join("ca.pem")
    );
    let file = private(&keys.path().join("remotes.toml"), &text);

    let (done, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut shown, mosaic) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut shown = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                sample(&mut shown, &seen);
                std::thread::sleep(Duration::from_millis(2));
            }
            shown
        });
        let mosaic = Mosaic::start(&["--remotes", file.to_str().unwrap()]);
        // The agent shows all that it can see.
        let script = "env; cat /proc/*/environ /proc/*/cmdline || true; ls -l /proc/self/fd; cat .git/config; echo done > done.txt";
        let mut body = task(&remote, "over-https", script);
        body["context"]["repository"] = server.url("repo.git").into();
        let uid = mosaic.spawn(&body);
        let object = mosaic.wait_completed(&uid);
        assert!(!object.to_string().contains(CANARY));
        let (name, sha) = (object["status"]["push"]["ref"].as_str().unwrap(), object["status"]["push"]["sha"].as_str().unwrap());
        assert_eq!(remote.refs().get(name).map(String::as_str), Some(sha));
        assert_eq!(git(&remote.path, &["show", &format!("{name}:done.txt")]), "done\n");
        done.store(true, Ordering::Relaxed);
        (sampler.join().unwrap(), mosaic)
    });
    shown.retain(|text| !text.is_empty());
    assert!(shown.is_empty(), "{shown:#?}");
    assert!(seen.load(Ordering::Relaxed) > 0, "the sampler saw git at work");
    let none: Vec<PathBuf> = Vec::new();
    assert_eq!(files_with_canary(mosaic.folder.path()), none, "state folder, log, audit, logs of the sandboxes");
    assert_eq!(files_with_canary(&remote.path), none);
    assert_eq!(files_with_canary(keys.path()), [token], "the search itself works");
}
