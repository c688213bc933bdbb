//! Two installations on one engine, and what is left of runs that nobody knows any more.

use super::{Host, clean};
use crate::contract::{ended, seen};
use crate::engine::engine;
use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use mosaic::plan::observed::{EndCause, SandboxState};
use mosaic::sandbox::Sandbox;
use mosaic::sandbox::docker::engine::container_name;
use std::fs;

#[tokio::test(flavor = "multi_thread")]
async fn another_installations_containers_are_never_touched() {
    let Some(engine) = engine("docker::shared::another_installations_containers_are_never_touched").await else { return };
    let (mine, other) = (Host::new(), Host::new());
    let (ours, theirs) = (mine.open(), other.open());
    let spec = other.subject(&theirs).script("theirs-001", 1, "sleep 1000");
    theirs.ensure(spec.clone()).await.unwrap();
    assert_eq!(ours.observe(None).await.unwrap(), Vec::new());
    ours.stop(&spec.run).await.unwrap();
    ours.remove(&spec.run).await.unwrap();
    // A copy of their state folder has their installation, and none of their containers.
    let copy = Host { installation: other.installation.clone(), ..Host::new() };
    let copied = copy.open();
    assert_eq!(copied.observe(None).await.unwrap(), Vec::new());
    assert!(matches!(seen(&theirs, &spec.run).await.unwrap().state, SandboxState::Running { .. }));
    assert_eq!(engine.ours(&other.installation).await.unwrap().len(), 1);
    clean(&other, &theirs, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn container_whose_run_is_forgotten_goes_and_a_strangers_with_our_labels_stays() {
    let Some(engine) = engine("docker::shared::container_whose_run_is_forgotten_goes_and_a_strangers_with_our_labels_stays").await else {
        return;
    };
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("forgotten1", 1, "sleep 1000");
    sandbox.ensure(spec.clone()).await.unwrap();
    let pid = host.folder(&spec.run).identity().unwrap().unwrap().pid;
    // Labels can come from an image: only with the right name are they ours.
    let docker = Docker::connect_with_defaults().unwrap();
    let found = docker.inspect_container(&container_name(&host.installation, &spec.run), None).await.unwrap();
    let stranger = ContainerCreateBody {
        image: Some(host.image.clone()),
        cmd: Some(vec!["true".to_owned()]),
        labels: found.config.unwrap().labels,
        ..Default::default()
    };
    let name = format!("mosaic-test-stranger-{}", std::process::id());
    docker.create_container(Some(CreateContainerOptionsBuilder::default().name(&name).build()), stranger).await.unwrap();
    drop(sandbox);
    fs::remove_dir_all(host.folder(&spec.run).path()).unwrap();
    let sandbox = host.open();
    assert_eq!(engine.ours(&host.installation).await.unwrap(), Vec::new());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(engine.state(&name).await.unwrap().is_some());
    engine.remove(&name).await.unwrap();
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_that_somebody_began_is_waited_for() {
    let Some(engine) = engine("docker::shared::removal_that_somebody_began_is_waited_for").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("removing-1", 1, "sleep 1000");
    sandbox.ensure(spec.clone()).await.unwrap();
    let name = container_name(&host.installation, &spec.run);
    // Something for the engine to delete, so that a removal stays under way for a while.
    let (_, about) = engine.about().await.unwrap();
    let id = engine.state(&name).await.unwrap().unwrap().id;
    let many = std::path::Path::new(&about.docker_root_dir.unwrap()).join("containers").join(id).join("many");
    fs::create_dir(&many).unwrap();
    (0..30_000).for_each(|n| drop(fs::File::create(many.join(n.to_string())).unwrap()));
    let remove = || {
        let name = name.clone();
        tokio::spawn(async move {
            let options = RemoveContainerOptionsBuilder::default().force(true).build();
            Docker::connect_with_defaults().unwrap().remove_container(&name, Some(options)).await
        })
    };
    // Whichever comes second is told that the other one is at it.
    let (told, removing) = match futures::future::select(remove(), remove()).await {
        futures::future::Either::Left((told, other)) | futures::future::Either::Right((told, other)) => (told.unwrap(), other),
    };
    assert!(told.unwrap_err().to_string().contains("already in progress"));
    engine.remove(&name).await.unwrap();
    assert!(engine.state(&name).await.unwrap().is_none(), "it was called gone while it was there");
    removing.await.unwrap().unwrap();
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn container_that_somebody_removed_is_seen_as_ended() {
    let Some(engine) = engine("docker::shared::container_that_somebody_removed_is_seen_as_ended").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("removed-01", 1, "sleep 1000");
    sandbox.ensure(spec.clone()).await.unwrap();
    engine.remove(&container_name(&host.installation, &spec.run)).await.unwrap();
    let cause = ended(&sandbox, &spec.run).await.cause;
    assert!(matches!(cause, EndCause::Lost(_)), "{cause:?}");
    clean(&host, &sandbox, &engine).await;
}
