//! Whole jobs as they have to go on every store.

use crate::harness::{Mosaic, Remote, condition, gates, task};
use serde_json::{Value, json};

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
