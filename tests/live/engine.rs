//! The engine of these tests, and the image that they make for it.

use bollard::Docker;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::StreamExt;
use mosaic::sandbox::docker::engine::Engine;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use tokio::sync::OnceCell;

/// An image of busybox, with all its programs and nothing else.
pub const BUSYBOX: &str = "mosaic-test-busybox:1";
/// Where Debian's `busybox-static` has it.
const PROGRAM: &str = "/bin/busybox";

static READY: OnceCell<Result<(), String>> = OnceCell::const_new();

/// The engine with the test image; `None`: a test cannot run, which was said.
pub async fn engine(test: &str) -> Option<Engine> {
    let engine = match Engine::connect(None) {
        Ok(engine) => engine,
        Err(error) => {
            crate::skip::skip(test, &mosaic::causes::one_line(&error));
            return None;
        }
    };
    match READY.get_or_init(|| prepare(&engine)).await {
        Ok(()) => Some(engine),
        Err(why) => {
            crate::skip::skip(test, why);
            None
        }
    }
}

async fn prepare(engine: &Engine) -> Result<(), String> {
    let found = engine.image(BUSYBOX).await.map_err(|e| mosaic::causes::one_line(&e))?;
    if found.is_some() {
        return Ok(());
    }
    if !Path::new(PROGRAM).exists() {
        return Err(format!("{PROGRAM} is not here (Debian: busybox-static)"));
    }
    import(BUSYBOX, &[]).await
}

/// Makes an image of busybox; `changes` are lines of a Dockerfile.
pub async fn import(name: &str, changes: &[&str]) -> Result<(), String> {
    let texts = |e: &dyn std::fmt::Display| e.to_string();
    let root = tempfile::tempdir().map_err(|e| texts(&e))?;
    for folder in ["bin", "etc", "tmp"] {
        fs::create_dir(root.path().join(folder)).map_err(|e| texts(&e))?;
    }
    fs::copy(PROGRAM, root.path().join("bin/busybox")).map_err(|e| texts(&e))?;
    let applets = Command::new(PROGRAM).arg("--list").output().map_err(|e| texts(&e))?.stdout;
    for applet in String::from_utf8_lossy(&applets).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.path().join("bin").join(applet)).map_err(|e| texts(&e))?;
    }
    let archive = Command::new("tar").arg("-C").arg(root.path()).args(["-c", "."]).output().map_err(|e| texts(&e))?;
    let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
    let changes = changes.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let options = CreateImageOptionsBuilder::default().from_src("-").repo(repository).tag(tag).changes(changes).build();
    let docker = Docker::connect_with_defaults().map_err(|e| texts(&e))?;
    let mut lines = docker.create_image(Some(options), Some(bollard::body_full(archive.stdout.into())), None).boxed();
    while let Some(line) = lines.next().await {
        line.map_err(|e| texts(&e))?;
    }
    Ok(())
}
