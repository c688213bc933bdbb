//! What holds for every driver. The offline tests run it on processes, the live ones (`tests/live`) on containers.

use mosaic::api::agent::Driver;
use mosaic::api::names::{Attempt, Epoch, Role, RunId, Uid};
use mosaic::api::validate::Limits;
use mosaic::plan::observed::{EndCause, RunEnd, SandboxSeen, SandboxState};
use mosaic::sandbox::SandboxIds;
use mosaic::sandbox::{RunSpec, Sandbox, SandboxError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A driver under test, and a place for trees that its sandboxes can write to.
pub struct Subject<'a> {
    pub sandbox: &'a dyn Sandbox,
    pub trees: &'a Path,
    pub owner: SandboxIds,
}

impl Subject<'_> {
    /// A spec that runs a script in an empty tree.
    pub fn script(&self, uid: &str, attempt: u32, script: &str) -> RunSpec {
        self.command(uid, attempt, &["/bin/sh", "-c", script])
    }

    /// A spec that runs a program in an empty tree.
    pub fn command(&self, uid: &str, attempt: u32, args: &[&str]) -> RunSpec {
        let tree = self.trees.join(format!("{uid}-{attempt}"));
        std::fs::create_dir_all(&tree).unwrap();
        std::os::unix::fs::chown(&tree, Some(self.owner.uid), Some(self.owner.gid)).unwrap();
        spec_of(uid, attempt, tree, args)
    }

    /// Runs to the end.
    pub async fn run(&self, spec: RunSpec) -> RunEnd {
        let run = spec.run.clone();
        self.sandbox.ensure(spec).await.unwrap();
        ended(self.sandbox, &run).await
    }
}

pub fn uid(text: &str) -> Uid {
    Uid::new(text).unwrap()
}

pub fn spec_of(name: &str, attempt: u32, tree: PathBuf, args: &[&str]) -> RunSpec {
    RunSpec {
        run: RunId { uid: uid(name), attempt: Attempt(attempt), role: Role::Agent },
        epoch: Epoch(7),
        driver: Driver::Auto,
        image: None,
        runtime_class: None,
        agent: format!("default/{name}"),
        tree,
        home: None,
        base_objects: None,
        task: None,
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: BTreeMap::new(),
        deadline: None,
        limits: Limits { cpu_millis: 1000, memory_bytes: 512 << 20, pids_max: 100, disk_bytes: 1 << 30 },
    }
}

/// Looks at one run.
pub async fn seen(sandbox: &dyn Sandbox, run: &RunId) -> Option<SandboxSeen> {
    sandbox.observe(Some(&run.uid)).await.unwrap().into_iter().find(|seen| seen.run == *run)
}

