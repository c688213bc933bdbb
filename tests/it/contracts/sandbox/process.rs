//! The process driver: the contract, and what only it promises. Needs root and a static `mosaic-init`; it refuses to run without.

use super::{Subject, contract, ended, seen, spec_of, uid, until};
use mosaic::api::names::RunId;
use mosaic::inside::wire::{FILE_IDENTITY, Identity};
use mosaic::plan::observed::{EndCause, SandboxState};
use mosaic::sandbox::folder::RunFolder;
use mosaic::sandbox::init_binary::find_init;
use mosaic::sandbox::{Drivers, SANDBOX_UID, SandboxConfig, SandboxIds};
use mosaic::sandbox::{RunSpec, Sandbox, SandboxError, logs};
use mosaic::tools::ToolRoot;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Who everything in a sandbox is here.
pub fn ids() -> SandboxIds {
    SandboxIds::of(SANDBOX_UID)
}

/// A state folder, and drivers opened on it one after another.
pub struct Host {
    pub state: TempDir,
    pub lease: Duration,
    pub output_bytes_max: u64,
}

impl Host {
    pub fn new() -> Self {
        Self { state: TempDir::new().unwrap(), lease: Duration::from_secs(30), output_bytes_max: 1 << 20 }
    }

    pub fn config(&self) -> SandboxConfig {
        let mut config = SandboxConfig::new(self.state.path(), "installation-1", find_init().unwrap());
        config.lease = self.lease;
        config.output_bytes_max = self.output_bytes_max;
        config
    }

    pub fn open(&self) -> Drivers {
        Drivers::process(self.config()).unwrap()
    }

    pub fn subject<'a>(&'a self, sandbox: &'a Drivers) -> Subject<'a> {
        Subject { sandbox, trees: self.state.path(), owner: ids() }
    }

    pub fn folder(&self, run: &RunId) -> RunFolder {
        RunFolder::of(self.state.path(), run)
    }
}

/// Processes whose command line holds this text, whatever state they are in but zombies.
pub fn processes_with(marker: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != i32::try_from(std::process::id()).unwrap() && String::from_utf8_lossy(&line).contains(marker)
    })
    .collect()
}

/// Mounts of the host at or from a place in this folder.
fn mounts_of(state: &Path) -> Vec<String> {
    let name = state.file_name().unwrap().to_str().unwrap();
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines().filter(|line| line.contains(name)).map(str::to_owned).collect()
}

