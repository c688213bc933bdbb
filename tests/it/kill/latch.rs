//! The latch by itself: what is noted counts at once, for every process, and what cannot be read halts.

use mosaic::api::names::Uid;
use mosaic::kill::latch::{FILE_LATCH, Latch, Note, SLOTS};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

fn killed(uid: &str) -> Note {
    Note::Killed { uid: Uid::new(uid).unwrap(), by: "kill".into(), at_millis: 1 }
}

fn halt(name: &str, namespace: Option<&str>) -> Note {
    Note::Halt { name: name.into(), namespace: namespace.map(str::to_owned), hold: false, reason: "drill".into(), at_millis: 2 }
}

fn is_killed(latch: &Latch, uid: &str) -> bool {
    latch.killed(&Uid::new(uid).unwrap()).is_some()
}

#[test]
fn note_counts_at_once_here_and_for_another_process_once_it_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (mine, others) = (Arc::new(Latch::open(folder.path()).unwrap()), Latch::open(folder.path()).unwrap());
    mine.note(&[killed("agent-0001")]);
    assert!(is_killed(&mine, "agent-0001") && !is_killed(&others, "agent-0001"));
    mine.keep(&[killed("agent-0001"), halt("stop", Some("team"))]).unwrap();
    assert!(is_killed(&others, "agent-0001") && !is_killed(&others, "agent-0002"));
    assert!(others.halted("team").unwrap().contains("drill") && others.halted("other").is_none());
    let reopened = Latch::open(folder.path()).unwrap();
    assert!(is_killed(&reopened, "agent-0001") && reopened.halts() == [halt("stop", Some("team"))]);
    reopened.hand_over("stop").unwrap();
    assert!(mine.halted("team").is_none() && others.halts().is_empty() && is_killed(&mine, "agent-0001"));
}

#[test]
fn full_latch_forgets_the_oldest_kill_and_never_a_halt() {
    let folder = tempfile::tempdir().unwrap();
    let latch = Arc::new(Latch::open(folder.path()).unwrap());
    latch.keep(&[halt("stop", None)]).unwrap();
    let note = |n: usize| Note::Killed { uid: Uid::new(format!("agent-{n:06}")).unwrap(), by: "kill".into(), at_millis: n as i64 };
    for some in (0..SLOTS + 9).map(note).collect::<Vec<_>>().chunks(2000) {
        // Slow disks may take longer than a kill waits; it is written all the same.
        let _ = latch.keep(some);
        crate::e2e::harness::eventually("the notes", || is_killed(&Latch::open(folder.path()).unwrap(), last_of(some)));
    }
    let reopened = Latch::open(folder.path()).unwrap();
    assert!(!is_killed(&reopened, "agent-000000") && is_killed(&reopened, &format!("agent-{:06}", SLOTS + 8)));
    assert_eq!(reopened.halts().len(), 1);
}

fn last_of(notes: &[Note]) -> &str {
    match notes.last().unwrap() {
        Note::Killed { uid, .. } => uid.as_str(),
        Note::Halt { .. } => panic!("a kill"),
    }
}

#[test]
fn unreadable_slot_or_file_counts_as_halted_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let latch = Latch::open(folder.path()).unwrap();
    assert!(latch.halted("default").is_none());
    let file = std::fs::OpenOptions::new().write(true).open(folder.path().join(FILE_LATCH)).unwrap();
    file.write_all_at(b"{\"kind\":\"halt\"", 3 * 512).unwrap();
    let why = latch.halted("default").unwrap();
    assert!(why.contains("line 4") && why.contains("counts as halted"), "{why}");
    file.write_all_at(&[b' '; 511], 3 * 512).unwrap();
    assert!(latch.halted("default").is_none());
    file.set_len(10).unwrap();
    assert!(latch.halted("default").is_some(), "a latch that was cut off lacks notes");
    std::fs::remove_file(folder.path().join(FILE_LATCH)).unwrap();
    assert!(latch.halted("default").is_some(), "a latch that is gone lacks notes");
}
