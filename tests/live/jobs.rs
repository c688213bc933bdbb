//! Whole jobs as they have to go on every store.

use crate::harness::{Mosaic, Random, Remote, condition, gates, task};
use serde_json::{Value, json};
use std::time::Duration;

/// Agents at once while their controller is killed.
const WAVE_AGENTS: usize = 5;
/// Kills of the controller while they work.
const WAVE_KILLS: usize = 10;

/// What the agent of `refused_then_delivered` does: right only once it has read why it was refused.
const ANSWER: &str =
    "if grep -q 'the answer must be right' /mosaic/task.json; then echo right > answer.txt; else echo wrong > answer.txt; fi";

/// One agent whose first round is refused by a gate and whose second is pushed; its object.
pub fn refused_then_delivered(mosaic: &Mosaic) -> (Remote, Value) {
    let gate_file = gates("grep -q right answer.txt || { echo the answer must be right; exit 3; }", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let uid = mosaic.spawn(&task(&remote, "answer", ANSWER));
    let object = mosaic.wait_completed(&uid);
    let status = &object["status"];
    assert_eq!(status["attempt"], 2, "{object:#}");
    assert_eq!(status["counts"], json!({"agentFailures": 0, "rejections": 1, "infrastructure": 0}));
    let name = status["push"]["ref"].as_str().unwrap();
    assert_eq!(remote.refs().get(name).map(String::as_str), status["push"]["sha"].as_str());
    assert_eq!(remote.git(&["show", &format!("{name}:answer.txt")]), "right\n");
    assert_eq!(remote.agent_refs().len(), 1);
    (remote, object)
}

/// The same task again is the same agent; after a kill it is still known.
pub fn is_known_after_its_end(mosaic: &Mosaic, remote: &Remote, object: &Value) {
    let uid = object["metadata"]["uid"].as_str().unwrap();
    assert_eq!(mosaic.spawn(&task(remote, "answer", ANSWER)), uid);
    let (code, _) = mosaic.call("POST", &format!("/agents/{uid}/kill"), Some(&json!({})));
    assert_eq!(code, 200);
    assert_eq!(mosaic.object(uid)["status"]["phase"], "Completed");
    mosaic.assert_nothing_left();
}

/// Each agent has written its number into `note-<number>.txt`, and delivered that once.
pub fn each_note_is_delivered_once(mosaic: &Mosaic, remote: &Remote, uids: &[String]) {
    for (n, uid) in uids.iter().enumerate() {
        let object = mosaic.wait_completed(uid);
        assert_eq!(condition(&object, "Pushed"), "True");
        let name = object["status"]["push"]["ref"].as_str().unwrap();
        assert_eq!(remote.git(&["show", &format!("{name}:note-{n}.txt")]), format!("{n}\n"));
        assert_eq!(remote.git(&["rev-list", "--count", &format!("main..{name}")]).trim(), "1", "one commit each");
    }
    assert_eq!(remote.agent_refs().len(), uids.len());
    mosaic.assert_nothing_left();
}

/// Waves of five agents whose controller is killed at random instants, `usual` times or `MOSAIC_TEST_KILLS` times in all, with at most `pause`
/// between: each is delivered once, in one commit.
pub fn controller_is_killed_at_random(mosaic: &mut Mosaic, usual: usize, pause: Duration) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let kills_wanted = number("MOSAIC_TEST_KILLS").map_or(usual, |kills| usize::try_from(kills).unwrap());
    let seed = number("MOSAIC_TEST_SEED").unwrap_or(20_261_126);
    let mut random = Random(seed);
    let gate_file = gates("sleep 0.1; ls file-*.txt", "true");
    let remote = Remote::new(mosaic.folder.path(), "repo", &[(".mosaic/gates.toml", gate_file.as_str())]);
    let (mut kills, mut wave, mut delivered) = (0, 0, 0);
    while kills < kills_wanted {
        let begin = |n: usize| {
            let script = format!("for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done; echo {wave} > file-{wave}-{n}.txt");
            let mut body = task(&remote, &format!("wave-{wave}-{n}"), &script);
            body["sandbox"] = json!({ "cpu": "500m", "memory": "256Mi" });
            mosaic.spawn(&body)
        };
        let uids: Vec<String> = (0..WAVE_AGENTS).map(begin).collect();
        for _ in 0..WAVE_KILLS.min(kills_wanted - kills) {
            std::thread::sleep(Duration::from_millis(random.below(u64::try_from(pause.as_millis()).unwrap())));
            mosaic.sigkill();
            kills += 1;
            mosaic.up();
        }
        for (n, uid) in uids.iter().enumerate() {
            let object = mosaic.wait_completed(uid);
            let push = &object["status"]["push"];
            let name = push["ref"].as_str().unwrap();
            assert_eq!(remote.refs().get(name).map(String::as_str), push["sha"].as_str(), "seed {seed}: {object:#}");
            assert_eq!(remote.git(&["diff", "--name-only", "main", name]).trim(), format!("file-{wave}-{n}.txt"), "seed {seed}");
            assert_eq!(remote.git(&["rev-list", "--count", &format!("main..{name}")]).trim(), "1", "one commit each, seed {seed}");
            delivered += 1;
        }
        assert_eq!(remote.agent_refs().len(), delivered, "one ref each, none doubled, seed {seed}");
        mosaic.assert_nothing_left();
        wave += 1;
    }
    println!("{kills} kills of the controller, {delivered} agents delivered once each (seed {seed})");
}
