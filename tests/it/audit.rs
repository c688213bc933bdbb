//! The audit record: what is in the files, what a broken chain looks like, and what followers are told.

use futures::StreamExt;
use mosaic::api::names::{Attempt, CommitId, Epoch, Uid};
use mosaic::audit::{Audit, AuditError, AuditOptions, Draft, EntryKind, Frame, Outcome, entries_of, verify};
use mosaic::plan::action::{Action, Effect};
use mosaic::store::Key;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Set in a child process: the audit folder to write to.
const CHILD_FOLDER: &str = "MOSAIC_TEST_AUDIT_FOLDER";
const WAIT_MAX: Duration = Duration::from_secs(20);

fn uid() -> Uid {
    Uid::new("11111111-aaaa").unwrap()
}

fn effect() -> Effect {
    let action = Action::TakeSnapshot { attempt: Attempt(2), base: CommitId::new("a".repeat(40)).unwrap() };
    Effect { key: Key::agent("default", "one"), uid: uid(), epoch: Epoch(7), action }
}

fn open(folder: &Path) -> Audit {
    Audit::open(folder, "host", AuditOptions::default()).unwrap()
}

fn lines(folder: &Path) -> Vec<String> {
    std::fs::read_to_string(folder.join("host.jsonl")).unwrap().lines().map(str::to_owned).collect()
}

