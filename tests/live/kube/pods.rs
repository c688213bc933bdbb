//! Agents in pods of the cluster. Beside `KUBECONFIG` these tests need an image that its nodes have and that holds a shell, the usual small
//! tools and `/usr/local/bin/mosaic-init` (`MOSAIC_TEST_POD_IMAGE`), and the address at which pods reach this machine
//! (`MOSAIC_TEST_LINK_HOST`).

mod contract;
mod faults;
mod jobs;
mod kills;
mod lost;
mod probes;
mod reasons;
mod standby;
mod warm;

use super::cluster::{Cluster, cluster_now};
use crate::harness::{Mosaic, PATIENCE, eventually};
use crate::skip::skip;
use serde_json::Value;
use std::net::TcpListener;
use std::process::Command;
use std::time::Instant;
use tokio::runtime::Runtime;

const LABEL: &str = "labelSelector=app.kubernetes.io%2Fname%3Dmosaic-sandbox";
const KINDS: [&str; 3] = ["/api/v1/pods", "/api/v1/secrets", "/apis/networking.k8s.io/v1/networkpolicies"];

/// What pods of these tests are made with.
#[derive(Clone)]
pub struct Place {
    pub image: String,
    /// Another image with init, which a first container brings; without `MOSAIC_TEST_INIT_IMAGE` the same one, which then brings it itself.
    pub init_image: String,
    pub link_host: String,
}

impl Place {
    fn of(test: &str) -> Option<Self> {
        let read = |name: &str| std::env::var(name).ok();
        let place = read("MOSAIC_TEST_POD_IMAGE").zip(read("MOSAIC_TEST_LINK_HOST"));
        if place.is_none() {
            skip(test, "no image and address for pods: name them in MOSAIC_TEST_POD_IMAGE and MOSAIC_TEST_LINK_HOST");
        }
        place.map(|(image, link_host)| {
            let init_image = read("MOSAIC_TEST_INIT_IMAGE").unwrap_or_else(|| image.clone());
            Self { image, init_image, link_host }
        })
    }

    /// One whose image needs nobody to bring its init.
    fn with_own_init(&self) -> Self {
        Self { init_image: self.image.clone(), ..self.clone() }
    }

    /// Flags of a controller that runs its agents in pods.
    pub fn flags(&self) -> Vec<String> {
        // A controller that comes back is looked for where its pods know it.
        let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let (address, listen) = (format!("{}:{port}", self.link_host), format!("0.0.0.0:{port}"));
        let flags = [
            "--store",
            "kube",
            "--driver",
            "pod",
            "--link-address",
            &address,
            "--link-listen",
            &listen,
            "--sandbox-image",
            &self.image,
            "--init-image",
            &self.init_image,
            "--image-pull-policy",
            "Never",
        ];
        flags.map(str::to_owned).into()
    }

    pub fn start(&self, more: &[&str]) -> Mosaic {
        let flags = self.flags();
        let all: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Mosaic::start(&all)
    }
}

/// The cluster for one test on pods, or why not.
fn with_pods(test: &str) -> Option<(Cluster, Runtime, Place)> {
    let place = Place::of(test)?;
    let (cluster, runtime) = cluster_now(test)?;
    Some((cluster, runtime, place))
}

/// Pods of agents, as the API server has them.
fn pods(cluster: &Cluster, runtime: &Runtime) -> Vec<Value> {
    let list = runtime.block_on(cluster.ask("GET", &format!("/api/v1/pods?{LABEL}"), None)).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// Waits until nothing of any agent is left in the cluster.
fn assert_no_objects_left(cluster: &Cluster, runtime: &Runtime) {
    eventually("all objects go", || {
        KINDS.iter().all(|kind| {
            let list = runtime.block_on(cluster.ask("GET", &format!("{kind}?{LABEL}"), None)).unwrap();
            list["items"].as_array().unwrap().is_empty()
        })
    });
}

/// Processes of this machine whose command line holds a text: what a pod of a cluster on this very machine runs.
fn processes(text: &str) -> usize {
    pids(text).len()
}

/// The same, by their numbers.
fn pids(text: &str) -> Vec<u32> {
    let holds = |pid: &u32| -> bool {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(text) && !state.contains(") Z ")
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.filter(|pid| *pid != std::process::id() && holds(pid)).collect()
}

/// Cuts the network between pods and one controller. The packet filter of this machine must be ours.
pub struct Cut {
    port: String,
}

/// While it lives, nothing passes.
pub struct Closed<'a>(&'a Cut);

impl Cut {
    /// Of the link of a controller that runs; says so if nothing can be cut here.
    fn of(test: &str, mosaic: &Mosaic) -> Option<Self> {
        let can = Command::new("iptables").args(["-n", "-L", "INPUT"]).output().is_ok_and(|output| output.status.success());
        if !can {
            skip(test, "nothing can be cut: it needs iptables, as root");
            return None;
        }
        let log = mosaic.log();
        let (_, rest) = log.split_once("listening on 0.0.0.0:").expect("it says where its link is");
        Some(Self { port: rest.chars().take_while(char::is_ascii_digit).collect() })
    }

    fn close(&self) -> Closed<'_> {
        self.rules("-I");
        Closed(self)
    }

    /// Both ways, so that a word on a connection that stands is lost as well.
    fn rules(&self, verb: &str) {
        for (chain, side) in [("INPUT", "--dport"), ("OUTPUT", "--sport")] {
            let args = ["-w", verb, chain, "-p", "tcp", side, &self.port, "-j", "DROP"];
            assert!(Command::new("iptables").args(args).status().unwrap().success(), "{args:?}");
        }
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.rules("-D");
    }
}

/// Waits until something is so; how long that took, in milliseconds.
fn until(what: &str, holds: impl Fn() -> bool) -> u128 {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    started.elapsed().as_millis()
}

/// The PID 1 of the pod in which a command with this text runs, as this machine numbers it.
pub fn init_of(mark: &str) -> Option<rustix::process::Pid> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pids(mark).first()?)).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    rustix::process::Pid::from_raw(parent)
}
