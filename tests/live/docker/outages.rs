//! An engine that is killed, hangs or is started anew while sandboxes run: an engine of the test's own, so that nobody else is disturbed.

use super::Host;
use super::crash::alive;
use crate::contract::{ended, seen, until};
use crate::engine::{BUSYBOX, OwnEngine, engine};
use mosaic::api::agent::Driver;
use mosaic::api::condition::reason;
use mosaic::plan::observed::{EndCause, SandboxState};
use mosaic::sandbox::docker::DockerConfig;
use mosaic::sandbox::{Drivers, Sandbox, SandboxError};
use std::time::{Duration, Instant};

fn open(host: &Host, own: &OwnEngine) -> Drivers {
    let docker = DockerConfig { host: Some(own.host()), image: BUSYBOX.to_owned(), ..DockerConfig::default() };
    host.open_untested(docker)
}

async fn own_engine(test: &str, keeps: bool) -> Option<OwnEngine> {
    // The image is made with the usual one's help.
    engine(test).await?;
    match OwnEngine::start(keeps).await {
        Ok(own) => Some(own),
        Err(why) => {
            crate::skip::skip(test, &why);
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_outlive_their_engine_and_their_controller() {
    let Some(mut own) = own_engine("docker::outages::sandboxes_outlive_their_engine_and_their_controller", true).await else { return };
    let host = Host::new();
    let sandbox = open(&host, &own);
    let subject = host.subject(&sandbox);
    let running = subject.script("outlives-1", 1, "while [ ! -e go ]; do sleep 0.05; done; echo went; exit 3");
    let killed = subject.script("outlives-2", 1, "trap '' TERM; sleep 1000");
    let dead = subject.script("outlives-3", 1, "sleep 1000");
    for spec in [&running, &killed, &dead] {
        sandbox.ensure(spec.clone()).await.unwrap();
    }
    own.kill();
    // The kernel still shows them, and new ones have to wait.
    for spec in [&running, &killed, &dead] {
        assert!(matches!(seen(&sandbox, &spec.run).await.unwrap().state, SandboxState::Running { .. }));
    }
    let refused = sandbox.ensure(subject.script("outlives-4", 1, "exit 0")).await.unwrap_err();
    assert_eq!(refused.reason(), reason::ENGINE_UNAVAILABLE, "{refused}");
    let mut process = subject.script("outlives-5", 1, "exit 6");
    process.driver = Driver::Process;
    assert_eq!(subject.run(process).await.cause, EndCause::Exited(6));
    // A kill needs no engine.
    let started = Instant::now();
    sandbox.stop(&killed.run).await.unwrap();
    println!("stopped without an engine after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(ended(&sandbox, &killed.run).await.cause, EndCause::Stopped);
    // Nor does an end.
    let pid = host.folder(&dead.run).identity().unwrap().unwrap().pid;
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    assert!(matches!(ended(&sandbox, &dead.run).await.cause, EndCause::Lost(_)));
    // What the engine has cannot be taken away meanwhile, and is not forgotten.
    assert!(matches!(sandbox.remove(&killed.run).await, Err(SandboxError::Failed { .. })));
    drop(sandbox);
    let sandbox = open(&host, &own);
    assert!(matches!(seen(&sandbox, &running.run).await.unwrap().state, SandboxState::Running { .. }));
    std::fs::write(running.tree.join("go"), "").unwrap();
    let end = ended(&sandbox, &running.run).await;
    assert_eq!((end.cause, end.output_tail.as_str()), (EndCause::Exited(3), "went\n"));
    own.up().await.unwrap();
    for seen in sandbox.observe(None).await.unwrap() {
        sandbox.stop(&seen.run).await.unwrap();
        sandbox.remove(&seen.run).await.unwrap();
    }
    assert_eq!(own.client().ours(&host.installation).await.unwrap(), Vec::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_that_is_started_anew_is_believed_only_by_what_the_kernel_shows() {
    for keeps in [true, false] {
        let test = "docker::outages::engine_that_is_started_anew_is_believed_only_by_what_the_kernel_shows";
        let Some(mut own) = own_engine(test, keeps).await else { return };
        let host = Host::new();
        let sandbox = open(&host, &own);
        let spec = host.subject(&sandbox).script("restarted1", 1, "while [ ! -e go ]; do sleep 0.05; done; exit 3");
        sandbox.ensure(spec.clone()).await.unwrap();
        own.kill();
        own.up().await.unwrap();
        // An engine without `live-restore` ends the containers that it finds, one with it keeps them.
        if keeps {
            assert!(matches!(seen(&sandbox, &spec.run).await.unwrap().state, SandboxState::Running { .. }));
            std::fs::write(spec.tree.join("go"), "").unwrap();
            assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Exited(3));
        } else {
            let cause = ended(&sandbox, &spec.run).await.cause;
            assert!(matches!(&cause, EndCause::Lost(_)), "{cause:?}");
        }
        let again = host.subject(&sandbox).script("restarted1", 2, "exit 4");
        assert_eq!(host.subject(&sandbox).run(again).await.cause, EndCause::Exited(4));
        for seen in sandbox.observe(None).await.unwrap() {
            sandbox.remove(&seen.run).await.unwrap();
        }
        assert_eq!(own.client().ours(&host.installation).await.unwrap(), Vec::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_while_the_engine_hangs_is_not_called_gone_and_a_late_container_never_runs() {
    let test = "docker::outages::stop_while_the_engine_hangs_is_not_called_gone_and_a_late_container_never_runs";
    let Some(own) = own_engine(test, true).await else { return };
    let host = Host::new();
    let sandbox = open(&host, &own);
    sandbox.test(Driver::Docker).unwrap();
    let running = host.subject(&sandbox).script("hangs-0001", 1, "sleep 1000");
    sandbox.ensure(running.clone()).await.unwrap();
    let mut unverified = 0;
    for (attempt, delay) in (1..).zip([0, 5, 15, 30, 60, 120]) {
        let spec = host.subject(&sandbox).script("hangs-0002", attempt, "sleep 61040.5; true");
        let intent = host.folder(&spec.run).path().join("spec.json");
        let late = async {
            until("the intent stands", || intent.exists()).await;
            tokio::time::sleep(Duration::from_millis(delay)).await;
            own.freeze();
            if attempt == 1 {
                // What runs dies all the same.
                let started = Instant::now();
                sandbox.stop(&running.run).await.unwrap();
                println!("stopped beside a hanging engine after {:?}", started.elapsed());
                assert!(started.elapsed() < Duration::from_secs(2));
            }
            // What was asked for and not answered may still come.
            match sandbox.stop(&spec.run).await {
                Err(SandboxError::Unverified { .. }) => unverified += 1,
                outcome => outcome.unwrap(),
            }
            own.thaw();
        };
        let (ensured, ()) = tokio::join!(sandbox.ensure(spec.clone()), late);
        println!("frozen {delay} ms after the intent: {ensured:?}");
        sandbox.stop(&spec.run).await.unwrap();
        assert_eq!(alive("61040.5"), 0, "after {delay} ms");
    }
    assert!(unverified > 0, "no round met the engine before it had answered");
    for seen in sandbox.observe(None).await.unwrap() {
        sandbox.stop(&seen.run).await.unwrap();
        sandbox.remove(&seen.run).await.unwrap();
    }
    assert_eq!(alive("61040.5"), 0);
    assert_eq!(own.client().ours(&host.installation).await.unwrap(), Vec::new());
}
