//! Push integrity: agents end rounds, are refused, killed and pushed while the base moves, the controller crashes and the remote fails in
//! every phase of a connection. Whatever happened, the remote itself is asked: nothing ungated, nothing lost, nothing twice.
//!
//! `MOSAIC_TEST_PUSHES` is the number of agents, each with a schedule of its own; ten at a time share a remote, a base that moves and a
//! controller that is killed. `MOSAIC_TEST_SEED` runs one seed again.

use super::harness::{Mosaic, Random, Remote, gates, task};
use crate::servers::faults::FaultyWay;
use crate::servers::{Https, USER, https_missing, make_certificates, private};
use crate::skip::skip;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Agents of one wave.
const WAVE: usize = 10;
/// Refuses agents' refs while there is a file that says so, one push for each byte in it; slow as another file says. Never touches `main`.
const PRE_RECEIVE: &str = r#"#!/bin/sh
read old new ref
case $ref in refs/heads/mosaic/*) ;; *) exit 0 ;; esac
if [ -s "$GIT_DIR/refuse" ]; then
    size=$(stat -c %s "$GIT_DIR/refuse")
    truncate -s $((size - 1)) "$GIT_DIR/refuse"
    echo "the hook does not want this now" >&2
    exit 1
fi
"#;
const POST_RECEIVE: &str = "#!/bin/sh\nsleep \"$(cat \"$GIT_DIR/slow\" 2>/dev/null || echo 0)\"\n";

/// What an agent is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    Good,
    /// Its first round is refused by a gate.
    BadAtFirst,
    /// All are.
    Bad,
}

struct Agent {
    uid: String,
    /// Unique in all waves; also the content of the one file that it adds.
    name: String,
    nature: Nature,
    /// When it is killed.
    kill_after: Option<Duration>,
    /// What its ref was when its kill was answered as verified.
    at_kill: Option<Option<String>>,
}

impl Agent {
    fn script(&self, random: &mut Random) -> String {
        let (name, pause) = (&self.name, random.below(700));
        let bad = match self.nature {
            Nature::Good => String::new(),
            Nature::BadAtFirst => format!("if [ -e ~/again ]; then rm -f BAD-{name}; else touch ~/again BAD-{name}; fi"),
            Nature::Bad => format!("echo more >> BAD-{name}"),
        };
        format!("echo {name} > agent-{name}.txt; sleep 0.{pause:03}; {bad}")
    }
}

/// The remote's own words on one ref, whatever our records say.
fn ref_of(remote: &Remote, uid: &str) -> Option<(String, String)> {
    let mine: Vec<(String, String)> = remote.agent_refs().into_iter().filter(|(name, _)| name.ends_with(&uid[..8])).collect();
    assert!(mine.len() <= 1, "two refs of one agent: {mine:?}");
    mine.into_iter().next()
}

struct World {
    mosaic: Mosaic,
    remote: Remote,
    url: String,
    way: FaultyWay,
    _server: Https,
    _folders: (tempfile::TempDir, tempfile::TempDir),
}

impl World {
    fn new(seed: u64) -> Self {
        let (keys, repositories) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make_certificates(keys.path());
        let token = private(&keys.path().join("token"), "token-of-the-robot");
        let gate_file = gates("sleep 0.05; ls agent-*.txt > /dev/null && ! ls BAD-* 2> /dev/null", "true");
        let remote = Remote::new(repositories.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
        for (name, text) in [("pre-receive", PRE_RECEIVE), ("post-receive", POST_RECEIVE)] {
            let hook = remote.path.join("hooks").join(name);
            std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
            std::fs::write(&hook, text).unwrap();
            std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let server = Https::start(repositories.path(), keys.path(), "good", &token, "plain");
        let way = FaultyWay::to(server.port, seed);
        let url = format!("https://127.0.0.1:{}/", way.port);
        let file = format!(
            "[[remote]]\nprefix = {url:?}\nnamespaces = [\"default\"]\nusername = \"{USER}\"\ntoken_file = {token:?}\nca = {:?}\n",
            keys.path().join("ca.pem")
        );
        let file = private(&keys.path().join("remotes.toml"), &file);
        let mosaic = Mosaic::start(&["--running-max", "10", "--remotes", file.to_str().unwrap(), "--remote-silence", "5s"]);
        Self { mosaic, remote, url, way, _server: server, _folders: (keys, repositories) }
    }

    /// One wave of agents to their ends, with everything that goes wrong meanwhile.
    fn wave(&mut self, wave: usize, random: &mut Random) -> Vec<Agent> {
        let mut agents: Vec<Agent> = (0..WAVE).map(|n| self.declare(&format!("w{wave}n{n}"), random)).collect();
        std::fs::write(self.remote.path.join("refuse"), "x".repeat(usize::try_from(random.below(3)).unwrap())).unwrap();
        std::fs::write(self.remote.path.join("slow"), format!("0.{}", random.below(10))).unwrap();
        self.way.set_faulty(true);
        let started = Instant::now();
        let crashes: BTreeSet<u64> = (0..random.below(3)).map(|_| random.below(6_000)).collect();
        let moves: BTreeSet<u64> = (0..random.below(5)).map(|_| random.below(6_000)).collect();
        let (mut crashes, mut moves) = (crashes.into_iter().peekable(), moves.into_iter().peekable());
        let is_due = |at: Option<&u64>| at.is_some_and(|at| started.elapsed() >= Duration::from_millis(*at));
        while started.elapsed() < Duration::from_secs(7) {
            if is_due(crashes.peek()) {
                crashes.next();
                self.mosaic.sigkill();
                self.mosaic.up();
            }
            if is_due(moves.peek()) {
                let at = moves.next().unwrap();
                self.remote.commit(&[(&format!("base-{wave}-{at}.txt"), "somebody else\n")], "somebody else");
            }
            for agent in agents.iter_mut().filter(|agent| agent.kill_after.is_some_and(|after| started.elapsed() >= after)) {
                agent.kill_after = None;
                let (status, answer) = self.mosaic.call("POST", &format!("/agents/{}/kill", agent.uid), None);
                assert!(status == 200 || status == 202, "{status}: {answer}");
                if answer["state"] == "killed" && answer["verified"] == true {
                    agent.at_kill = Some(ref_of(&self.remote, &agent.uid).map(|(_, sha)| sha));
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.way.set_faulty(false);
        std::fs::write(self.remote.path.join("refuse"), "").unwrap();
        agents
    }

    fn declare(&self, name: &str, random: &mut Random) -> Agent {
        let nature = match random.below(10) {
            0 => Nature::Bad,
            1..=3 => Nature::BadAtFirst,
            _ => Nature::Good,
        };
        let kill_after = (random.below(6) == 0).then(|| Duration::from_millis(random.below(5_000)));
        let mut agent = Agent { uid: String::new(), name: name.to_owned(), nature, kill_after, at_kill: None };
        let mut body = task(&self.remote, name, &agent.script(random));
        body["context"]["repository"] = format!("{}repo.git", self.url).into();
        // Refusals of the hook are rounds as well.
        body["maxRetries"] = json!(5);
        agent.uid = self.mosaic.spawn(&body);
        agent
    }
}

/// Files that a commit adds to `main` as it is now or was: names without folders.
fn files_of(remote: &Remote, commit: &str) -> BTreeSet<String> {
    remote.git(&["ls-tree", "--name-only", commit]).lines().map(str::to_owned).collect()
}

/// The message of a condition that has this reason.
fn message<'a>(object: &'a Value, type_: &str, reason: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == type_ && c["reason"] == reason).and_then(|c| c["message"].as_str())
}

/// Holds the remote against what the agents were, and the records against the remote.
fn judge(world: &World, agents: &[Agent], objects: &BTreeMap<String, Value>, counts: &mut BTreeMap<String, usize>) {
    for agent in agents {
        let object = &objects[&agent.uid];
        let (phase, push) = (object["status"]["phase"].as_str().unwrap(), &object["status"]["push"]);
        *counts.entry(format!("{:?} {phase}", agent.nature)).or_default() += 1;
        let on_remote = ref_of(&world.remote, &agent.uid);
        let about = || format!("{} ({:?}): the remote has {on_remote:?}, the record says {object:#}", agent.name, agent.nature);
        if let Some((_, sha)) = &on_remote {
            assert_ne!(agent.nature, Nature::Bad, "what no gate passed is on the remote: {}", about());
            check_content(&world.remote, agent, sha);
            let open = message(object, "Pushed", "PushUnknown").is_some_and(|text| text.contains(sha.as_str()));
            let known = push["sha"].as_str() == Some(sha.as_str());
            assert!(known || (phase == "Killed" && open), "the record does not know what the remote has: {}", about());
        }
        match phase {
            "Completed" => assert!(on_remote.is_some(), "lost: {}", about()),
            "Failed" => {
                assert!(on_remote.is_none(), "delivered, and called failed: {}", about());
                assert!(object["status"]["workspace"]["rescueRef"].is_string(), "its work was not kept: {}", about());
            }
            "Killed" => {}
            other => panic!("{other}: {}", about()),
        }
        if let Some(at_kill) = &agent.at_kill {
            assert_eq!(on_remote.as_ref().map(|(_, sha)| sha), at_kill.as_ref(), "its ref moved after its kill was verified: {}", about());
        }
    }
}

/// The gate's own question, asked of the commit by git alone; and that everything in it is the agent's or the base's.
fn check_content(remote: &Remote, agent: &Agent, sha: &str) {
    let files = files_of(remote, sha);
    let mine = format!("agent-{}.txt", agent.name);
    assert_eq!(remote.git(&["show", &format!("{sha}:{mine}")]).trim(), agent.name);
    let strange: Vec<&String> = files.iter().filter(|file| **file != mine && !file.starts_with("base-") && *file != ".mosaic").collect();
    assert!(strange.is_empty(), "{}: {strange:?}", agent.name);
    let own = remote.git(&["log", "--format=%an", &format!("main..{sha}")]);
    let authors: Vec<&str> = own.lines().collect();
    assert!((1..=2).contains(&authors.len()) && authors.iter().all(|author| *author == "Mosaic"), "{}: {authors:?}", agent.name);
}

#[test]
fn whatever_comes_between_the_remote_has_each_gated_commit_once_and_no_other() {
    let name = "e2e::push_integrity::whatever_comes_between_the_remote_has_each_gated_commit_once_and_no_other";
    if let Some(why) = https_missing() {
        return skip(name, why);
    }
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let seed = number("MOSAIC_TEST_SEED", 20_261_123);
    let wanted = usize::try_from(number("MOSAIC_TEST_PUSHES", 10)).unwrap();
    let mut random = Random(seed);
    let mut world = World::new(seed);
    let (mut counts, mut done) = (BTreeMap::new(), Vec::new());
    for wave in 0..wanted.div_ceil(WAVE) {
        println!("wave {wave}, seed {}", random.0);
        let agents = world.wave(wave, &mut random);
        let objects = agents.iter().map(|agent| (agent.uid.clone(), world.mosaic.wait_ended(&agent.uid))).collect();
        judge(&world, &agents, &objects, &mut counts);
        done.extend(agents);
        judge_whole(&world.remote, &done);
    }
    world.mosaic.assert_nothing_left();
    println!("{} agents (seed {seed}): {counts:?}; connections: {}", done.len(), world.way.report());
}

/// What holds of the remote as a whole.
fn judge_whole(remote: &Remote, done: &[Agent]) {
    let all = remote.git(&["for-each-ref", "--format=%(refname)"]);
    let unknown: Vec<&str> =
        all.lines().filter(|name| *name != "refs/heads/main" && !done.iter().any(|agent| name.ends_with(&agent.uid[..8]))).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let authors: BTreeSet<String> = remote.git(&["log", "--format=%an", "main"]).lines().map(str::to_owned).collect();
    assert_eq!(authors, BTreeSet::from(["Seed".to_owned()]), "the base branch was touched");
    // Each agent's file is in one ref only: nothing was delivered twice.
    let shas: BTreeSet<String> = remote.agent_refs().into_values().collect();
    assert_eq!(shas.len(), remote.agent_refs().len(), "two refs have one commit");
    let told = remote.git(&["fsck", "--no-dangling", "--no-progress"]);
    assert!(told.trim().is_empty(), "{told}");
    assert!(Path::new(&remote.path).join("HEAD").exists());
}