async fn stop_and_remove(sandbox: &Drivers, run: &RunId) {
    sandbox.stop(run).await.unwrap();
    sandbox.remove(run).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn process_driver_keeps_the_contract() {
    let host = Host::new();
    let sandbox = host.open();
    contract(&host.subject(&sandbox)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_sees_its_sandbox_and_nothing_of_the_host() {
    let host = Host::new();
    let sandbox = host.open();
    let secret = host.state.path().join("token");
    fs::write(&secret, "secret of the host").unwrap();
    let script = format!(
        r#"set -u
        echo "ids $(id -u) $(id -g) $(id -G)"; echo "home $HOME"; echo "cwd $(pwd)"; echo "name $(hostname)"; echo "oom $(cat /proc/self/oom_score_adj)"
        echo "interfaces" $(tail -n +3 /proc/net/dev | cut -d: -f1)
        echo "pids" $(ls /proc | grep -E '^[0-9]+$' | head -1) $(ls /proc | grep -cE '^[0-9]+$')
        grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|SigBlk):' /proc/self/status | tr '\t' ' '
        for file in /usr/x /etc/x /mosaic/x /x /proc/sys/kernel/hostname; do (: > $file) 2>/dev/null && echo "wrote $file"; done
        for file in /workspace/x "$HOME/x" /tmp/x /mosaic/out/x /dev/shm/x; do (: > "$file") || echo "cannot write $file"; done
        ls -d /root /home/* /work {secret} /mosaic/link/* 2>/dev/null
        cat /proc/1/environ /proc/1/fd/* 2>/dev/null; unshare -U true 2>/dev/null && echo "nested namespace"
        kill -9 1 2>/dev/null; ls -A /proc/self/fd | tr '\n' ' '; echo; env | sort"#,
        secret = secret.display()
    );
    let mut spec = host.subject(&sandbox).script("inside-0001", 1, &script);
    spec.task = Some(br#"{"task": 1}"#.to_vec());
    spec.env.insert("EXTRA".to_owned(), "value".to_owned());
    let run = spec.run.clone();
    let end = host.subject(&sandbox).run(spec).await;
    assert_eq!(end.cause, EndCause::Exited(0), "{}", end.output_tail);
    let lines: Vec<&str> = end.output_tail.lines().collect();
    let has = |line: &str| assert!(lines.contains(&line), "no {line:?} in\n{}", end.output_tail);
    let ids = format!("ids {0} {1} {1}", ids().uid, ids().gid);
    for line in [
        ids.as_str(),
        "home /home/agent",
        "cwd /workspace",
        "name mosaic",
        "oom 500",
        "interfaces lo",
        "EXTRA=value",
        "CI=1",
        "LANG=C.UTF-8",
    ] {
        has(line);
    }
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk"] {
        has(&format!("{name}: 0000000000000000"));
    }
    has("NoNewPrivs: 1");
    has("0 1 2 3 ");
    let pids = lines.iter().find(|line| line.starts_with("pids ")).unwrap();
    assert!(!pids.starts_with("pids 1 "), "init is shown");
    assert!(pids.rsplit(' ').next().unwrap().parse::<u32>().unwrap() < 12, "{pids}");
    for word in ["wrote", "cannot write", "nested", "secret", "/root", "CARGO_HOME", "control.sock"] {
        assert!(!end.output_tail.contains(word), "{word:?} in\n{}", end.output_tail);
    }
    assert_eq!(lines.iter().filter(|line| line.starts_with("/home/")).count(), 1);
    let isolation = seen(&sandbox, &run).await.unwrap().isolation;
    let memory = if super::process::ids().unprivileged { "memory:watchdog" } else { "memory:kernel" };
    for name in ["user-namespace", "network-namespace", "no-capabilities", "no-nested-namespaces", memory, "pids:kernel", "disk:watchdog"] {
        assert!(isolation.iter().any(|found| found == name), "{isolation:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn home_base_objects_and_task_are_where_the_contract_says() {
    let host = Host::new();
    let sandbox = host.open();
    let (home, objects) = (host.state.path().join("home"), host.state.path().join("objects"));
    fs::create_dir_all(&home).unwrap();
    fs::create_dir_all(&objects).unwrap();
    std::os::unix::fs::chown(&home, Some(ids().uid), Some(ids().gid)).unwrap();
    fs::write(objects.join("object"), "an object").unwrap();
    let script = "cat /mosaic/task.json /mosaic/base/objects/object; echo kept > ~/kept; ! rm /mosaic/base/objects/object 2>/dev/null";
    let mut spec = host.subject(&sandbox).script("mounts-0001", 1, script);
    (spec.home, spec.base_objects, spec.task) = (Some(home.clone()), Some(objects), Some(b"the task, ".to_vec()));
    let end = host.subject(&sandbox).run(spec).await;
    assert_eq!((end.cause, end.output_tail.as_str()), (EndCause::Exited(0), "the task, an object"));
    assert_eq!(fs::read_to_string(home.join("kept")).unwrap(), "kept\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn tool_roots_are_on_the_path_read_only_and_linked_from_home() {
    let host = Host::new();
    let tool = host.state.path().join("tool");
    fs::create_dir_all(tool.join("bin")).unwrap();
    fs::write(tool.join("bin/greet"), "#!/bin/sh\necho greetings, $GREETING\n").unwrap();
    fs::set_permissions(tool.join("bin/greet"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(tool.join("secret"), "not shown").unwrap();
    let root = ToolRoot {
        name: "greeter".to_owned(),
        host: tool,
        folders: vec!["bin".into()],
        bin: vec!["/mosaic/tools/greeter/bin".into()],
        env: [("GREETING".to_owned(), "friend".to_owned())].into(),
        home_links: vec![(".greeter/programs".into(), "/mosaic/tools/greeter/bin".into())],
    };
    let sandbox = Drivers::process(SandboxConfig { tool_roots: vec![root], ..host.config() }).unwrap();
    let script = "greet; ls ~/.greeter/programs /mosaic/tools/greeter; touch /mosaic/tools/greeter/bin/x 2>/dev/null || echo read-only";
    let end = host.subject(&sandbox).run(host.subject(&sandbox).script("tools-0001", 1, script)).await;
    let lines: Vec<&str> = end.output_tail.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines, ["greetings, friend", "/home/agent/.greeter/programs:", "greet", "/mosaic/tools/greeter:", "bin", "read-only"]);
}

/// Links of this tool's that are anywhere in a folder, through no link.
fn links_to(target: &Path, folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_symlink() && fs::read_link(entry.path()).unwrap() == target {
                found.push(entry.path());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_an_agent_leaves_in_its_home_lead_the_next_start_nowhere() {
    const DESCRIPTORS: std::ops::Range<u32> = 0..24;
    let host = Host::new();
    let (home, tool) = (host.state.path().join("home"), host.state.path().join("tool"));
    fs::create_dir_all(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(ids().uid), Some(ids().gid)).unwrap();
    fs::create_dir_all(tool.join("bin")).unwrap();
    let target = PathBuf::from("/mosaic/tools/greeter/bin");
    let places = DESCRIPTORS.flat_map(|n| [format!(".held-{n}/planted"), format!(".above-{n}/deeper/planted")]);
    let home_links = places.chain([".kept/planted".to_owned()]).map(|place| (place.into(), target.clone())).collect();
    let (name, folders) = ("greeter".to_owned(), vec!["bin".into()]);
    let root = ToolRoot { name, host: tool, folders, bin: Vec::new(), env: [].into(), home_links };
    let sandbox = Drivers::process(SandboxConfig { tool_roots: vec![root], ..host.config() }).unwrap();
    // PID 1 follows them as the sandbox's user, with descriptors that the agent does not have.
    let script = format!(
        "rm -rf ~/.held-* ~/.above-* ~/.kept; mkdir ~/.kept; for n in $(seq 0 {}); do \
         ln -s /proc/self/fd/$n ~/.held-$n; ln -s /proc/self/fd/$n/.. ~/.above-$n; done",
        DESCRIPTORS.end
    );
    for attempt in 1..=2 {
        let mut spec = host.subject(&sandbox).script("planted-01", attempt, &script);
        spec.home = Some(home.clone());
        assert_eq!(host.subject(&sandbox).run(spec.clone()).await.cause, EndCause::Exited(0));
    }
    let mut spec = host.subject(&sandbox).script("planted-01", 3, "test -L ~/.kept/planted");
    spec.home = Some(home.clone());
    let end = host.subject(&sandbox).run(spec).await;
    assert_eq!(end.cause, EndCause::Exited(0), "the tool's own link is not there: {}", end.output_tail);
    let all = links_to(&target, host.state.path());
    let outside: Vec<&PathBuf> = all.iter().filter(|path| !path.starts_with(&home)).collect();
    assert!(outside.is_empty(), "{outside:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn adopted_run_keeps_the_lease_it_was_made_with() {
    let host = Host { lease: Duration::from_secs(2), ..Host::new() };
    let spec = {
        let sandbox = host.open();
        let spec = host.subject(&sandbox).script("old-lease1", 1, "sleep 1000");
        sandbox.ensure(spec.clone()).await.unwrap();
        spec
    };
    // A renewal held for a sixth of this lease would come too late for the run.
    let sandbox = Drivers::process(SandboxConfig { lease: Duration::from_secs(60), ..host.config() }).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(matches!(seen(&sandbox, &spec.run).await.unwrap().state, SandboxState::Running { .. }));
    sandbox.stop(&spec.run).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_left_behind_are_dead_before_the_end_is_seen() {
    let host = Host::new();
    let sandbox = host.open();
    let script =
        "for n in 1 2 3; do setsid sh -c '(while :; do echo 61001.1 >> /workspace/late; sleep 0.001; done) & ' & done; sleep 0.2; exit 0";
    let spec = host.subject(&sandbox).script("leftover-1", 1, script);
    let late = spec.tree.join("late");
    assert_eq!(host.subject(&sandbox).run(spec).await.cause, EndCause::Exited(0));
    let size = fs::metadata(&late).unwrap().len();
    assert!(processes_with("61001.1").is_empty());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fs::metadata(&late).unwrap().len(), size);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_during_the_start_leaves_nothing_at_any_instant() {
    let host = Host::new();
    let sandbox = host.open();
    for round in 0..40_u64 {
        let spec = host.subject(&sandbox).script(&format!("racing-{round:03}"), 1, "setsid sleep 61008.5 & sleep 61008.5; true");
        let stop = async {
            tokio::time::sleep(Duration::from_millis(round)).await;
            sandbox.stop(&spec.run).await
        };
        let (ensured, stopped) = tokio::join!(sandbox.ensure(spec.clone()), stop);
        ensured.unwrap();
        stopped.unwrap();
        // One that came before the start had begun found nothing to stop.
        sandbox.stop(&spec.run).await.unwrap();
        assert_eq!(processes_with("61008.5"), Vec::<i32>::new(), "round {round}");
        assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Stopped, "round {round}");
        sandbox.remove(&spec.run).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_nested_without_end_are_removed() {
    let host = Host::new();
    let sandbox = host.open();
    let script = "mkdir /mosaic/out/d; ln -s /mosaic/out /mosaic/out/loop; chmod 0 /mosaic/out/d";
    let spec = host.subject(&sandbox).script("nested-001", 1, script);
    assert_eq!(host.subject(&sandbox).run(spec.clone()).await.cause, EndCause::Exited(0));
    // Deeper than a path, the stack or the limit of descriptors would allow.
    let mut folder: std::os::fd::OwnedFd = fs::File::open(host.folder(&spec.run).path().join("out/d")).unwrap().into();
    for _ in 0..5000 {
        rustix::fs::mkdirat(&folder, "d", rustix::fs::Mode::RWXU).unwrap();
        folder = rustix::fs::openat(&folder, "d", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    }
    drop(folder);
    sandbox.remove(&spec.run).await.unwrap();
    assert!(!host.folder(&spec.run).path().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn use_of_processor_and_memory_is_told() {
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("usage-0001", 1, "sh -c 'n=0; while [ $n -lt 200000 ]; do n=$((n+1)); done'");
    host.subject(&sandbox).run(spec.clone()).await;
    let usage = sandbox.usage(&spec.run).unwrap().unwrap();
    assert!(usage.user_micros > 10_000 && usage.rss_max_kibibytes > 500, "{usage:?}");
}

#[test]
fn only_a_static_program_is_taken_for_init() {
    let unusable = |path: &Path| mosaic::sandbox::init_binary::check(path).unwrap_err().to_string();
    let folder = TempDir::new().unwrap();
    let script = folder.path().join("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    assert!(unusable(&script).contains("no 64-bit ELF"), "{}", unusable(&script));
    let dynamic = unusable(Path::new("/bin/sh"));
    assert!(dynamic.contains("linked dynamically") && dynamic.contains("cargo rustc --release --bin mosaic-init"), "{dynamic}");
    assert!(unusable(Path::new("/no/such/init")).contains("No such file"));
    assert_eq!(Drivers::process(SandboxConfig::new(folder.path(), "i", "/bin/sh")).err().unwrap().to_string(), dynamic);
}

#[test]
fn text_is_cleaned_of_everything_that_moves_a_terminal() {
    for (raw, clean) in [
        ("plain\ttext\r\nnext", "plain\ttext\nnext"),
        ("\x1b[1;31mred\x1b[0m \x1b]0;title\x07after \x1b]8;;http://x\x1b\\link", "red after link"),
        ("\u{9b}2Jcsi \u{9d}osc\u{9c}st \u{90}dcs\x1b\\end", "csi st end"),
        ("open \x1b]0;never closed\nnext line", "open \nnext line"),
        ("10%\r20%\r", "10%\n20%\n"),
        ("bell\x07 back\x08 nul\0 \u{202e}turned\u{202c} \u{85}", "bell back nul turned "),
        ("cut \x1b[", "cut "),
        ("cut \x1b", "cut "),
    ] {
        assert_eq!(logs::clean(raw), clean, "{raw:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_ends_a_tree_that_ignores_signals() {
    let host = Host::new();
    let sandbox = host.open();
    let script = "trap '' TERM INT HUP; for n in 1 2 3 4 5; do setsid sh -c 'trap \"\" TERM; sleep 61002.5; sleep 61002.5' & done; sleep 61002.5; wait";
    let spec = host.subject(&sandbox).script("stubborn-1", 1, script);
    sandbox.ensure(spec.clone()).await.unwrap();
    until("six sleepers", || processes_with("61002.5").len() >= 11).await;
    sandbox.stop(&spec.run).await.unwrap();
    assert_eq!(processes_with("61002.5"), Vec::<i32>::new());
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn reopened_driver_adopts_what_runs() {
    let host = Host { lease: Duration::from_secs(4), ..Host::new() };
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("adopted-01", 1, "while [ ! -e /workspace/go ]; do sleep 0.02; done; exit 23");
    sandbox.ensure(spec.clone()).await.unwrap();
    let before = seen(&sandbox, &spec.run).await.unwrap();
    drop(sandbox);
    // Shorter than the lease: nothing may be killed.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let sandbox = host.open();
    let after = seen(&sandbox, &spec.run).await.unwrap();
    assert_eq!((before.id, &before.isolation), (after.id, &after.isolation));
    assert!(matches!(after.state, SandboxState::Running { .. }), "{:?}", after.state);
    // Longer than the lease, counted from the first driver: the second renews it.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(matches!(seen(&sandbox, &spec.run).await.unwrap().state, SandboxState::Running { .. }));
    sandbox.ensure(spec.clone()).await.unwrap();
    fs::write(spec.tree.join("go"), "").unwrap();
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Exited(23));
}

#[tokio::test(flavor = "multi_thread")]
async fn sandbox_whose_controller_stays_away_ends_itself() {
    let host = Host { lease: Duration::from_secs(2), ..Host::new() };
    let sandbox = host.open();
    let script = "trap '' TERM; setsid sh -c 'sleep 61003.5; true' & sleep 61003.5; true";
    let spec = host.subject(&sandbox).script("abandoned-1", 1, script);
    sandbox.ensure(spec.clone()).await.unwrap();
    until("it runs", || processes_with("61003.5").len() >= 4).await;
    drop(sandbox);
    let gone = Instant::now();
    until("everything is gone", || processes_with("61003.5").is_empty()).await;
    assert!(gone.elapsed() < host.lease + Duration::from_secs(5), "{:?}", gone.elapsed());
    let sandbox = host.open();
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::LeaseExpired);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_capped_and_its_offsets_are_absolute() {
    let host = Host { output_bytes_max: 64 * 1024, ..Host::new() };
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("flood-0001", 1, "seq 1 100000; printf 'red \\033[31mword\\033[0m \\377 end'");
    let end = host.subject(&sandbox).run(spec.clone()).await;
    assert_eq!(end.cause, EndCause::Exited(0));
    assert!(end.output_tail.ends_with("99999\n100000\nred word \u{fffd} end"), "{:?}", end.output_tail);
    let whole: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    let total = whole.len() as u64 + "red \x1b[31mword\x1b[0m ? end".len() as u64;
    let read = || logs::read(host.state.path(), &spec.run, 0, usize::MAX).unwrap();
    // The launcher is the last to go.
    until("the log has ended", || read().ended).await;
    let chunk = read();
    assert_eq!((chunk.from, chunk.next, chunk.dropped), (total - 64 * 1024, total, total - 64 * 1024));
    let kept = usize::try_from(chunk.from).unwrap();
    assert!(chunk.bytes.starts_with(&whole.as_bytes()[kept..]));
    let found = logs::list(host.state.path(), &spec.run.uid).unwrap();
    assert_eq!((found.len(), &found[0].run, found[0].end), (1, &spec.run, total));
    sandbox.remove(&spec.run).await.unwrap();
    assert_eq!(logs::tail(host.state.path(), &spec.run, 3).unwrap(), "end");
    let files = fs::metadata(host.state.path().join("logs").join(spec.run.uid.as_str())).unwrap();
    assert!(files.is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn following_a_log_sees_every_byte_once() {
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("follow-001", 1, "for n in $(seq 1 300); do echo line $n; done; sleep 0.2; echo last");
    sandbox.ensure(spec.clone()).await.unwrap();
    let (mut text, mut from) = (Vec::new(), 0);
    let give_up = Instant::now() + super::PATIENCE;
    loop {
        let chunk = logs::read(host.state.path(), &spec.run, from, 97).unwrap();
        text.extend_from_slice(&chunk.bytes);
        from = chunk.next;
        if chunk.ended {
            break;
        }
        assert!(Instant::now() < give_up);
        if chunk.bytes.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let expected: String = (1..=300).map(|n| format!("line {n}\n")).collect();
    assert_eq!(String::from_utf8(text).unwrap(), format!("{expected}last\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_sandboxes_at_once_leave_nothing_behind() {
    let host = Host::new();
    let sandbox = host.open();
    let specs: Vec<RunSpec> = (0..10)
        .map(|n| {
            host.subject(&sandbox).script(&format!("parallel-{n}"), 1, &format!("echo {n} > /workspace/n; sleep 0.5; sleep 61004.{n}"))
        })
        .collect();
    futures::future::join_all(specs.iter().map(|spec| sandbox.ensure(spec.clone()))).await.into_iter().for_each(Result::unwrap);
    assert_eq!(sandbox.observe(None).await.unwrap().len(), 10);
    until("all have written", || {
        specs.iter().enumerate().all(|(n, s)| fs::read_to_string(s.tree.join("n")).is_ok_and(|t| t == format!("{n}\n")))
    })
    .await;
    assert_eq!(mounts_of(host.state.path()), Vec::<String>::new(), "a mount of a sandbox is seen on the host");
    for stopped in futures::future::join_all(specs.iter().map(|spec| sandbox.stop(&spec.run))).await {
        stopped.unwrap();
    }
    assert_eq!(processes_with("61004."), Vec::<i32>::new());
    for spec in &specs {
        sandbox.remove(&spec.run).await.unwrap();
    }
    assert!(sandbox.observe(None).await.unwrap().is_empty());
    let left: Vec<PathBuf> =
        fs::read_dir(host.state.path().join("runs")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    assert_eq!(mounts_of(host.state.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pid_that_is_somebody_elses_now_is_never_killed() {
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("stale-pid-1", 1, "exit 0");
    assert_eq!(host.subject(&sandbox).run(spec.clone()).await.cause, EndCause::Exited(0));
    drop(sandbox);
    let mut bystander = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let folder = host.folder(&spec.run);
    let identity: Identity = folder.read(FILE_IDENTITY).unwrap().unwrap();
    let pid = i32::try_from(bystander.id()).unwrap();
    folder.write(FILE_IDENTITY, &Identity { pid, ..identity }).unwrap();
    let sandbox = host.open();
    stop_and_remove(&sandbox, &spec.run).await;
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn init_killed_from_outside_is_lost_and_a_dead_launcher_changes_nothing() {
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("launcher-1", 1, "while [ ! -e /workspace/go ]; do sleep 0.02; done; exit 5");
    sandbox.ensure(spec.clone()).await.unwrap();
    kill(host.folder(&spec.run).read::<Identity>("launcher.json").unwrap().unwrap().pid);
    assert!(matches!(seen(&sandbox, &spec.run).await.unwrap().state, SandboxState::Running { .. }));
    fs::write(spec.tree.join("go"), "").unwrap();
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Exited(5));
    // Nobody but us removes its control groups now.
    sandbox.remove(&spec.run).await.unwrap();

    let spec = host.subject(&sandbox).script("launcher-1", 2, "sleep 61005.5; true");
    sandbox.ensure(spec.clone()).await.unwrap();
    kill(host.folder(&spec.run).identity().unwrap().unwrap().pid);
    let end = ended(&sandbox, &spec.run).await;
    assert!(matches!(&end.cause, EndCause::Lost(text) if text.contains("signal 9")), "{:?}", end.cause);
    assert_eq!(processes_with("61005.5"), Vec::<i32>::new());
}

pub fn kill(pid: i32) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_without_time_to_look_never_says_gone_of_what_lives() {
    let host = Host::new();
    let hasty = SandboxConfig { stop_timeout: Duration::ZERO, ..host.config() };
    let sandbox = Drivers::process(hasty).unwrap();
    let script = "for n in 1 2 3 4 5 6 7 8 9; do setsid sleep 61007.5 & done; wait";
    let spec = host.subject(&sandbox).script("hasty-0001", 1, script);
    sandbox.ensure(spec.clone()).await.unwrap();
    until("it runs", || processes_with("61007.5").len() >= 9).await;
    match sandbox.stop(&spec.run).await {
        Ok(()) => assert_eq!(processes_with("61007.5"), Vec::<i32>::new()),
        Err(e) => assert!(matches!(e, SandboxError::Unverified { .. }), "{e}"),
    }
    drop(sandbox);
    let sandbox = host.open();
    sandbox.stop(&spec.run).await.unwrap();
    assert_eq!(processes_with("61007.5"), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_a_run_is_lost() {
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("rebooted-1", 1, "sleep 1000");
    sandbox.ensure(spec.clone()).await.unwrap();
    let folder = host.folder(&spec.run);
    let identity: Identity = folder.read(FILE_IDENTITY).unwrap().unwrap();
    let other_boot = Identity { boot_id: "another boot".to_owned(), ..identity.clone() };
    folder.write(FILE_IDENTITY, &other_boot).unwrap();
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Lost("host rebooted".to_owned()));
    kill(identity.pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn fences_and_foreign_runs_survive_a_restart() {
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("fences-001", 3, "exit 0");
    host.subject(&sandbox).run(spec.clone()).await;
    sandbox.remove(&spec.run).await.unwrap();
    drop(sandbox);
    let sandbox = host.open();
    for (attempt, epoch) in [(2, 7), (4, 6)] {
        let mut older = spec_of("fences-001", attempt, spec.tree.clone(), &["/bin/true"]);
        older.epoch = mosaic::api::names::Epoch(epoch);
        let refused = sandbox.ensure(older).await;
        assert!(matches!(refused, Err(SandboxError::Fenced(_))), "{refused:?}");
    }
    let spec = host.subject(&sandbox).script("fences-001", 3, "sleep 61006.5");
    sandbox.ensure(spec.clone()).await.unwrap();
    let other = Drivers::process(SandboxConfig { installation: "installation-2".to_owned(), ..host.config() }).unwrap();
    assert!(other.observe(None).await.unwrap().is_empty());
    stop_and_remove(&sandbox, &spec.run).await;
    assert!(uid("fences-001") == spec.run.uid && !Path::new(&host.folder(&spec.run).path()).exists());
}
