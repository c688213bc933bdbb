//! Mosaic in a container of the same engine, without the host's process ids and control groups: the contract once more, where the kernel shows
//! no PID 1 of a sandbox, and an engine that sees other paths than we do.

use super::{Host, clean, contract};
use crate::contract::{ended, seen};
use crate::engine::engine;
use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use bollard::query_parameters::{
    CreateContainerOptions, LogsOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions, WaitContainerOptions,
};
use futures::StreamExt;
use mosaic::api::agent::Driver;
use mosaic::api::condition::reason;
use mosaic::plan::observed::{EndCause, SandboxState};
use mosaic::sandbox::Sandbox;
use mosaic::sandbox::docker::DockerConfig;
use mosaic::sandbox::docker::IMAGE_DEFAULT;
use mosaic::sandbox::init_binary::find_init;
use std::path::Path;

/// Set in the container: what the tests below play there.
const INSIDE: &str = "MOSAIC_TEST_CONTAINED";

/// Not tests by themselves: what the ones below start in a container.
#[tokio::test(flavor = "multi_thread")]
async fn played_in_a_container() {
    let Ok(part) = std::env::var(INSIDE) else { return };
    let engine = engine("docker::contained::played_in_a_container").await.unwrap();
    let host = Host::new();
    if part == "other paths" {
        let sandbox = host.open_untested(DockerConfig { image: host.image.clone(), ..DockerConfig::default() });
        let refused = sandbox.test(Driver::Docker).unwrap_err();
        assert_eq!(refused.reason(), reason::FILES_NOT_SHARED, "{refused}");
        return;
    }
    let sandbox = host.open();
    contract(&host.subject(&sandbox)).await;
    let spec = host.subject(&sandbox).script("hidden-001", 1, "trap '' TERM; sleep 1000");
    sandbox.ensure(spec.clone()).await.unwrap();
    assert!(host.folder(&spec.run).identity().unwrap().is_none(), "nobody's process id is known here");
    drop(sandbox);
    let sandbox = host.open();
    assert!(matches!(seen(&sandbox, &spec.run).await.unwrap().state, SandboxState::Running { .. }));
    sandbox.stop(&spec.run).await.unwrap();
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Stopped);
    clean(&host, &sandbox, &engine).await;
}

/// Runs a part in a container whose folder of temporary files is `host` outside and `inside` in it.
async fn play(test: &str, part: &str, host: &Path, inside: &Path, mounted: bool) -> Option<()> {
    let engine = engine(test).await?;
    let image = std::env::var("MOSAIC_TEST_IMAGE").unwrap_or_else(|_| IMAGE_DEFAULT.to_owned());
    let socket = engine.socket().map(str::to_owned)?;
    if engine.image(&image).await.unwrap().is_none() {
        crate::skip::skip(test, &format!("the engine has no image {image} (make image)"));
        return None;
    }
    let docker = Docker::connect_with_defaults().unwrap();
    let (program, init) = (std::env::current_exe().unwrap(), find_init().unwrap());
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mount = |source: &Path, target: &Path| Mount {
        typ: Some(MountType::BIND),
        source: Some(text(source)),
        target: Some(text(target)),
        ..Mount::default()
    };
    let mut mounts = vec![mount(Path::new(&socket), Path::new("/var/run/docker.sock")), mount(&program, &program), mount(&init, &init)];
    if mounted {
        mounts.push(mount(host, inside));
    }
    let body = ContainerCreateBody {
        image: Some(image),
        entrypoint: Some(vec![text(&program)]),
        cmd: Some(["docker::contained::played_in_a_container", "--exact", "--nocapture"].map(str::to_owned).to_vec()),
        env: Some(vec![format!("{INSIDE}={part}"), format!("TMPDIR={}", inside.display()), format!("MOSAIC_INIT={}", init.display())]),
        user: Some("0:0".to_owned()),
        host_config: Some(HostConfig { mounts: Some(mounts), network_mode: Some("none".to_owned()), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let id = docker.create_container(None::<CreateContainerOptions>, body).await.unwrap().id;
    docker.start_container(&id, None::<StartContainerOptions>).await.unwrap();
    let code = match docker.wait_container(&id, None::<WaitContainerOptions>).next().await.unwrap() {
        Ok(ended) => ended.status_code,
        Err(bollard::errors::Error::DockerContainerWaitError { code, .. }) => code,
        Err(error) => panic!("{error}"),
    };
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
    let log: Vec<String> = docker.logs(&id, Some(options)).map(|line| line.unwrap().to_string()).collect().await;
    docker.remove_container(&id, Some(RemoveContainerOptionsBuilder::default().force(true).build())).await.unwrap();
    assert_eq!(code, 0, "{}", log.concat());
    assert!(log.concat().contains("1 passed"), "{}", log.concat());
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_holds_where_no_process_of_a_sandbox_is_shown() {
    let shared = tempfile::tempdir().unwrap();
    let _ =
        play("docker::contained::contract_holds_where_no_process_of_a_sandbox_is_shown", "contract", shared.path(), shared.path(), true)
            .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_holds_where_the_state_has_another_path_on_the_host() {
    let shared = tempfile::tempdir().unwrap();
    let _ = play(
        "docker::contained::contract_holds_where_the_state_has_another_path_on_the_host",
        "contract",
        shared.path(),
        Path::new("/elsewhere"),
        true,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn state_that_the_engine_does_not_see_is_refused_with_the_reason() {
    let _ = play(
        "docker::contained::state_that_the_engine_does_not_see_is_refused_with_the_reason",
        "other paths",
        Path::new("/tmp"),
        Path::new("/tmp"),
        false,
    )
    .await;
}
