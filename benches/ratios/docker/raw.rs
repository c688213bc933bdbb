//! The other side: an engine that is asked through its API for containers like ours, and for nothing else.

use super::{SCRIPT, last_of, sign_of};
use bollard::Docker;
use bollard::exec::StartExecOptions;
use bollard::models::{ContainerCreateBody, ExecConfig, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptions, InspectContainerOptions, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
};
use futures::future::join_all;
use mosaic::sandbox::RunSpec;
use mosaic::sandbox::docker::engine::{Engine, container_name};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How containers like ours are asked for.
pub struct Raw {
    docker: Docker,
    body: ContainerCreateBody,
    host_config: HostConfig,
    /// A copy of the mounts' sources that vanish with the run, and the folders of what is made.
    tree: PathBuf,
    /// A running container to execute in.
    running: String,
}

impl Raw {
    /// Reads the flags from the container of a run.
    pub async fn like(engine: &Engine, installation: &str, spec: &RunSpec, tree: PathBuf) -> Self {
        let docker = Docker::connect_with_host(engine.host()).expect("an engine");
        let name = container_name(installation, &spec.run);
        let seen = docker.inspect_container(&name, None::<InspectContainerOptions>).await.expect("our container");
        let (config, mut host_config) = (seen.config.expect("what it runs"), seen.host_config.expect("how it is made"));
        let mounts = host_config.mounts.get_or_insert_default();
        // The run's own folders go with it: what was in them is of no weight, that there are so many mounts is.
        let kept = tree.with_extension("mounts");
        for mount in mounts.iter_mut() {
            let source = PathBuf::from(mount.source.clone().unwrap_or_default());
            if source.components().any(|part| part.as_os_str() == "runs") {
                let copy = kept.join(source.file_name().expect("a name"));
                std::fs::create_dir_all(&kept).expect("a folder");
                let made = if source.is_dir() { std::fs::create_dir_all(&copy) } else { std::fs::write(&copy, b"{}") };
                made.expect("a copy");
                mount.source = Some(copy.to_string_lossy().into_owned());
            }
        }
        let command = ["/bin/sh", "-c", SCRIPT].map(str::to_owned).to_vec();
        let body = ContainerCreateBody {
            image: config.image,
            user: config.user,
            hostname: config.hostname,
            working_dir: config.working_dir,
            entrypoint: Some(command),
            ..ContainerCreateBody::default()
        };
        let mut raw = Self { docker, body, host_config, tree: tree.clone(), running: String::new() };
        let sign = sign_of(&tree);
        raw.running = raw.make(&tree).await;
        last_of(vec![sign]);
        raw
    }

    /// Create and start; its id.
    async fn make(&self, tree: &Path) -> String {
        let mut host_config = self.host_config.clone();
        for mount in host_config.mounts.iter_mut().flatten() {
            if mount.target.as_deref() == Some("/workspace") {
                mount.source = Some(tree.to_string_lossy().into_owned());
            }
        }
        let body = ContainerCreateBody { host_config: Some(host_config), ..self.body.clone() };
        let made = self.docker.create_container(None::<CreateContainerOptions>, body).await.expect("a container");
        self.docker.start_container(&made.id, None::<StartContainerOptions>).await.expect("it starts");
        made.id
    }

    async fn remove(&self, id: &str) {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        self.docker.remove_container(id, Some(options)).await.expect("it goes");
    }

    /// Starts one in each tree, all at once; seconds until the last has written its byte. What was made is removed after that.
    pub async fn start(&self, trees: &[PathBuf]) -> f64 {
        let started = Instant::now();
        let signs: Vec<_> = trees.iter().map(|tree| sign_of(tree)).collect();
        let made = join_all(trees.iter().map(|tree| self.make(tree))).await;
        let took = tokio::task::block_in_place(|| last_of(signs)).duration_since(started).as_secs_f64();
        drop(join_all(made.iter().map(|id| self.remove(id))).await);
        took
    }

    /// Executes the same in a container that runs; seconds until its byte.
    pub async fn exec(&self) -> f64 {
        let started = Instant::now();
        let sign = sign_of(&self.tree);
        let config =
            ExecConfig { cmd: Some(["/bin/sh", "-c", "echo > /workspace/sign"].map(str::to_owned).to_vec()), ..ExecConfig::default() };
        let made = self.docker.create_exec(&self.running, config).await.expect("an exec");
        let options = StartExecOptions { detach: true, ..StartExecOptions::default() };
        self.docker.start_exec(&made.id, Some(options)).await.expect("it starts");
        tokio::task::block_in_place(|| last_of(vec![sign])).duration_since(started).as_secs_f64()
    }

    /// Removes what still runs.
    pub async fn end(&self) {
        self.remove(&self.running).await;
    }
}

/// All killed at once, with the patience of the library: an engine that is asked for a hundred takes its time.
pub async fn kill_all(engine: &Engine, names: &[String]) {
    let docker = Docker::connect_with_host(engine.host()).expect("an engine");
    let options = KillContainerOptionsBuilder::default().signal("KILL").build();
    let killed = join_all(names.iter().map(|name| docker.kill_container(name, Some(options.clone())))).await;
    killed.into_iter().for_each(|outcome| outcome.expect("the engine kills"));
}

/// All removed at once.
pub async fn remove_all(engine: &Engine, names: &[String]) {
    let docker = Docker::connect_with_host(engine.host()).expect("an engine");
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    let removed = join_all(names.iter().map(|name| docker.remove_container(name, Some(options.clone())))).await;
    removed.into_iter().for_each(|outcome| outcome.expect("the engine removes"));
}
