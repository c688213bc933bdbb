//! Images that are not there, not for this machine or refused, and runtimes that are unknown: each its own reason.

use super::{Host, clean};
use crate::contract::{ended, seen};
use crate::engine::{BUSYBOX, engine, load_for};
use mosaic::api::condition::reason;
use mosaic::plan::observed::EndCause;
use mosaic::sandbox::docker::DockerConfig;
use mosaic::sandbox::{Drivers, Sandbox, SandboxError};
use std::io::{Read, Write};
use std::net::TcpListener;

async fn refusal(host: &Host, sandbox: &Drivers, change: impl FnOnce(&mut mosaic::sandbox::RunSpec)) -> SandboxError {
    let mut spec = host.subject(sandbox).script("refused-01", 1, "echo ran > /workspace/ran");
    change(&mut spec);
    let error = sandbox.ensure(spec.clone()).await.unwrap_err();
    assert!(!spec.tree.join("ran").exists());
    // Nothing is left of what was never made.
    assert_eq!(sandbox.observe(Some(&spec.run.uid)).await.unwrap(), Vec::new(), "{error}");
    assert!(!host.folder(&spec.run).path().exists());
    error
}

/// A registry that gives one answer to everything.
fn registry(status: &'static str, headers: &'static str, body: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let head = format!(
                "HTTP/1.1 {status}\r\nDocker-Distribution-Api-Version: registry/2.0\r\n{headers}Content-Type: application/json\r\n"
            );
            let _ = stream.write_all(format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).as_bytes());
        }
    });
    port
}

