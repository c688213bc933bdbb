//! Two hostile agents and a third on one repository, at the same time, as the same user of the host: whatever the two do, the third's
//! tree, HOME, objects, refs, link and verdicts stay its own, and what it delivers is what it wrote.

use super::harness::{Mosaic, Remote, condition, gates, git, task};
use serde_json::Value;
use std::time::{Duration, Instant};

/// What the third keeps in its tree and HOME, and no one else may read. The scripts below spell it in two parts.
const SECRET: &str = "secret-of-the-third";

/// Works for as long as the others attack, and fails at the first thing that is not as it left it.
const VICTIM: &str = r#"
    word=secret-of; word=$word-the-third
    echo $word > kept.txt; echo $word > ~/kept; git add kept.txt; git commit -q -m mine; mine=$(git rev-parse HEAD)
    sum=$(cat .git/HEAD .git/config README.md kept.txt ~/kept /mosaic/task.json | sha256sum)
    n=0; while [ $n -lt 150 ]; do
        [ "$(cat .git/HEAD .git/config README.md kept.txt ~/kept /mosaic/task.json | sha256sum)" = "$sum" ] || { echo "DISTURBED files"; exit 1; }
        [ "$(git rev-parse HEAD)" = "$mine" ] && [ -z "$(git status --porcelain)" ] || { echo "DISTURBED git"; exit 1; }
        git cat-file -e "$mine^{tree}" || { echo "DISTURBED objects"; exit 1; }
        [ "$(ls -A | tr '\n' ' ')" = ".git .mosaic README.md kept.txt " ] || { echo "DISTURBED tree $(ls -A)"; exit 1; }
        sleep 0.05; n=$((n+1))
    done"#;