/// Waits for the end of a run.
pub async fn ended(sandbox: &dyn Sandbox, run: &RunId) -> RunEnd {
    let until = Instant::now() + PATIENCE;
    loop {
        match seen(sandbox, run).await.map(|seen| seen.state) {
            Some(SandboxState::Ended(end)) => return end,
            state => assert!(Instant::now() < until, "{run} did not end: {state:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Everything that holds for every driver.
pub async fn contract(subject: &Subject<'_>) {
    ensure_twice_runs_once(subject).await;
    ends_are_told_apart(subject).await;
    unknown_runs_are_gone(subject).await;
    running_is_not_removed_and_stopped_is(subject).await;
    deadline_ends_a_run(subject).await;
    older_is_refused(subject).await;
    results_are_read_and_hostile_ones_are_not(subject).await;
    progress_is_seen_while_it_runs(subject).await;
}

async fn ensure_twice_runs_once(subject: &Subject<'_>) {
    let spec = subject.script("idempotent-1", 1, "echo once >> /workspace/count; sleep 0.3; exit 3");
    let (first, second) = tokio::join!(subject.sandbox.ensure(spec.clone()), subject.sandbox.ensure(spec.clone()));
    first.unwrap();
    second.unwrap();
    assert_eq!(ended(subject.sandbox, &spec.run).await.cause, EndCause::Exited(3));
    subject.sandbox.ensure(spec.clone()).await.unwrap();
    assert_eq!(ended(subject.sandbox, &spec.run).await.cause, EndCause::Exited(3));
    assert_eq!(std::fs::read_to_string(spec.tree.join("count")).unwrap(), "once\n");
    assert_eq!(subject.sandbox.observe(Some(&spec.run.uid)).await.unwrap().len(), 1);
}

async fn ends_are_told_apart(subject: &Subject<'_>) {
    assert_eq!(subject.run(subject.script("exit-code-1", 1, "exit 0")).await.cause, EndCause::Exited(0));
    let end = subject.run(subject.script("exit-code-1", 2, "echo some words; echo more >&2; exit 41")).await;
    assert_eq!((end.cause, end.output_tail.as_str()), (EndCause::Exited(41), "some words\nmore\n"));
    assert_eq!(subject.run(subject.script("exit-code-1", 3, "kill -SEGV $$")).await.cause, EndCause::Signaled(11));
    for (attempt, program) in [(4, "no-such-program"), (5, "/workspace")] {
        let end = subject.run(subject.command("exit-code-1", attempt, &[program])).await;
        assert!(matches!(&end.cause, EndCause::CannotExecute(text) if text.contains(program)), "{:?}", end.cause);
    }
}

async fn unknown_runs_are_gone(subject: &Subject<'_>) {
    let run = subject.script("never-made-1", 1, "").run;
    subject.sandbox.stop(&run).await.unwrap();
    subject.sandbox.remove(&run).await.unwrap();
    assert!(seen(subject.sandbox, &run).await.is_none());
}

async fn running_is_not_removed_and_stopped_is(subject: &Subject<'_>) {
    let spec = subject.script("stopped-1", 1, "trap '' TERM INT HUP; while :; do sleep 1; done");
    subject.sandbox.ensure(spec.clone()).await.unwrap();
    assert!(matches!(seen(subject.sandbox, &spec.run).await.unwrap().state, SandboxState::Running { .. }));
    assert!(matches!(subject.sandbox.remove(&spec.run).await, Err(SandboxError::Failed { .. })));
    subject.sandbox.stop(&spec.run).await.unwrap();
    let end = ended(subject.sandbox, &spec.run).await;
    assert_eq!(end.cause, EndCause::Stopped);
    subject.sandbox.stop(&spec.run).await.unwrap();
    // A start that comes late finds the tombstone.
    subject.sandbox.ensure(spec.clone()).await.unwrap();
    assert_eq!(ended(subject.sandbox, &spec.run).await.cause, EndCause::Stopped);
    subject.sandbox.remove(&spec.run).await.unwrap();
    subject.sandbox.remove(&spec.run).await.unwrap();
    assert!(seen(subject.sandbox, &spec.run).await.is_none());
}

async fn deadline_ends_a_run(subject: &Subject<'_>) {
    let mut spec = subject.script("deadline-1", 1, "sleep 1000");
    spec.deadline = Some(Duration::from_millis(300));
    assert_eq!(subject.run(spec).await.cause, EndCause::TimedOut);
}

async fn older_is_refused(subject: &Subject<'_>) {
    assert_eq!(subject.run(subject.script("fenced-1", 5, "exit 0")).await.cause, EndCause::Exited(0));
    let older = subject.sandbox.ensure(subject.script("fenced-1", 4, "exit 0")).await;
    assert!(matches!(older, Err(SandboxError::Fenced(_))), "{older:?}");
    let mut spec = subject.script("fenced-1", 6, "exit 0");
    spec.epoch = Epoch(6);
    let older = subject.sandbox.ensure(spec).await;
    assert!(matches!(older, Err(SandboxError::Fenced(_))), "{older:?}");
    assert_eq!(subject.sandbox.observe(Some(&uid("fenced-1"))).await.unwrap().len(), 1);
}

async fn results_are_read_and_hostile_ones_are_not(subject: &Subject<'_>) {
    let good = r#"echo '{"summary": "done\u001b[31m", "commitMessage": "Fix it", "more": 1}' > /mosaic/out/result.json"#;
    let result = subject.run(subject.script("result-1", 1, good)).await.result.unwrap();
    assert_eq!((result.summary.as_deref(), result.commit_message.as_deref()), (Some("done"), Some("Fix it")));
    let hostile = [
        "ln -s /etc/passwd /mosaic/out/result.json",
        "echo '{\"summary\": \"linked\"}' > /mosaic/out/other; ln -s other /mosaic/out/result.json",
        "mkfifo /mosaic/out/result.json",
        "mkdir /mosaic/out/result.json",
        "head -c 100000 /dev/zero | tr '\\0' ' ' > /mosaic/out/result.json; echo '{}' >> /mosaic/out/result.json",
        "echo not json > /mosaic/out/result.json",
        "true",
    ];
    for (attempt, script) in (2..).zip(hostile) {
        let end = subject.run(subject.script("result-1", attempt, script)).await;
        assert_eq!((end.cause, end.result), (EndCause::Exited(0), None), "{script}");
    }
}

async fn progress_is_seen_while_it_runs(subject: &Subject<'_>) {
    let script = r#"echo '{"progress": {"fraction": 0.25}}'; echo '{"progress": {"fraction": 0.5, "message": "half of it"}}'; echo words; sleep 1000"#;
    let spec = subject.script("progress-1", 1, script);
    subject.sandbox.ensure(spec.clone()).await.unwrap();
    let give_up = Instant::now() + PATIENCE;
    loop {
        let state = seen(subject.sandbox, &spec.run).await.unwrap().state;
        let SandboxState::Running { since, last_sign_at, progress } = state else { panic!("{state:?}") };
        assert!(last_sign_at >= since);
        if progress == Some((Some(0.5), Some("half of it".to_owned()))) {
            break;
        }
        assert!(Instant::now() < give_up, "{progress:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    subject.sandbox.stop(&spec.run).await.unwrap();
}