/// A registry with one image, `t:1`, of busybox, whose layer it gives out in so many pieces, a tenth of a second apart. `name` is that of the test:
/// two images are never alike.
fn slow_registry(name: &str, pieces: usize) -> u16 {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::copy("/bin/busybox", bin.join("sh")).unwrap();
    std::fs::write(folder.path().join(name), uuid::Uuid::new_v4().to_string()).unwrap();
    let layer = std::process::Command::new("tar").arg("-C").arg(folder.path()).args(["-c", "."]).output().unwrap().stdout;
    let digest = |bytes: &[u8]| format!("sha256:{}", mosaic::sandbox::folder::hash(bytes));
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = serde_json::json!({"architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}})
    .to_string()
    .into_bytes();
    let part = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "size": bytes.len(), "digest": digest(bytes)});
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": kind,
        "config": part("application/vnd.docker.container.image.v1+json", &config),
        "layers": [part("application/vnd.docker.image.rootfs.diff.tar.gzip", &layer)]})
    .to_string()
    .into_bytes();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let line = String::from_utf8_lossy(&request[..length]).lines().next().unwrap_or_default().to_owned();
            let (kind, body, pieces) = if line.contains(&digest(&layer)) {
                ("application/octet-stream", layer.as_slice(), pieces)
            } else if line.contains(&digest(&config)) {
                ("application/octet-stream", config.as_slice(), 1)
            } else if line.contains("/manifests/") {
                (kind, manifest.as_slice(), 1)
            } else {
                ("application/json", b"{}".as_slice(), 1)
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\nDocker-Content-Digest: {}\r\nContent-Type: {kind}\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n",
                digest(body),
                body.len()
            );
            let _ = stream.write_all(head.as_bytes());
            if line.starts_with("HEAD") {
                continue;
            }
            for piece in body.chunks(body.len().div_ceil(pieces)) {
                let _ = stream.write_all(piece);
                std::thread::sleep(std::time::Duration::from_millis(if pieces > 1 { 100 } else { 0 }));
            }
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn run_says_how_far_the_pull_of_its_image_is() {
    let Some(engine) = engine("docker::images::run_says_how_far_the_pull_of_its_image_is").await else { return };
    let host = Host::new();
    // The driver was not tested before: its test needs the image as well.
    let sandbox = host.open_untested(DockerConfig { image: host.image.clone(), ..DockerConfig::default() });
    let image = format!("127.0.0.1:{}/t:1", slow_registry("pulled", 60));
    let mut spec = host.subject(&sandbox).script("pulling-01", 1, "exit 3");
    spec.image = Some(image.clone());
    let (mut told, mut said) = (sandbox.changes(), Vec::new());
    let (run, looking) = (spec.run.clone(), &sandbox);
    let watching = async {
        loop {
            let found = seen(looking, &run).await.and_then(|seen| seen.doing);
            said.extend(found.filter(|text| said.last() != Some(text)));
            if told.recv().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        ensured = sandbox.ensure(spec.clone()) => ensured.unwrap(),
        () = watching => panic!("nobody tells any more"),
    }
    println!("{said:?}");
    assert!(said.iter().any(|text| text.contains(&image) && text.ends_with(" %")), "{said:?}");
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Exited(3));
    assert_eq!(seen(&sandbox, &spec.run).await.unwrap().doing, None);
    clean(&host, &sandbox, &engine).await;
    let docker = bollard::Docker::connect_with_defaults().unwrap();
    docker.remove_image(&image, None::<bollard::query_parameters::RemoveImageOptions>, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_to_get_an_image_has_its_own_reason() {
    let Some(_) = engine("docker::images::each_failure_to_get_an_image_has_its_own_reason").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let absent = registry("404 Not Found", "", r#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}"#);
    let denied = registry("403 Forbidden", "", r#"{"errors": [{"code": "DENIED", "message": "access is denied"}]}"#);
    let broken = registry("500 Internal Server Error", "", "{}");
    load_for("mosaic-test-other-machine:1", if cfg!(target_arch = "x86_64") { "arm64" } else { "amd64" }).await;
    for (image, wanted, invalid) in [
        (format!("127.0.0.1:{absent}/a/b:1"), reason::IMAGE_NOT_FOUND, true),
        (format!("127.0.0.1:{denied}/a/b:1"), reason::IMAGE_REFUSED, true),
        (format!("127.0.0.1:{broken}/a/b:1"), reason::IMAGE_PULL_FAILED, false),
        ("../containers/x".to_owned(), reason::IMAGE_NOT_FOUND, true),
        ("mosaic-test-other-machine:1".to_owned(), reason::IMAGE_PLATFORM, true),
    ] {
        let error = refusal(&host, &sandbox, |spec| spec.image = Some(image.clone())).await;
        println!("{image}: {error}");
        assert_eq!((error.reason(), error.is_invalid()), (wanted, invalid), "{image}: {error}");
        assert!(error.to_string().contains(image.trim_end_matches(":1")), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_runtimes_and_unreachable_engines_are_named() {
    let Some(_) = engine("docker::images::unknown_runtimes_and_unreachable_engines_are_named").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let error = refusal(&host, &sandbox, |spec| spec.runtime_class = Some("kata".to_owned())).await;
    assert_eq!((error.reason(), error.is_invalid()), (reason::RUNTIME_NOT_FOUND, true));
    assert!(error.to_string().contains("runc"), "{error}");
    // The usual one by its name is one that it has.
    let mut spec = host.subject(&sandbox).script("runtime-01", 1, "exit 5");
    spec.runtime_class = Some("runc".to_owned());
    let run = spec.run.clone();
    assert_eq!(host.subject(&sandbox).run(spec).await.cause, mosaic::plan::observed::EndCause::Exited(5));
    sandbox.remove(&run).await.unwrap();
    drop(sandbox);

    for address in ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "ssh://user@host"] {
        let docker =
            mosaic::sandbox::docker::DockerConfig { host: Some(address.to_owned()), image: BUSYBOX.to_owned(), ..Default::default() };
        let host = Host::new();
        let sandbox = host.open_untested(docker);
        let error = refusal(&host, &sandbox, |_| {}).await;
        assert_eq!((error.reason(), error.is_invalid()), (reason::ENGINE_UNAVAILABLE, false), "{error}");
        assert!(error.to_string().contains(address), "{error}");
        // Agents that need no engine go on.
        let mut spec = host.subject(&sandbox).script("process-01", 1, "exit 6");
        spec.driver = mosaic::api::agent::Driver::Process;
        assert_eq!(host.subject(&sandbox).run(spec).await.cause, mosaic::plan::observed::EndCause::Exited(6));
    }
}
