//! Images that are not there, not for this machine or refused, and runtimes that are unknown: each its own reason.

use super::Host;
use crate::engine::{BUSYBOX, engine, load_for};
use mosaic::api::condition::reason;
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
    assert_eq!(host.subject(&sandbox).run(spec).await.cause, mosaic::plan::observed::EndCause::Exited(5));
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
