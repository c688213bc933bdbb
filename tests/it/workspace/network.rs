//! Remotes over https and ssh, against `git http-backend` behind TLS and against sshd: what works, and the reason of each refusal.

use super::fixture::*;
use crate::servers::{Https, Ssh, USER, https_missing, make_certificates, private, ssh_missing};
use crate::skip::skip;
use mosaic::api::condition::reason;
use mosaic::api::names::Namespace;
use mosaic::plan::observed::Pushed;
use mosaic::workspace::*;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A world with keys and tokens beside it, which a server serves.
struct Network {
    world: World,
    keys: PathBuf,
    _folder: tempfile::TempDir,
}

impl Network {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().canonicalize().unwrap();
        private(&keys.join("token"), "canary-token-4711\n");
        private(&keys.join("bad-token"), "canary-wrong-0815\n");
        Self { world: World::new(TreeModeWish::Checkout), keys, _folder: folder }
    }

    fn https() -> Self {
        let this = Self::new();
        make_certificates(&this.keys);
        this
    }

    fn serve(&self, certificate: &str, mode: &str) -> Https {
        Https::start(&self.world.repos, &self.keys, certificate, &self.keys.join("token"), mode)
    }

    fn access(&self, prefix: String, token: &str, authority: &str) -> RemoteAccess {
        RemoteAccess {
            prefix,
            namespaces: vec![namespace()],
            credential: RemoteCredential::Token { username: USER.into(), file: self.keys.join(token) },
            known_hosts: None,
            authority: Some(self.keys.join(format!("{authority}.pem"))),
            proxy: None,
        }
    }

    /// The workspaces again, with these remotes and at most so many seconds of silence.
    fn reach(&mut self, url: String, remotes: Vec<RemoteAccess>, silence_seconds: u64) {
        let mut config = config(&self.world.state, &self.world.repos, TreeModeWish::Checkout);
        config.remotes = remotes;
        config.remote_silence = Duration::from_secs(silence_seconds);
        self.world.ws = Workspaces::open(config).unwrap();
        self.world.remote = url;
    }

    fn refusal(&self) -> WorkspaceError {
        self.world.ws.resolve(&namespace(), &self.world.remote, None, &branch("mosaic/x")).unwrap_err()
    }

    /// Resolves, works, pushes and reads back, all over the network.
    fn whole_way(&self) {
        let (base, paths) = self.world.tree(1);
        write(&paths.tree.join("new.txt"), "new\n");
        let head = self.world.candidate(1, &base);
        assert_eq!(self.world.push(1, &base, &head, "mosaic/x"), Pushed::Verified(head.clone()));
        let seen = git_ok(&self.world.repos.join("remote.git"), &["rev-parse", "refs/heads/mosaic/x"]);
        assert_eq!(seen, head.as_str());
    }
}

#[test]
fn a_repository_behind_tls_is_cloned_and_pushed_to_with_a_token() {
    if let Some(why) = https_missing() {
        return skip("workspace::network::a_repository_behind_tls_is_cloned_and_pushed_to_with_a_token", why);
    }
    let mut network = Network::https();
    let server = network.serve("good", "plain");
    network.reach(server.url("remote.git"), vec![network.access(server.url(""), "token", "ca")], 30);
    network.whole_way();
}

#[test]
fn every_refusal_over_https_has_its_reason_and_no_credential_in_its_words() {
    if let Some(why) = https_missing() {
        return skip("workspace::network::every_refusal_over_https_has_its_reason_and_no_credential_in_its_words", why);
    }
    let mut network = Network::https();
    let aim = network.serve("good", "plain");
    let redirect = format!("redirect={}", aim.url("").trim_end_matches('/'));
    let cases = [
        ("good", "plain", "bad-token", "ca", reason::CREDENTIAL_REFUSED, "credential for https://"),
        ("good", "echo", "token", "ca", reason::CREDENTIAL_REFUSED, "403"),
        ("expired", "plain", "token", "ca", reason::HOST_NOT_TRUSTED, "expired"),
        ("misnamed", "plain", "token", "ca", reason::HOST_NOT_TRUSTED, "another name"),
        ("good", "plain", "token", "other", reason::HOST_NOT_TRUSTED, "unknown authority"),
        ("good", redirect.as_str(), "token", "ca", reason::REMOTE_REDIRECTED, "write the address where"),
        ("good", "hang", "token", "ca", reason::REMOTE_SILENT, "silent for 2s"),
        ("good", "silent", "token", "ca", reason::REMOTE_UNAVAILABLE, "no end after 4s"),
    ];
    for (certificate, mode, token, authority, expected, words) in cases {
        let server = network.serve(certificate, mode);
        network.reach(server.url("remote.git"), vec![network.access(server.url(""), token, authority)], 2);
        let started = Instant::now();
        let error = network.refusal();
        let text = mosaic::causes::one_line(&error);
        assert_eq!(error.reason(), expected, "{certificate} {mode} {token} {authority}: {text}");
        assert!(text.contains(words), "{certificate} {mode} {token} {authority}: {text}");
        assert!(!text.contains("canary"), "{text}");
        assert!(started.elapsed() < Duration::from_secs(30), "{mode} took {:?}", started.elapsed());
    }
    let server = network.serve("good", "plain");
    network.reach(server.url("absent.git"), vec![network.access(server.url(""), "token", "ca")], 10);
    assert_eq!(network.refusal().reason(), reason::REPOSITORY_NOT_FOUND);
}

