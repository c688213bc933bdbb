//! What the engine says of a container, and what an agent finds in one.

use super::{Host, clean};
use crate::contract::{ended, seen, until};
use crate::engine::{engine, import};
use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use mosaic::plan::observed::{EndCause, SandboxState};
use mosaic::sandbox::docker::engine::container_name;
use mosaic::sandbox::{SANDBOX_UID, Sandbox};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Looks past our own client.
async fn inspect(host: &Host, run: &mosaic::api::names::RunId) -> ContainerInspectResponse {
    let docker = Docker::connect_with_defaults().unwrap();
    docker.inspect_container(&container_name(&host.installation, run), None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_says_that_the_container_is_hardened() {
    let Some(engine) = engine("docker::inside::engine_says_that_the_container_is_hardened").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let mut spec = host.subject(&sandbox).script("hardened-1", 1, "sleep 1000");
    spec.task = Some(b"{}".to_vec());
    sandbox.ensure(spec.clone()).await.unwrap();
    let found = inspect(&host, &spec.run).await;
    let (config, limits) = (found.config.unwrap(), found.host_config.unwrap());
    assert_eq!(config.user, Some(format!("{SANDBOX_UID}:{SANDBOX_UID}")));
    assert_eq!(limits.readonly_rootfs, Some(true));
    assert_eq!(limits.privileged, Some(false));
    assert_eq!(limits.cap_drop, Some(vec!["ALL".to_owned()]));
    assert_eq!(limits.cap_add.unwrap_or_default(), Vec::<String>::new());
    assert_eq!(limits.security_opt, Some(vec!["no-new-privileges".to_owned()]), "the default filter of calls stays");
    assert_eq!(limits.network_mode.as_deref(), Some("none"));
    assert_eq!((limits.memory, limits.memory_swap), (Some(512 << 20), Some(512 << 20)));
    assert_eq!(limits.pids_limit, Some(101));
    assert_eq!(limits.nano_cpus, Some(1_000_000_000));
    assert_eq!(limits.log_config.unwrap().typ.as_deref(), Some("none"));
    assert_eq!(limits.restart_policy.unwrap().name.unwrap().to_string(), "no");
    assert_eq!(limits.binds.unwrap_or_default(), Vec::<String>::new());
    assert_eq!(limits.devices.unwrap_or_default().len(), 0);
    assert!(limits.ulimits.unwrap().iter().any(|limit| limit.name.as_deref() == Some("core") && limit.hard == Some(0)));
    for mode in [limits.pid_mode, limits.uts_mode, limits.userns_mode, limits.ipc_mode] {
        assert_ne!(mode.as_deref(), Some("host"));
    }
    let writable: BTreeMap<_, _> = found.mounts.unwrap().into_iter().map(|mount| (mount.destination.unwrap(), mount.rw.unwrap())).collect();
    let expected = [
        ("/etc/group", false),
        ("/etc/passwd", false),
        ("/mosaic/control", false),
        ("/mosaic/init", false),
        ("/mosaic/link", false),
        ("/mosaic/out", true),
        ("/mosaic/task.json", false),
        ("/workspace", true),
    ];
    assert_eq!(writable, expected.map(|(place, writable)| (place.to_owned(), writable)).into());
    let labels = config.labels.unwrap();
    for (key, value) in [
        ("app.kubernetes.io/managed-by", "mosaic"),
        ("app.kubernetes.io/part-of", "mosaic"),
        ("mosaicstack.dev/agent", "default/hardened-1"),
        ("mosaicstack.dev/agent-uid", "hardened-1"),
        ("mosaicstack.dev/attempt", "1"),
        ("mosaicstack.dev/role", "agent"),
        ("mosaicstack.dev/epoch", "7"),
        ("mosaicstack.dev/installation", &host.installation),
    ] {
        assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
    }
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_sees_its_container_and_nothing_of_the_host() {
    let Some(engine) = engine("docker::inside::agent_sees_its_container_and_nothing_of_the_host").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let subject = host.subject(&sandbox);
    let (home, objects) = (host.state.path().join("home"), host.state.path().join("objects"));
    for folder in [&home, &objects] {
        fs::create_dir_all(folder).unwrap();
        std::os::unix::fs::chown(folder, Some(SANDBOX_UID), Some(SANDBOX_UID)).unwrap();
    }
    fs::write(objects.join("object"), "an object").unwrap();
    let script = r#"
        echo "ids $(id -u) $(id -g) $(id -G)"; echo "who $(id -un)"; echo "home $HOME"; echo "cwd $(pwd)"; echo "name $(hostname)"
        echo "path $PATH"; echo "extra $EXTRA"; cat /mosaic/task.json /mosaic/base/objects/object; echo
        echo "interfaces" $(tail -n +3 /proc/net/dev | cut -d: -f1)
        grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr '\t' ' '
        for file in /bin/x /etc/x /mosaic/x /x /mosaic/control/x /mosaic/link/x /mosaic/base/objects/x /sys/x /proc/sys/kernel/hostname; do
          (: > $file) 2>/dev/null && echo "wrote $file"; done
        for file in /workspace/x "$HOME/x" /tmp/x /var/tmp/x /run/x /mosaic/out/x /dev/shm/x; do (: > "$file") || echo "cannot write $file"; done
        cat /proc/1/environ /proc/1/mem /mosaic/init 2>/dev/null && echo "read init"
        kill -9 1 2>/dev/null; ls -d /var/run/docker.sock /run/docker.sock /root /work 2>/dev/null; find / -xdev -name 'docker*.sock' 2>/dev/null
        mknod /tmp/device b 8 0 2>/dev/null && echo "made a device"; unshare -U true 2>/dev/null && echo "nested namespace"
        ping -c 1 -W 1 127.0.0.2 >/dev/null 2>&1; echo done"#;
    let mut spec = subject.script("inside-0001", 1, script);
    spec.task = Some(b"the task, ".to_vec());
    spec.env.insert("EXTRA".to_owned(), "value".to_owned());
    (spec.home, spec.base_objects) = (Some(home), Some(objects));
    let end = subject.run(spec).await;
    assert_eq!(end.cause, EndCause::Exited(0), "{}", end.output_tail);
    let has = |line: &str| assert!(end.output_tail.lines().any(|found| found == line), "no {line:?} in\n{}", end.output_tail);
    has(&format!("ids {SANDBOX_UID} {SANDBOX_UID} {SANDBOX_UID}"));
    for line in [
        "who agent",
        "home /home/agent",
        "cwd /workspace",
        "name mosaic",
        "extra value",
        "the task, an object",
        "interfaces lo",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "done",
    ] {
        has(line);
    }
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        has(&format!("{name}: 0000000000000000"));
    }
    for word in ["wrote", "cannot write", "read init", "docker", "/root", "/work\n", "made a device", "nested"] {
        assert!(!end.output_tail.contains(word), "{word:?} in\n{}", end.output_tail);
    }
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_that_floods_the_sockets_of_init_gets_nothing_and_init_keeps_its_lease() {
    let Some(engine) = engine("docker::inside::agent_that_floods_the_sockets_of_init_gets_nothing_and_init_keeps_its_lease").await else {
        return;
    };
    let host = Host::new();
    let mut config = host.config();
    config.lease = Duration::from_secs(5);
    let docker = mosaic::sandbox::docker::DockerConfig { image: host.image.clone(), ..Default::default() };
    let sandbox = mosaic::sandbox::Drivers::open(config, docker, mosaic::api::agent::Driver::Docker).unwrap();
    let subject = host.subject(&sandbox);
    // Knocks without end, keeps what it gets, and counts answers.
    let script = r#"cd /mosaic/control; ls > /workspace/sockets
        for n in 1 2 3 4 5 6 7 8; do (while :; do (echo GET / HTTP/1.1; echo; sleep 1) | nc local:control.sock >> /workspace/answers 2>/dev/null; done) & done
        for n in 1 2 3 4; do (while :; do nc local:/mosaic/control/files.sock >> /workspace/answers 2>/dev/null </dev/null; done) & done
        sleep 12; exit 4"#;
    let spec = subject.script("flooding-1", 1, script);
    sandbox.ensure(spec.clone()).await.unwrap();
    let other = subject.script("flooded-01", 1, "sleep 1000");
    sandbox.ensure(other.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    for run in [&spec.run, &other.run] {
        let state = seen(&sandbox, run).await.unwrap().state;
        assert!(matches!(state, SandboxState::Running { .. }), "{run}: {state:?}");
    }
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Exited(4));
    assert_eq!(fs::read_to_string(spec.tree.join("sockets")).unwrap(), "control.sock\nfiles.sock\n");
    assert_eq!(fs::read_to_string(spec.tree.join("answers")).unwrap_or_default(), "");
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_and_health_checks_of_an_image_are_not_taken_over() {
    let Some(engine) = engine("docker::inside::volumes_and_health_checks_of_an_image_are_not_taken_over").await else { return };
    let image = "mosaic-test-volume:1";
    let changes =
        ["VOLUME /data", "ENV FROM_IMAGE=yes", "ENV PATH=/image/bin:/bin", "USER 0", "ENTRYPOINT [\"/bin/false\"]", "CMD [\"x\"]"];
    import(image, &changes).await.unwrap();
    let host = Host { image: image.to_owned(), ..Host::new() };
    let sandbox = host.open();
    let script = r#"echo "$(id -u) $FROM_IMAGE $PATH"; grep ' /data ' /proc/mounts | cut -d' ' -f3"#;
    let end = host.subject(&sandbox).run(host.subject(&sandbox).script("volume-001", 1, script)).await;
    assert_eq!(end.output_tail, format!("{SANDBOX_UID} yes /image/bin:/bin\ntmpfs\n"));
    clean(&host, &sandbox, &engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_container_is_stopped() {
    let Some(engine) = engine("docker::inside::paused_container_is_stopped").await else { return };
    let host = Host::new();
    let sandbox = host.open();
    let spec = host.subject(&sandbox).script("paused-001", 1, "trap '' TERM; setsid sleep 1000 & while :; do sleep 1; done");
    sandbox.ensure(spec.clone()).await.unwrap();
    let pid = host.folder(&spec.run).identity().unwrap().unwrap().pid;
    Docker::connect_with_defaults().unwrap().pause_container(&container_name(&host.installation, &spec.run)).await.unwrap();
    let started = std::time::Instant::now();
    sandbox.stop(&spec.run).await.unwrap();
    println!("a paused container was gone after {:?}", started.elapsed());
    until("init is gone", || !std::path::Path::new(&format!("/proc/{pid}")).exists()).await;
    assert_eq!(ended(&sandbox, &spec.run).await.cause, EndCause::Stopped);
    clean(&host, &sandbox, &engine).await;
}