fn parsed(folder: &Path) -> Vec<Value> {
    lines(folder).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A folder with a closed record of `count` events.
fn record_of(count: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let audit = open(folder.path());
    for n in 1..=count {
        assert_eq!(audit.append(Draft::event("Ticked", &format!("tick {n}"))).unwrap(), n);
    }
    drop(audit);
    folder
}

fn first_break(folder: &Path) -> String {
    let report = verify(folder).unwrap();
    assert!(!report.is_whole());
    report.writers[0].first_break.as_ref().unwrap().to_string()
}

#[tokio::test]
async fn an_effect_leaves_its_intent_and_its_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let audit = open(folder.path());
    let intent = audit.append_durable(Draft::intent(&effect())).await.unwrap();
    let on_disk = parsed(folder.path());
    assert_eq!(on_disk.len(), 1, "the intent is in the file before the effect begins");
    audit.append(Draft::outcome(intent, &effect(), Outcome::Failed, "tree holds a socket")).unwrap();
    audit.append(Draft::request("user:ann", "kill", Outcome::Ok).about(effect().key, Some(uid())).with_request_id("r-1")).unwrap();
    drop(audit);
    let entries = parsed(folder.path());
    let kinds: Vec<_> = entries.iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["intent", "outcome", "request"]);
    assert_eq!(entries[0]["action"], "TakeSnapshot");
    assert_eq!((entries[0]["attempt"].as_u64(), entries[0]["epoch"].as_u64()), (Some(2), Some(7)));
    assert_eq!((entries[1]["intent"].as_u64(), entries[1]["result"].as_str()), (Some(1), Some("failed")));
    assert_eq!((entries[2]["actor"].as_str(), entries[2]["requestId"].as_str()), (Some("user:ann"), Some("r-1")));
    let at = entries[0]["at"].as_str().unwrap();
    assert!(at.len() == "2026-01-01T00:00:00.000000Z".len() && at.parse::<k8s_openapi::jiff::Timestamp>().is_ok(), "{at}");
    for file in ["host.jsonl", "key", "host.checkpoint"] {
        let mode = std::fs::metadata(folder.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert_eq!(entries_of(folder.path(), &uid(), 2).unwrap().iter().map(|e| e.seq).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_whole_chain_verifies_and_is_counted() {
    let folder = record_of(1000);
    let report = verify(folder.path()).unwrap();
    assert!(report.is_whole(), "{report:?}");
    let writer = &report.writers[0];
    assert_eq!((writer.writer_id.as_str(), writer.entries, writer.last_seq, writer.is_torn), ("host", 1000, 1000, false));
}

#[test]
fn every_way_to_tamper_is_found() {
    let change = |how: &dyn Fn(&mut Vec<String>)| {
        let folder = record_of(20);
        let mut all = lines(folder.path());
        how(&mut all);
        std::fs::write(folder.path().join("host.jsonl"), all.join("\n") + "\n").unwrap();
        first_break(folder.path())
    };
    let edited = change(&|all| all[9] = all[9].replace("tick 10", "tick 11"));
    assert!(edited.contains("host.jsonl:10: was edited"), "{edited}");
    let dropped = change(&|all| drop(all.remove(9)));
    assert!(dropped.contains(":10: entry 10 is missing: 11 follows"), "{dropped}");
    let reordered = change(&|all| all.swap(9, 10));
    assert!(reordered.contains(":10: entry 10 is missing"), "{reordered}");
    let doubled = change(&|all| all.insert(10, all[9].clone()));
    assert!(doubled.contains(":11: entry 10 is doubled"), "{doubled}");
    let first = change(&|all| drop(all.remove(0)));
    assert!(first.contains(":1: entry 1 is missing"), "{first}");
    let cut = change(&|all| all.truncate(15));
    assert!(cut.contains("ends at entry 15, but entry 20 was there: it was cut off"), "{cut}");
    let added = change(&|all| all.push(all[3].replace("\"seq\":4", "\"seq\":21")));
    assert!(added.contains(":21: was edited"), "{added}");
}

#[test]
fn a_chain_of_another_key_or_without_its_checkpoint_is_found() {
    let (ours, theirs) = (record_of(5), record_of(5));
    std::fs::copy(theirs.path().join("host.jsonl"), ours.path().join("host.jsonl")).unwrap();
    assert!(first_break(ours.path()).contains("was not written with this key"));
    std::fs::remove_file(theirs.path().join("host.checkpoint")).unwrap();
    assert!(first_break(theirs.path()).contains("checkpoint is missing"));
    let gone = record_of(5);
    std::fs::remove_file(gone.path().join("host.jsonl")).unwrap();
    assert!(first_break(gone.path()).contains("cut off"));
    let forged = record_of(5);
    let text = std::fs::read_to_string(forged.path().join("host.checkpoint")).unwrap();
    std::fs::write(forged.path().join("host.checkpoint"), text.replace("\"seq\":5", "\"seq\":3")).unwrap();
    assert!(first_break(forged.path()).contains("was edited"));
}

#[test]
fn going_on_from_a_tampered_record_is_refused() {
    let cut = record_of(20);
    let kept = lines(cut.path())[..10].join("\n") + "\n";
    std::fs::write(cut.path().join("host.jsonl"), kept).unwrap();
    let error = Audit::open(cut.path(), "host", AuditOptions::default()).unwrap_err().to_string();
    assert!(error.contains("ends at entry 10, but it once had 20"), "{error}");
    let keyless = record_of(3);
    std::fs::remove_file(keyless.path().join("key")).unwrap();
    let error = Audit::open(keyless.path(), "host", AuditOptions::default()).unwrap_err().to_string();
    assert!(error.contains("key is gone"), "{error}");
}

#[test]
fn a_torn_last_line_is_cut_off_and_noted() {
    let folder = record_of(5);
    let path = folder.path().join("host.jsonl");
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"seq\":6,\"at\":\"20").unwrap();
    assert!(verify(folder.path()).unwrap().writers[0].is_torn);
    let audit = open(folder.path());
    assert_eq!(audit.last_seq(), 6);
    assert_eq!(audit.append(Draft::event("Ticked", "tick")).unwrap(), 7);
    drop(audit);
    assert_eq!(parsed(folder.path())[5]["action"], "AuditRepaired");
    let report = verify(folder.path()).unwrap();
    assert!(report.is_whole() && !report.writers[0].is_torn, "{report:?}");
}

#[test]
fn intents_without_outcome_are_marked_unknown_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let audit = open(folder.path());
    let done = audit.append(Draft::intent(&effect())).unwrap();
    let lost = audit.append(Draft::intent(&effect())).unwrap();
    audit.append(Draft::outcome(done, &effect(), Outcome::Ok, "")).unwrap();
    drop(audit);
    drop(open(folder.path()));
    drop(open(folder.path()));
    let entries = parsed(folder.path());
    assert_eq!(entries.len(), 4, "marked once");
    assert_eq!((entries[3]["result"].as_str(), entries[3]["intent"].as_u64()), (Some("unknown"), Some(lost)));
    assert_eq!(entries[3]["uid"], uid().as_str());
    assert_eq!(verify(folder.path()).unwrap().writers[0].unknown_outcomes, 1);
}

#[test]
fn one_process_writes_a_chain() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(folder.path());
    let error = Audit::open(folder.path(), "host", AuditOptions::default()).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    drop(Audit::open(folder.path(), "standby", AuditOptions::default()).unwrap());
    assert!(Audit::open(folder.path(), "../x", AuditOptions::default()).is_err());
    assert_eq!(verify(folder.path()).unwrap().writers.len(), 2);
}

