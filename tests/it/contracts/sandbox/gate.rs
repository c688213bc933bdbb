//! The start gate and the lease as init keeps them, with a launcher started by hand and a controller that is a few lines of the test.

use super::process::{Host, processes_with};
use super::{seen, spec_of, until};
use mosaic::api::agent::Driver;
use mosaic::inside::output;
use mosaic::inside::system;
use mosaic::inside::wire::{
    ExitCause, ExitReport, FILE_EXIT, FILE_IDENTITY, FILE_SPEC, FILE_STOPPED, FILE_WAIT, FOLDER_CONTROL, LaunchSpec, SOCKET_CONTROL,
    WaitReport,
};
use mosaic::plan::observed::{EndCause, SandboxState};
use mosaic::sandbox::SANDBOX_UID;
use mosaic::sandbox::folder::{RunFolder, StoredSpec, log_path, short};
use mosaic::sandbox::init_binary::find_init;
use mosaic::sandbox::link::Standing;
use mosaic::sandbox::runs::watchdog::WatchSpec;
use mosaic::sandbox::{Drivers, RunSpec, Sandbox, SandboxConfig};
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Writes the intent of a run as the driver does.
fn intent(host: &Host, name: &str, script: &str) -> RunSpec {
    let tree = host.state.path().join(name);
    fs::create_dir_all(&tree).unwrap();
    std::os::unix::fs::chown(&tree, Some(SANDBOX_UID), Some(SANDBOX_UID)).unwrap();
    let spec = spec_of(name, 1, tree, &["/bin/sh", "-c", script]);
    let folder = host.folder(&spec.run);
    folder.make(SANDBOX_UID, SANDBOX_UID).unwrap();
    let log = log_path(host.state.path(), &spec.run.uid, &short(&spec.run));
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    output::format(&File::create(&log).unwrap(), 65536, &serde_json::to_vec(&spec.run).unwrap()).unwrap();
    let launch = LaunchSpec {
        run: spec.run.to_string(),
        epoch: spec.epoch.0,
        tree: spec.tree.clone(),
        home: None,
        base_objects: None,
        tools: Vec::new(),
        home_links: Vec::new(),
        search_path: "/usr/bin".to_owned(),
        args: spec.args.clone(),
        env: spec.env.clone(),
        deadline_millis: None,
        uid: SANDBOX_UID,
        gid: SANDBOX_UID,
        unprivileged: false,
        lease_millis: u64::try_from(host.lease.as_millis()).unwrap(),
        allow_missing: Vec::new(),
        tmp_bytes_max: 1 << 20,
        contained: false,
        pod: false,
        limits: mosaic::inside::limits::LimitSpec::default(),
        log,
    };
    let stored = StoredSpec {
        run: spec.run.clone(),
        epoch: spec.epoch,
        installation: "installation-1".to_owned(),
        driver: Driver::Process,
        agent: spec.agent.clone(),
        launch,
        watch: WatchSpec::default(),
        limits: spec.limits.clone(),
        container: None,
    };
    folder.write(FILE_SPEC, &stored).unwrap();
    spec
}

/// Starts the launcher as the driver does.
fn launch(folder: &RunFolder) {
    let (lock, folder) = (folder.open_lock().unwrap(), File::open(folder.path()).unwrap());
    system::lock_file(lock.as_fd()).unwrap();
    let mut command = Command::new(find_init().unwrap());
    command.arg("launch").stdin(folder).stdout(lock);
    unsafe {
        command.pre_exec(|| {
            // A careful administrator's; it must change nothing inside.
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
            Ok(())
        });
    }
    assert!(command.status().unwrap().success());
}

fn listen(folder: &RunFolder) -> UnixListener {
    let path = folder.path().join(FOLDER_CONTROL).join(SOCKET_CONTROL);
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    listener
}

/// Answers each request with the next body; the requests as they came.
fn answer(listener: &UnixListener, bodies: &[&str]) -> Vec<String> {
    let mut requests = Vec::new();
    for body in bodies {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 8192];
        let length = stream.read(&mut request).unwrap();
        requests.push(String::from_utf8_lossy(&request[..length]).into_owned());
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    }
    requests
}