/// What an agent can try against its neighbours; `GOT` is printed for whatever succeeds.
const ATTACK: &str = r#"
    set +e
    word=secret-of; word=$word-the-third
    echo $word > /tmp/word; got() { echo "GOT $*"; }
    # What is shared: the objects of the base, the system, the tools, the link's folder, the files beneath an overlay.
    for file in $(find /mosaic /usr/bin/env /etc/passwd -type f 2>/dev/null | head -60); do
        case $file in /mosaic/out/*|/mosaic/task.json) continue;; esac
        (echo x >> "$file") 2>/dev/null && got "wrote $file"; chmod u+w "$file" 2>/dev/null && got "chmod $file"
        ln "$file" /workspace/hard 2>/dev/null && got "hard link to $file"; rm -f "$file" 2>/dev/null && [ ! -e "$file" ] && got "removed $file"
    done
    # Other trees, HOMEs and state, by every way that leads up.
    for way in / /proc/1/root /proc/self/root /workspace/.. /home/agent/.. /proc/1/cwd /proc/self/cwd/../.. /dev/fd/3/..; do
        timeout 0.5 find $way -maxdepth 5 -name 'kept*' -not -path '/proc/*/proc/*' 2>/dev/null | grep -q . && got "read by $way"
    done
    cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | grep -aqf /tmp/word && got "read of a process"
    # Its git made to point elsewhere, with refs and objects that claim to be the other's.
    base=$(git rev-parse HEAD)
    for target in /mosaic/base /mosaic/base/objects ../../../trees / ; do echo "$target" > .git/commondir; git update-ref refs/heads/main $base 2>/dev/null; rm -f .git/commondir; done
    printf '%s\n' /mosaic/base/objects /workspace/../trees /proc/1/root > .git/objects/info/alternates
    git update-ref refs/heads/mosaic/third $base; git update-ref refs/mosaic/third $base; git symbolic-ref refs/heads/main refs/heads/mosaic/third
    git -c core.hooksPath=/workspace/hooks config core.fsmonitor /workspace/fire; git config core.worktree /; git config --unset core.worktree
    printf '#!/bin/sh\ntouch /workspace/fired /tmp/fired\n' > fire; chmod +x fire
    # Everything that runs.
    kill -9 -1 2>/dev/null; n=2; while [ $n -lt 400 ]; do kill -9 $n 2>/dev/null; n=$((n+1)); done
    # Its own link, spoken to as if by another.
    for socket in $(find /mosaic/link -type s 2>/dev/null); do
        case $socket in *control*) got "sees $socket";; esac
    done
    ls /mosaic/link/.. /mosaic/link/../.. 2>/dev/null | grep -q "identity\|runs\|trees" && got "sees the run folder"
    # What all share of the machine.
    (n=0; while [ $n -lt 300 ]; do sleep 2 & n=$((n+1)); done) 2>/dev/null
    head -c 400000000 /dev/zero > /tmp/full 2>/dev/null; rm -f /tmp/full
    n=0; while [ $n -lt 2000 ]; do : > "/workspace/.tmp-$n"; n=$((n+1)); done; rm -f /workspace/.tmp-*
    # Left behind for after the end, in the hope to reach a gate or the next round.
    setsid sh -c 'while :; do echo late > /workspace/late; sleep 0.01; done' >/dev/null 2>&1 &
    rm -f fire hard; echo "$0 was here" > attack.txt; exit 0"#;

#[test]
fn two_hostile_agents_change_nothing_of_a_third() {
    let mosaic = Mosaic::start(&[]);
    let judged = "test \"$(cat kept.txt 2>/dev/null || echo secret-of-the-third)\" = secret-of-the-third";
    let remote =
        Remote::new(mosaic.folder.path(), "repo", &[("README.md", "shared\n"), (".mosaic/gates.toml", &gates(judged, "test ! -e fired"))]);
    let main = remote.refs()["refs/heads/main"].clone();
    let third = mosaic.spawn(&task(&remote, "third", VICTIM));
    let attackers: Vec<String> = ["first", "second"].map(|name| mosaic.spawn(&task(&remote, name, ATTACK))).into();
    let until = Instant::now() + Duration::from_secs(60);
    while attackers.iter().chain([&third]).any(|uid| mosaic.object(uid)["status"]["run"].is_null()) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    let delivered = mosaic.wait_completed(&third);
    assert_eq!(delivered["status"]["attempt"], 1, "it was disturbed: {delivered:#}");
    assert!(delivered["status"]["feedback"].is_null(), "{delivered:#}");
    let mut objects = vec![delivered.clone()];
    for uid in &attackers {
        let ended = mosaic.wait_ended(uid);
        let (_, log) = mosaic.call("GET", &format!("/agents/{uid}/logs"), None);
        assert!(!log.to_string().contains("GOT"), "an attack reached something:\n{}", log.to_string().replace("\\n", "\n"));
        assert!(!log.to_string().contains(SECRET), "{log}");
        objects.push(ended);
    }
    only_their_own_work_is_on(&remote, &main, &objects);
    let repositories = std::fs::read_dir(mosaic.state().join("repositories")).unwrap().flatten().map(|entry| entry.path());
    let pairs: Vec<_> = repositories.filter(|path| path.join("work.git").is_dir()).collect();
    assert_eq!(pairs.len(), 1);
    for name in ["base.git", "work.git"] {
        git(&pairs[0].join(name), &["fsck", "--full", "--strict"]);
    }
    mosaic.assert_nothing_left();
}

/// Every branch holds what its agent wrote, above the untouched `main`, and nothing else.
fn only_their_own_work_is_on(remote: &Remote, main: &str, objects: &[Value]) {
    let refs = remote.refs();
    assert_eq!(refs["refs/heads/main"], main);
    let mut delivered = 0;
    for object in objects.iter().filter(|object| condition(object, "Pushed") == "True") {
        let (sha, name) = (object["status"]["push"]["sha"].as_str().unwrap(), object["status"]["push"]["ref"].as_str().unwrap());
        assert_eq!(refs[name], sha);
        let changed = remote.git(&["diff", "--name-only", main, sha]);
        let own = if object["metadata"]["uid"] == objects[0]["metadata"]["uid"] { "kept.txt\n" } else { "attack.txt\n" };
        assert_eq!(changed, own, "{object:#}");
        delivered += 1;
    }
    assert_eq!(refs.len(), 1 + delivered, "{refs:?}");
    let third = objects[0]["status"]["push"]["sha"].as_str().unwrap();
    assert_eq!(remote.git(&["show", &format!("{third}:kept.txt")]).trim(), SECRET);
}