#[test]
fn full_files_are_closed_and_the_chain_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let options = AuditOptions { file_bytes_max: 4096, files_max: 3, checkpoint_entries: 4, ..AuditOptions::default() };
    for _ in 0..4 {
        let audit = Audit::open(folder.path(), "host", options.clone()).unwrap();
        for n in 0..200 {
            while audit.append(Draft::event("Ticked", &format!("tick {n}"))).is_err() {
                std::thread::yield_now();
            }
        }
    }
    let files: Vec<PathBuf> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    let records = files.iter().filter(|p| p.extension().is_some_and(|e| e == "jsonl")).count();
    assert!((2..=3).contains(&records), "{files:?}");
    let report = verify(folder.path()).unwrap();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.writers[0].last_seq, 800);
    assert!(report.writers[0].entries < 800, "the oldest went");
    let oldest = files.iter().filter(|p| p.file_name().unwrap().to_string_lossy().matches('.').count() == 2).min().unwrap();
    std::fs::remove_file(oldest).unwrap();
    assert!(first_break(folder.path()).contains("is missing"));
}

#[test]
fn numbers_have_no_holes_when_many_write() {
    let folder = tempfile::tempdir().unwrap();
    let audit = Arc::new(open(folder.path()));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let audit = Arc::clone(&audit);
            std::thread::spawn(move || {
                let append = || audit.append(Draft::event("Ticked", "tick"));
                (0..500).map(|_| std::iter::repeat_with(append).find_map(Result::ok).unwrap()).collect::<Vec<_>>()
            })
        })
        .collect();
    let mut given: Vec<u64> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
    given.sort_unstable();
    assert_eq!(given, (1..=4000).collect::<Vec<_>>());
    audit.close();
    assert!(matches!(audit.append(Draft::event("Late", "")), Err(AuditError::Closed)));
    assert_eq!(verify(folder.path()).unwrap().writers[0].entries, 4000);
}

#[test]
fn long_and_strange_texts_are_cut_and_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let audit = open(folder.path());
    audit.append(Draft::event("Odd", &format!("\",\"mac\":\"x\"}}\n{}", "ä".repeat(100_000)))).unwrap();
    drop(audit);
    assert_eq!(lines(folder.path()).len(), 1);
    assert!(lines(folder.path())[0].len() < 4096);
    assert!(verify(folder.path()).unwrap().is_whole());
}

async fn next(frames: &mut (impl futures::Stream<Item = Frame> + Unpin)) -> Option<Frame> {
    tokio::time::timeout(WAIT_MAX, frames.next()).await.expect("a frame must come")
}

async fn next_seq(frames: &mut (impl futures::Stream<Item = Frame> + Unpin)) -> u64 {
    match next(frames).await {
        Some(Frame::Entry(entry)) => entry.seq,
        other => panic!("expected an entry, got {other:?}"),
    }
}

#[tokio::test]
async fn followers_resume_without_loss_or_doubles() {
    let folder = tempfile::tempdir().unwrap();
    let audit = Arc::new(open(folder.path()));
    let writer = Arc::clone(&audit);
    let writing = tokio::task::spawn_blocking(move || {
        for n in 0..500 {
            writer.append(Draft::event("Ticked", &n.to_string())).unwrap();
            writer.append(Draft::intent(&effect())).unwrap();
        }
    });
    let mut seen = vec![0];
    while seen.len() <= 500 {
        let mut frames = audit.follow(seen.last().copied(), None);
        for _ in 0..7.min(501 - seen.len()) {
            seen.push(next_seq(&mut frames).await);
        }
    }
    writing.await.unwrap();
    let events: Vec<u64> = (0..500).map(|n| 2 * n + 1).collect();
    assert_eq!(seen[1..], events, "events only, each once, in order");
}

#[tokio::test]
async fn followers_see_transitions_of_one_agent_only() {
    let folder = tempfile::tempdir().unwrap();
    let audit = open(folder.path());
    let mut frames = audit.follow(None, Some(uid()));
    let transition = |uid| Draft::transition(Key::agent("default", "one"), uid, "Pending", "Running", "AgentRunning");
    audit.append(transition(Uid::new("22222222-bbbb").unwrap())).unwrap();
    let ours = audit.append(transition(uid())).unwrap();
    let Some(Frame::Entry(entry)) = next(&mut frames).await else { panic!("expected an entry") };
    assert_eq!((entry.seq, entry.kind), (ours, EntryKind::Transition));
    assert_eq!((entry.before.as_deref(), entry.after.as_deref()), (Some("Pending"), Some("Running")));
    assert_eq!(audit.events_since(0, Some(&uid())).0.len(), 1);
}