async fn report(folder: &RunFolder) -> ExitReport {
    until("init reports", || folder.read::<ExitReport>(FILE_EXIT).unwrap().is_some()).await;
    until("everything has let go of the lock", || !folder.is_held().unwrap()).await;
    folder.read(FILE_EXIT).unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_agent_runs_before_the_grant() {
    let host = Host { lease: std::time::Duration::from_secs(1), ..Host::new() };
    let spec = intent(&host, "ungranted-1", "echo ran > /workspace/ran");
    let folder = host.folder(&spec.run);
    launch(&folder);
    until("init has an identity", || folder.identity().unwrap().is_some()).await;
    let report = report(&folder).await;
    assert!(matches!(&report.cause, ExitCause::NotStarted(text) if text.contains("nobody answered")), "{report:?}");
    assert!(!spec.tree.join("ran").exists());
    let sandbox = host.open();
    let state = seen(&sandbox, &spec.run).await.unwrap().state;
    assert!(matches!(&state, SandboxState::Ended(end) if matches!(end.cause, EndCause::NotStarted(_))), "{state:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_run_is_granted_by_the_next_controller() {
    let host = Host::new();
    let script = "test \"$(id -un)\" = agent && cat /etc/hosts /etc/nsswitch.conf >/dev/null && echo x > ~/x && umask > /workspace/ran";
    let spec = intent(&host, "waiting-01", script);
    launch(&host.folder(&spec.run));
    until("init has an identity", || host.folder(&spec.run).identity().unwrap().is_some()).await;
    assert!(!spec.tree.join("ran").exists());
    let sandbox = host.open();
    assert_eq!(super::ended(&sandbox, &spec.run).await.cause, EndCause::Exited(0));
    assert_eq!(fs::read_to_string(spec.tree.join("ran")).unwrap(), "0022\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_begins_only_where_somebody_leads_and_has_not_lost_its_agent() {
    let host = Host::new();
    let [ours, lost] = ["gated-001", "gated-002"].map(|name| {
        let spec = intent(&host, name, "echo ran > /workspace/ran");
        launch(&host.folder(&spec.run));
        spec
    });
    let sandbox = Drivers::process(SandboxConfig { is_gated: true, ..host.config() }).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    sandbox.ask_before_grants(Arc::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Standing::Waits
    }));
    until("both ask again", || asked.load(Ordering::SeqCst) >= 6).await;
    assert!(!ours.tree.join("ran").exists() && !lost.tree.join("ran").exists(), "nobody leads yet");
    let uid = lost.run.uid.clone();
    sandbox.ask_before_grants(Arc::new(move |of| if of == Some(&uid) { Standing::Lost } else { Standing::Leads }));
    assert_eq!(super::ended(&sandbox, &ours.run).await.cause, EndCause::Exited(0));
    let cause = super::ended(&sandbox, &lost.run).await.cause;
    assert!(matches!(&cause, EndCause::NotStarted(why) if why.contains("taken its agent over")), "{cause:?}");
    assert!(ours.tree.join("ran").exists() && !lost.tree.join("ran").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstoned_run_is_never_granted() {
    let host = Host::new();
    for (name, before) in [("tombstone-1", true), ("tombstone-2", false)] {
        let spec = intent(&host, name, "echo ran > /workspace/ran");
        let folder = host.folder(&spec.run);
        if before {
            fs::write(folder.path().join(FILE_STOPPED), "").unwrap();
        }
        launch(&folder);
        if before {
            until("the launcher gives up", || folder.read::<WaitReport>(FILE_WAIT).unwrap().is_some()).await;
            assert!(!folder.path().join(FILE_IDENTITY).exists());
        } else {
            until("init has an identity", || folder.identity().unwrap().is_some()).await;
            fs::write(folder.path().join(FILE_STOPPED), "").unwrap();
        }
        let sandbox = host.open();
        assert_eq!(super::ended(&sandbox, &spec.run).await.cause, EndCause::Stopped, "{name}");
        assert!(!spec.tree.join("ran").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn intent_without_a_launcher_was_never_started() {
    let host = Host::new();
    let spec = intent(&host, "no-launcher", "true");
    fs::create_dir_all(host.state.path().join("runs").join("0123456789abcdef")).unwrap();
    let sandbox = host.open();
    let state = seen(&sandbox, &spec.run).await.unwrap().state;
    assert!(matches!(&state, SandboxState::Ended(end) if matches!(end.cause, EndCause::NotStarted(_))), "{state:?}");
    assert!(!host.state.path().join("runs").join("0123456789abcdef").exists());
    sandbox.remove(&spec.run).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn launcher_that_cannot_prepare_says_why() {
    let host = Host::new();
    let sandbox = host.open();
    let mut spec = host.subject(&sandbox).script("no-tree-01", 1, "true");
    spec.tree = host.state.path().join("not there");
    let end = host.subject(&sandbox).run(spec).await;
    assert!(matches!(&end.cause, EndCause::NotStarted(text) if text.contains("not there")), "{:?}", end.cause);
}

#[tokio::test(flavor = "multi_thread")]
async fn init_takes_no_word_of_an_older_leader() {
    let host = Host { lease: std::time::Duration::from_millis(1500), ..Host::new() };
    let spec = intent(&host, "old-leader1", "echo ran > /workspace/ran");
    let listener = listen(&host.folder(&spec.run));
    launch(&host.folder(&spec.run));
    answer(&listener, &[r#"{"granted": true, "reason": "", "epoch": 6}"#]);
    let cause = report(&host.folder(&spec.run)).await.cause;
    assert!(matches!(&cause, ExitCause::NotStarted(text) if text.contains("older")), "{cause:?}");
    assert!(!spec.tree.join("ran").exists());

    let spec = intent(&host, "old-leader2", "sleep 61010.5; true");
    let listener = listen(&host.folder(&spec.run));
    launch(&host.folder(&spec.run));
    // Its words are late ones: neither a renewal nor a stop of theirs counts, so that the lease runs out.
    let words = [r#"{"granted": true, "reason": "", "epoch": 8}"#, r#"{"word": "stop", "epoch": 7}"#, r#"{"word": "renew", "epoch": 7}"#];
    let requests = answer(&listener, &words);
    assert!(requests[0].starts_with("POST /v1/grant") && requests[1].starts_with("POST /v1/renew"));
    drop(listener);
    assert_eq!(report(&host.folder(&spec.run)).await.cause, ExitCause::LeaseExpired);
    assert_eq!(processes_with("61010.5"), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn word_to_stop_over_the_link_ends_everything() {
    let host = Host::new();
    let spec = intent(&host, "kill-word1", "trap '' TERM; setsid sleep 61011.5 & sleep 61011.5; true");
    let listener = listen(&host.folder(&spec.run));
    launch(&host.folder(&spec.run));
    answer(&listener, &[r#"{"granted": true, "reason": "", "epoch": 7}"#, r#"{"word": "renew", "epoch": 7}"#]);
    until("it runs", || processes_with("61011.5").len() >= 3).await;
    answer(&listener, &[r#"{"word": "stop", "epoch": 7}"#]);
    assert_eq!(report(&host.folder(&spec.run)).await.cause, ExitCause::Stopped);
    assert_eq!(processes_with("61011.5"), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nothing_over_the_link() {
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("stranger-1", 1, "sleep 1000");
    sandbox.ensure(spec.clone()).await.unwrap();
    let socket = host.folder(&spec.run).path().join(FOLDER_CONTROL).join(SOCKET_CONTROL);
    let ask = |path: &str, body: &str| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let grant = format!(r#"{{"run": "{}", "epoch": 7, "secret": "mine", "isolation": []}}"#, spec.run);
    let refused = ask("/v1/grant", &grant);
    assert!(refused.contains(r#""granted":false"#) && refused.contains("not the init of this run"), "{refused}");
    assert!(ask("/v1/renew", r#"{"secret": "mine"}"#).starts_with("HTTP/1.1 403 "));
    assert!(ask("/v1/renew", "{").starts_with("HTTP/1.1 400 "));
    assert!(ask("/v1/other", "{}").starts_with("HTTP/1.1 404 "));
    sandbox.stop(&spec.run).await.unwrap();
}
