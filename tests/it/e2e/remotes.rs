//! The main job over https and ssh: the credential is looked for wherever it must not be, all the while.

use super::harness::{Mosaic, Remote, gates, git, task};
use crate::servers::{Https, Ssh, USER, https_missing, make_certificates, private, ssh_missing};
use crate::skip::skip;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const TOKEN: &str = "canary-token-that-appears-nowhere-4711";

/// A credential, in every spelling that it may have on its way.
struct Canary {
    spellings: Vec<Vec<u8>>,
}

impl Canary {
    /// A token, and how basic authentication spells it.
    fn of_token() -> Self {
        use base64::Engine;
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{TOKEN}"));
        Self { spellings: vec![TOKEN.as_bytes().to_vec(), basic.into_bytes()] }
    }

    /// A private key: the lines that hold it.
    fn of_key(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<Vec<u8>> = text.lines().filter(|line| !line.starts_with('-')).skip(1).map(|line| line.as_bytes().to_vec()).collect();
        assert!(lines.len() > 1, "a key has some lines");
        Self { spellings: lines }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        self.spellings.iter().any(|canary| bytes.windows(canary.len()).any(|part| part == canary))
    }

    /// Files beneath a folder that hold it.
    fn files_beneath(&self, folder: &Path) -> Vec<PathBuf> {
        let mut left = vec![folder.to_owned()];
        let mut found = Vec::new();
        while let Some(path) = left.pop() {
            let Ok(seen) = std::fs::symlink_metadata(&path) else { continue };
            if seen.is_dir() {
                left.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            } else if seen.is_file() && self.is_in(&std::fs::read(&path).unwrap_or_default()) {
                found.push(path);
            }
        }
        found
    }
}

/// Arguments and environments of all processes that show the canary; counts those of the transport that were seen.
fn sample(canary: &Canary, transport: &str, shown: &mut BTreeSet<String>, seen: &AtomicUsize) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if !entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        for name in ["cmdline", "environ"] {
            let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
            if bytes.windows(transport.len()).any(|part| part == transport.as_bytes()) {
                seen.fetch_add(1, Ordering::Relaxed);
            }
            if canary.is_in(&bytes) {
                shown.insert(format!("{name}: {}", String::from_utf8_lossy(&bytes)));
            }
        }
    }
}

/// Says that it is over, also when the test fails: the sampler would wait for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A whole agent over a network remote, with the credential looked for in processes, folders, logs and records.
fn delivered_unseen(remote: &Remote, url: &str, remotes: &Path, transport: &str, canary: &Canary) {
    let (done, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (shown, mosaic) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut shown = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                sample(canary, transport, &mut shown, &seen);
                std::thread::sleep(Duration::from_millis(2));
            }
            shown
        });
        let over = Over(&done);
        let mosaic = Mosaic::start(&["--remotes", remotes.to_str().unwrap()]);
        // The agent shows all that it can see.
        let script = "env; cat /proc/*/environ /proc/*/cmdline || true; ls -l /proc/self/fd; cat .git/config; cat ~/.ssh/* || true; echo done > done.txt";
        let mut body = task(remote, "over-the-network", script);
        body["context"]["repository"] = url.into();
        let uid = mosaic.spawn(&body);
        let object = mosaic.wait_completed(&uid);
        assert!(!canary.is_in(object.to_string().as_bytes()));
        let (name, sha) = (object["status"]["push"]["ref"].as_str().unwrap(), object["status"]["push"]["sha"].as_str().unwrap());
        assert_eq!(remote.refs().get(name).map(String::as_str), Some(sha));
        assert_eq!(git(&remote.path, &["show", &format!("{name}:done.txt")]), "done\n");
        drop(over);
        (sampler.join().unwrap(), mosaic)
    });
    assert!(shown.is_empty(), "{shown:#?}");
    assert!(seen.load(Ordering::Relaxed) > 0, "the sampler saw the transport at work");
    let none: Vec<PathBuf> = Vec::new();
    assert_eq!(canary.files_beneath(mosaic.folder.path()), none, "state folder, log, audit, logs of the sandboxes");
    assert_eq!(canary.files_beneath(&remote.path), none);
}

#[test]
fn agent_is_delivered_over_https_and_the_credential_appears_nowhere() {
    if let Some(why) = https_missing() {
        return skip("e2e::remotes::agent_is_delivered_over_https_and_the_credential_appears_nowhere", why);
    }
    let keys = tempfile::tempdir().unwrap();
    make_certificates(keys.path());
    let token = private(&keys.path().join("token"), TOKEN);
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
    let canary = Canary::of_token();
    delivered_unseen(&remote, &server.url("repo.git"), &file, "remote-https", &canary);
    assert_eq!(canary.files_beneath(keys.path()), [token], "the search itself works");
}

#[test]
fn agent_is_delivered_over_ssh_and_the_key_appears_nowhere() {
    if let Some(why) = ssh_missing() {
        return skip("e2e::remotes::agent_is_delivered_over_ssh_and_the_key_appears_nowhere", why);
    }
    let keys = tempfile::tempdir().unwrap();
    let repositories = tempfile::tempdir().unwrap();
    let remote = Remote::new(repositories.path(), "repo", &[(".mosaic/gates.toml", gates("true", "env").as_str())]);
    let server = Ssh::start(keys.path());
    let key = keys.path().join("client");
    let text = format!(
        "[[remote]]\nprefix = {:?}\nnamespaces = [\"default\"]\nssh_key = {key:?}\nknown_hosts = {:?}\n",
        server.url(""),
        keys.path().join("known")
    );
    let file = private(&keys.path().join("remotes.toml"), &text);
    let canary = Canary::of_key(&key);
    delivered_unseen(&remote, &server.url(remote.url()), &file, "git-receive-pack", &canary);
    assert_eq!(canary.files_beneath(keys.path()), [key], "the search itself works");
}
