//! Waves of agents whose controller is killed at any instant, as they have to end with every store and driver.

use super::harness::{Mosaic, Random, Remote, gates, task, wanted};
use serde_json::json;
use std::time::Duration;

/// Agents at once.
const WAVE_AGENTS: usize = 5;
/// Kills of the controller while they work.
const WAVE_KILLS: usize = 10;

/// Waves of five agents whose controller is killed at random instants, `usual` times or `MOSAIC_TEST_KILLS` times in all, with at most `pause`
/// between: each is delivered once, in one commit.
pub fn controller_is_killed_at_random(mosaic: &mut Mosaic, usual: usize, pause: Duration) {
    let kills_wanted = wanted("MOSAIC_TEST_KILLS", usual);
    let seed = wanted("MOSAIC_TEST_SEED", 20_261_126);
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
