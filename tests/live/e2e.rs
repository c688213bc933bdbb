//! The main job end to end on containers, by the built program: declare an agent, look at the remote with git and at the engine.

use crate::engine::{BUSYBOX, engine};
use crate::harness::{Mosaic, Random, Remote, condition, gates, task};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn start() -> Mosaic {
    Mosaic::start(&["--driver", "docker", "--sandbox-image", BUSYBOX, "--running-max", "12"])
}

fn remote(mosaic: &Mosaic) -> Remote {
    let gates = gates("test -s b.txt", "true");
    Remote::new(mosaic.folder.path(), "remote", &[("a.txt", "a\n"), (".mosaic/gates.toml", &gates)])
}

/// Blocking work beside the runtime of the test.
async fn blocking(work: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(work).await.unwrap();
}

fn is_running(object: &Value) -> bool {
    condition(object, "SandboxReady") == "True"
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_in_a_container_delivers_a_verified_push_and_leaves_nothing() {
    let Some(_) = engine("e2e::agent_in_a_container_delivers_a_verified_push_and_leaves_nothing").await else { return };
    blocking(|| {
        let mosaic = start();
        let remote = remote(&mosaic);
        let script = "cat /mosaic/task.json > /dev/null; echo b > b.txt; while [ ! -e go ]; do sleep 0.1; done; rm go";
        let uid = mosaic.spawn(&task(&remote, "docker-1", script));
        let object = mosaic.wait(&uid, "it runs", is_running);
        let sandbox = &object["status"]["sandbox"];
        assert_eq!(sandbox["driver"], "docker", "{object:#}");
        assert!(sandbox["id"].as_str().unwrap().starts_with("container "), "{sandbox}");
        for name in ["no-capabilities", "seccomp", "memory:kernel", "pids:kernel", "disk:watchdog"] {
            assert!(sandbox["isolation"].as_array().unwrap().contains(&json!(name)), "{name} in {sandbox}");
        }
        let tree = mosaic.state().join("trees").join(object["status"]["workspace"]["worktree"].as_str().unwrap());
        let tree = [tree.join("tree"), tree.clone()].into_iter().find(|path| path.join("a.txt").exists()).unwrap();
        std::fs::write(tree.join("go"), "").unwrap();
        let object = mosaic.wait_completed(&uid);
        assert_eq!(condition(&object, "Pushed"), "True");
        let refs = remote.agent_refs();
        let (_, sha) = refs.first_key_value().unwrap();
        assert_eq!(object["status"]["push"]["sha"], json!(sha));
        assert_eq!(remote.git(&["show", &format!("{sha}:b.txt")]), "b\n");
        mosaic.assert_nothing_left();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_agents_in_containers_outlive_their_controller_and_all_deliver() {
    let Some(_) = engine("e2e::ten_agents_in_containers_outlive_their_controller_and_all_deliver").await else { return };
    blocking(|| {
        let mut mosaic = start();
        let remote = remote(&mosaic);
        let started = Instant::now();
        let uids: Vec<String> = (0..10)
            .map(|n| {
                let mut body = task(&remote, &format!("ten-{n}"), "echo started >> starts.txt; echo b > b.txt; sleep 2");
                body["sandbox"] = json!({"memory": "128Mi", "cpu": "500m", "pids": 64});
                mosaic.spawn(&body)
            })
            .collect();
        // Killed and ended at some instants of their lives, and started anew.
        let mut random = Random(20_260_711);
        for round in 0..4 {
            std::thread::sleep(Duration::from_millis(300 + random.below(900)));
            let before = mosaic.pid();
            if round % 2 == 0 {
                mosaic.sigkill()
            } else {
                mosaic.sigterm()
            }
            mosaic.up();
            assert_ne!(mosaic.pid(), before);
        }
        for uid in &uids {
            let object = mosaic.wait_completed(uid);
            let sha = object["status"]["push"]["sha"].as_str().unwrap().to_owned();
            assert_eq!(remote.git(&["show", &format!("{sha}:starts.txt")]), "started\n", "{uid} ran twice");
        }
        assert_eq!(remote.agent_refs().len(), 10);
        println!("ten agents with four restarts: {:?}", started.elapsed());
        mosaic.assert_nothing_left();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_both_drivers_run_side_by_side_and_a_bad_image_says_its_reason() {
    let Some(_) = engine("e2e::agents_of_both_drivers_run_side_by_side_and_a_bad_image_says_its_reason").await else { return };
    blocking(|| {
        let mosaic = start();
        let remote = remote(&mosaic);
        let with = |id: &str, sandbox: Value| {
            let mut body = task(&remote, id, "echo b > b.txt");
            body["sandbox"] = sandbox;
            mosaic.spawn(&body)
        };
        let process = with("process", json!({"driver": "process"}));
        let bad = with("bad-image", json!({"image": "127.0.0.1:1/no/such:1"}));
        mosaic.wait_completed(&process);
        // While it waits for its next try the reason is that, and the message has this one.
        let object = mosaic.wait(&bad, "its reason", |object| object["status"]["reason"] == "ImagePullFailed");
        assert!(object["status"]["message"].as_str().unwrap_or_default().contains("127.0.0.1:1"), "{object:#}");
        let (status, _) = mosaic.call("POST", &format!("/agents/{bad}/kill"), Some(&json!({})));
        assert!(status < 300, "{status}");
        mosaic.assert_nothing_left();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_takes_containers_where_the_image_is_and_says_why_where_it_is_not() {
    let Some(_) = engine("e2e::auto_takes_containers_where_the_image_is_and_says_why_where_it_is_not").await else { return };
    blocking(|| {
        let with = |image: &str, host: Option<&str>| {
            let mut mosaic = Mosaic::start(&["--driver", "auto", "--sandbox-image", image]);
            if let Some(host) = host {
                mosaic.sigterm();
                mosaic.environment = vec![("DOCKER_HOST".to_owned(), host.to_owned())];
                mosaic.up();
            }
            let remote = remote(&mosaic);
            let uid = mosaic.spawn(&task(&remote, "auto", "echo b > b.txt; while [ ! -e go ]; do sleep 0.1; done"));
            let driver = mosaic.wait(&uid, "it runs", is_running)["status"]["sandbox"]["driver"].as_str().unwrap().to_owned();
            mosaic.call("POST", &format!("/agents/{uid}/kill"), Some(&json!({})));
            mosaic.assert_nothing_left();
            (driver, mosaic.log())
        };
        let (driver, log) = with(BUSYBOX, None);
        assert!(driver == "docker" && log.contains("sandboxes: docker; trees: overlay") && log.contains(BUSYBOX), "{driver}: {log}");
        let (driver, log) = with("mosaic-test-no-such-image:1", None);
        assert!(driver == "process" && log.contains("the engine has no image mosaic-test-no-such-image:1"), "{driver}: {log}");
        let (driver, log) = with(BUSYBOX, Some("unix:///nowhere/docker.sock"));
        assert!(driver == "process" && log.contains("no containers: ") && log.contains("unix:///nowhere/docker.sock"), "{driver}: {log}");
    })
    .await;
}

/// What a process has used: seconds of CPU, and bytes that are resident now.
fn used(pid: u32) -> (f64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let number = |index: usize| fields[index].parse::<u64>().unwrap();
    // Ticks are hundredths of a second on every Linux that has this file.
    ((number(11) + number(12)) as f64 / 100.0, number(21) * 4096)
}

/// CPU that a process takes within a time, in parts of one core.
fn cpu_share(pid: u32, time: Duration) -> f64 {
    let (before, started) = (used(pid).0, Instant::now());
    std::thread::sleep(time);
    (used(pid).0 - before) / started.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_agents_in_containers_at_once_cost_the_controller_little() {
    let Some(_) = engine("e2e::ten_agents_in_containers_at_once_cost_the_controller_little").await else { return };
    blocking(|| {
        let mosaic = start();
        let remote = remote(&mosaic);
        let pid = mosaic.pid();
        let idle = cpu_share(pid, Duration::from_secs(5));
        let watching = std::thread::spawn({
            let state = mosaic.state();
            move || {
                let (mut cpu, mut memory) = (0_f64, 0);
                while !state.join("measured").exists() {
                    cpu = cpu.max(cpu_share(pid, Duration::from_millis(500)));
                    memory = memory.max(used(pid).1);
                }
                (cpu, memory)
            }
        });
        let started = Instant::now();
        let script = "echo b > b.txt; while [ ! -e go ]; do sleep 0.2; done; rm go";
        let uids: Vec<String> = (0..10).map(|n| mosaic.spawn(&task(&remote, &format!("load-{n}"), script))).collect();
        for uid in &uids {
            mosaic.wait(uid, "it runs", is_running);
        }
        let running = started.elapsed();
        let beside = cpu_share(pid, Duration::from_secs(5));
        for entry in std::fs::read_dir(mosaic.state().join("trees")).unwrap().flatten() {
            std::fs::write(entry.path().join("tree/go"), "").unwrap();
        }
        uids.iter().for_each(|uid| drop(mosaic.wait_completed(uid)));
        let done = started.elapsed();
        std::fs::write(mosaic.state().join("measured"), "").unwrap();
        let (peak, memory) = watching.join().unwrap();
        println!(
            "controller: idle {:.1} %, beside ten running agents {:.1} %, at most {:.0} % of one core (in half a second), {} MiB resident; \
             ten agents ran after {running:?} and were delivered after {done:?}",
            idle * 100.0,
            beside * 100.0,
            peak * 100.0,
            memory >> 20,
        );
        // The times say something of a quiet machine only.
        assert!(memory < 4 << 30);
        mosaic.assert_nothing_left();
    })
    .await;
}
