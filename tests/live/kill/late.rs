//! Creates and starts that an engine has taken and not done: what is said to be dead or gone meanwhile never comes to life.

use super::liar::Liar;
use super::shapes::killer;
use crate::contract::{ended, seen, until};
use crate::docker::{Host, clean};
use crate::engine::{BUSYBOX, engine};
use mosaic::api::agent::Driver;
use mosaic::kill::receipt::{KillRequest, Receipts, Verdict};
use mosaic::plan::observed::{EndCause, SandboxState};
use mosaic::sandbox::docker::DockerConfig;
use mosaic::sandbox::docker::engine::{Engine, Status, container_name};
use mosaic::sandbox::{Drivers, RunSpec, Sandbox};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Drivers behind a proxy; tested, so that nothing but the run under test is asked for.
async fn open(test: &str) -> Option<(Host, Liar, Arc<Drivers>, Engine)> {
    let engine = engine(test).await?;
    let Some(socket) = engine.socket().map(str::to_owned) else {
        crate::skip::skip(test, "the engine is not at a Unix socket");
        return None;
    };
    let (host, liar) = (Host::new(), Liar::start(&socket));
    let docker = DockerConfig { host: Some(liar.host()), image: BUSYBOX.to_owned(), ..DockerConfig::default() };
    let drivers = host.open_untested(docker);
    let drivers = tokio::task::spawn_blocking(move || drivers.test(Driver::Docker).map(|()| drivers)).await.unwrap().unwrap();
    // The driver's own test has made and started something.
    liar.manners.starts.store(0, Ordering::SeqCst);
    liar.manners.creates.store(0, Ordering::SeqCst);
    Some((host, liar, Arc::new(drivers), engine))
}

fn spec(host: &Host, drivers: &Drivers, name: &str) -> RunSpec {
    host.subject(drivers).script(name, 1, "touch ran; sleep 60043.5")
}

/// Begins to start a run; whatever comes of it.
fn begin(drivers: &Arc<Drivers>, spec: &RunSpec) -> tokio::task::JoinHandle<()> {
    let (drivers, spec) = (drivers.clone(), spec.clone());
    tokio::spawn(async move { drop(drivers.ensure(spec).await) })
}

async fn kill(host: &Host, spec: &RunSpec) -> Receipts {
    let (killer, uid) = (killer(host), spec.run.uid.to_string());
    let request = KillRequest { agents: vec![uid], who: "test".to_owned(), ..KillRequest::default() };
    tokio::task::spawn_blocking(move || killer.kill(&request)).await.unwrap()
}

/// Everything that was held is done; then nothing of the run may have executed.
async fn nothing_comes(liar: &Liar, spec: &RunSpec) {
    liar.manners.denies.store(false, Ordering::SeqCst);
    liar.manners.holds_creates.store(false, Ordering::SeqCst);
    liar.manners.holds_starts.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!spec.tree.join("ran").exists(), "its command was executed");
}

/// Of what was killed there is no container that could be started, or that runs.
async fn no_container(host: &Host, spec: &RunSpec, engine: &Engine) {
    let state = engine.state(&container_name(&host.installation, &spec.run)).await.unwrap();
    assert!(state.as_ref().is_none_or(|state| state.status == Status::Exited), "{state:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn container_whose_start_is_queued_is_not_dead_until_nothing_can_start_it() {
    let test = "kill::late::container_whose_start_is_queued_is_not_dead_until_nothing_can_start_it";
    let Some((host, liar, drivers, engine)) = open(test).await else { return };
    let spec = spec(&host, &drivers, "queued-001");
    liar.manners.holds_starts.store(true, Ordering::SeqCst);
    let starting = begin(&drivers, &spec);
    until("the start is taken", || liar.manners.starts.load(Ordering::SeqCst) > 0).await;
    let receipts = kill(&host, &spec).await;
    let receipt = &receipts.agents[0];
    assert_eq!(receipt.verdict, Verdict::DeadVerified, "{receipts:?}");
    assert!(receipt.message.contains("refused by its tombstone or the latch"), "{receipts:?}");
    let state = engine.state(&container_name(&host.installation, &spec.run)).await.unwrap();
    assert_ne!(state.map(|state| state.status), Some(Status::Created), "it is said to be dead, and can still be started: {receipts:?}");
    nothing_comes(&liar, &spec).await;
    no_container(&host, &spec, &engine).await;
    starting.await.unwrap();
    clean(&host, &drivers, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn create_that_is_not_answered_is_never_final() {
    let Some((host, liar, drivers, engine)) = open("kill::late::create_that_is_not_answered_is_never_final").await else { return };
    let spec = spec(&host, &drivers, "queued-002");
    liar.manners.holds_creates.store(true, Ordering::SeqCst);
    let creating = begin(&drivers, &spec);
    until("the create is taken", || liar.manners.creates.load(Ordering::SeqCst) > 0).await;
    let receipts = kill(&host, &spec).await;
    assert_eq!(receipts.agents[0].verdict, Verdict::RevokedUnverified, "{receipts:?}");
    assert!(receipts.agents[0].message.contains("refused its start"), "{receipts:?}");
    nothing_comes(&liar, &spec).await;
    creating.await.unwrap();
    clean(&host, &drivers, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_that_was_taken_for_gone_is_not_granted_when_its_start_comes_late() {
    let test = "kill::late::run_that_was_taken_for_gone_is_not_granted_when_its_start_comes_late";
    let Some((host, liar, drivers, engine)) = open(test).await else { return };
    let spec = spec(&host, &drivers, "queued-003");
    liar.manners.holds_starts.store(true, Ordering::SeqCst);
    liar.manners.hangs_up.store(true, Ordering::SeqCst);
    begin(&drivers, &spec).await.unwrap();
    assert_eq!(liar.manners.starts.load(Ordering::SeqCst), 1);
    assert_eq!(seen(&*drivers, &spec.run).await.unwrap().state, SandboxState::Preparing, "it may still come");
    // The engine's word is all there is.
    liar.manners.denies.store(true, Ordering::SeqCst);
    let end = ended(&*drivers, &spec.run).await;
    assert!(matches!(end.cause, EndCause::NotStarted(_)), "{end:?}");
    nothing_comes(&liar, &spec).await;
    clean(&host, &drivers, &engine).await;
}