#[tokio::test]
async fn followers_are_told_what_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let options = AuditOptions { recent_max: 10, ..AuditOptions::default() };
    let audit = Audit::open(folder.path(), "host", options.clone()).unwrap();
    for _ in 0..30 {
        audit.append_durable(Draft::event("Ticked", "tick")).await.unwrap();
    }
    for audit in [audit, Audit::open(&folder.path().join("none"), "host", options.clone()).unwrap()] {
        let is_empty = audit.last_seq() == 0;
        let mut frames = audit.follow(Some(0), None);
        assert_eq!(audit.events_since(0, None).1, !is_empty);
        if !is_empty {
            assert!(matches!(next(&mut frames).await, Some(Frame::Gap)));
            assert_eq!(next_seq(&mut frames).await, 21);
            assert_eq!(next_seq(&mut audit.follow(Some(25), None)).await, 26);
        }
    }
    let reopened = Audit::open(folder.path(), "host", options).unwrap();
    assert!(matches!(next(&mut reopened.follow(Some(3), None)).await, Some(Frame::Gap)));
    assert_eq!(next_seq(&mut reopened.follow(Some(29), None)).await, 30, "events survive a restart");
}

#[tokio::test]
async fn slow_followers_are_dropped_and_nobody_waits() {
    let folder = tempfile::tempdir().unwrap();
    let audit = open(folder.path());
    let mut frames = audit.follow(None, None);
    for _ in 0..3000 {
        audit.append(Draft::event("Ticked", "tick")).unwrap();
    }
    audit.append_durable(Draft::event("Last", "")).await.unwrap();
    assert!(matches!(next(&mut frames).await, Some(Frame::Lagged(_))));
    assert!(next(&mut frames).await.is_none());
}

fn start_child(test: &str, folder: &Path) -> std::process::Child {
    let name = format!("audit::{test}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name.as_str(), "--exact", "--ignored", "--nocapture"]).env(CHILD_FOLDER, folder).stdout(Stdio::piped());
    command.spawn().unwrap()
}

#[tokio::test]
#[ignore = "played by a child process of `durable_intents_survive_kill_9`"]
async fn child_appends_until_killed() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER).map(PathBuf::from) else { return };
    let audit = open(&folder);
    loop {
        audit.append(Draft::event("Ticked", "tick")).unwrap();
        let seq = audit.append_durable(Draft::intent(&effect())).await.unwrap();
        println!("ack {seq}");
    }
}

#[test]
fn durable_intents_survive_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 1..=3 {
        let mut child = start_child("child_appends_until_killed", folder.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let seq = |line: String| line.rsplit_once("ack ")?.1.parse::<u64>().ok();
        while acknowledged.len() < 50 * round {
            acknowledged.extend(seq(lines.next().expect("the child writes on")));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(lines.filter_map(seq));
    }
    drop(open(folder.path()));
    let report = verify(folder.path()).unwrap();
    assert!(report.is_whole(), "{report:?}");
    let entries = parsed(folder.path());
    for seq in &acknowledged {
        let entry = &entries[usize::try_from(*seq).unwrap() - 1];
        assert_eq!((entry["seq"].as_u64(), entry["kind"].as_str()), (Some(*seq), Some("intent")));
    }
    assert!(report.writers[0].unknown_outcomes >= acknowledged.len() as u64);
}

#[tokio::test]
#[ignore = "played by a child process of `a_full_disk_loses_no_entry`"]
async fn child_audits_on_a_full_disk() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER).map(PathBuf::from) else { return };
    // SAFETY: ignoring a signal touches no memory; without it the kernel ends the process instead of failing the write.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let audit = open(&folder);
    audit.append_durable(Draft::intent(&effect())).await.unwrap();
    let length = std::fs::metadata(folder.join("host.jsonl")).unwrap().len();
    limit_file_size(Some(length + 100));
    let mut refused = Box::pin(audit.append_durable(Draft::intent(&effect())));
    // Long enough for several tries; the write cannot succeed while the limit stands.
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut refused).await.is_err(), "not durable on a full disk");
    audit.append(Draft::event("Meanwhile", "")).unwrap();
    limit_file_size(None);
    assert_eq!(refused.await.unwrap(), 2);
    audit.append_durable(Draft::event("After", "")).await.unwrap();
    drop(audit);
    let report = verify(&folder).unwrap();
    assert!(report.is_whole() && report.writers[0].entries == 4, "{report:?}");
    println!("survived");
}

fn limit_file_size(bytes: Option<u64>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
}

#[test]
fn a_full_disk_loses_no_entry() {
    let folder = tempfile::tempdir().unwrap();
    let output = start_child("child_audits_on_a_full_disk", folder.path()).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("survived"), "{text}");
}