#[test]
fn the_longest_prefix_counts_and_another_namespace_gets_no_credential() {
    if let Some(why) = https_missing() {
        return skip("workspace::network::the_longest_prefix_counts_and_another_namespace_gets_no_credential", why);
    }
    let mut network = Network::https();
    let server = network.serve("good", "plain");
    let short = network.access(server.url(""), "bad-token", "ca");
    let long = network.access(server.url("remote.git/"), "token", "ca");
    let elsewhere = network.access(server.url("remote.git/else/"), "bad-token", "other");
    network.reach(server.url("remote.git"), vec![short, long.clone(), elsewhere], 30);
    network.world.resolve();
    let other = Namespace::new("other").unwrap();
    let error = network.world.ws.resolve(&other, &network.world.remote, None, &branch("x")).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.reason(), reason::CREDENTIAL_REFUSED, "{text}");
    assert!(text.contains("for the namespaces default and not for other"), "{text}");
    network.reach(server.url("remote.git"), vec![RemoteAccess { prefix: server.url("remote/"), ..long }], 30);
    assert!(network.refusal().to_string().contains("no [[remote]]"), "a prefix ends at a slash");
}

#[test]
fn a_credential_helper_of_the_operator_is_asked_only_on_request() {
    if let Some(why) = https_missing() {
        return skip("workspace::network::a_credential_helper_of_the_operator_is_asked_only_on_request", why);
    }
    let mut network = Network::https();
    let server = network.serve("good", "plain");
    let helper = network.keys.join("helper");
    let token = network.keys.join("token");
    std::fs::write(&helper, format!("#!/bin/sh\n[ \"$1\" = get ] && echo username={USER} && echo password=$(cat {})\n", token.display()))
        .unwrap();
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let access = RemoteAccess { credential: RemoteCredential::Helper(helper), ..network.access(server.url(""), "token", "ca") };
    network.reach(server.url("remote.git"), vec![access], 30);
    network.whole_way();
}

#[test]
fn a_repository_behind_sshd_is_cloned_and_pushed_to_and_every_refusal_has_its_reason() {
    if let Some(why) = ssh_missing() {
        return skip("workspace::network::a_repository_behind_sshd_is_cloned_and_pushed_to_and_every_refusal_has_its_reason", why);
    }
    let mut network = Network::new();
    let server = Ssh::start(&network.keys);
    let remote = network.world.repos.join("remote.git");
    let url = server.url(remote.to_str().unwrap());
    let access = |key: &str, known: &str| RemoteAccess {
        prefix: server.url(""),
        namespaces: Vec::new(),
        credential: RemoteCredential::SshKey(server.folder.join(key)),
        known_hosts: Some(server.folder.join(known)),
        authority: None,
        proxy: None,
    };
    network.reach(url.clone(), vec![access("client", "known")], 30);
    network.whole_way();
    for (key, known, expected) in [
        ("stranger", "known", reason::CREDENTIAL_REFUSED),
        ("client", "wrong", reason::HOST_NOT_TRUSTED),
        ("client", "empty", reason::HOST_NOT_TRUSTED),
    ] {
        network.reach(url.clone(), vec![access(key, known)], 10);
        let error = network.refusal();
        assert_eq!(error.reason(), expected, "{key} {known}: {error}");
    }
    network.reach(url.clone(), Vec::new(), 10);
    let error = network.refusal();
    assert!(error.reason() == reason::HOST_NOT_TRUSTED && error.to_string().contains("known-hosts"), "{error}");
    network.reach(server.url("absent.git"), vec![access("client", "known")], 10);
    assert_eq!(network.refusal().reason(), reason::REPOSITORY_NOT_FOUND);
}

#[test]
fn an_ssh_server_that_never_speaks_is_given_up() {
    if let Some(why) = ssh_missing() {
        return skip("workspace::network::an_ssh_server_that_never_speaks_is_given_up", why);
    }
    let mut network = Network::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let prefix = format!("ssh://root@127.0.0.1:{}/", listener.local_addr().unwrap().port());
    let access = RemoteAccess {
        prefix: prefix.clone(),
        namespaces: Vec::new(),
        credential: RemoteCredential::SshKey(private(&network.keys.join("key"), "")),
        known_hosts: Some(private(&network.keys.join("known"), "")),
        authority: None,
        proxy: None,
    };
    network.reach(format!("{prefix}x.git"), vec![access], 1);
    let error = network.refusal();
    assert!([reason::REMOTE_SILENT, reason::REMOTE_UNAVAILABLE].contains(&error.reason()), "{error}");
}
