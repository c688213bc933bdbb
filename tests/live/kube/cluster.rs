//! The cluster of these tests, and ways to look at it that share no code with the product.

use crate::skip::skip;
use kube::Client;
use mosaic::api::schema::crd_yaml;
use mosaic::store::Kind;
use mosaic::store::kube::{KubeOptions, KubeStore};
use serde_json::{Value, json};
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for the API server to do what it was asked.
const PATIENCE: Duration = Duration::from_secs(60);
const AGENTS: &str = "/apis/mosaicstack.dev/v1alpha1/agents";
const HALTS: &str = "/apis/mosaicstack.dev/v1alpha1/halts";

/// The cluster, emptied of what is ours, for one test.
pub struct Cluster {
    pub client: Client,
    /// Held by one test of all test programs at a time.
    _alone: File,
}

/// Has the cluster for the named test, or says that there is none.
pub async fn cluster(test: &str) -> Option<Cluster> {
    let kubeconfig = std::env::var_os("KUBECONFIG").is_some_and(|path| std::path::Path::new(&path).is_file());
    if !kubeconfig {
        skip(test, "there is no Kubernetes cluster: name one in KUBECONFIG");
        return None;
    }
    let lock = File::create(std::env::temp_dir().join("mosaic-test-kube.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let cluster = Cluster { client: Client::try_default().await.unwrap(), _alone: lock };
    cluster.empty().await;
    Some(cluster)
}

/// As `cluster`, for a test that is no async one.
pub fn cluster_now(test: &str) -> Option<(Cluster, tokio::runtime::Runtime)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cluster = runtime.block_on(cluster(test))?;
    Some((cluster, runtime))
}

impl Cluster {
    /// A store in it, with limits that a test can reach.
    pub fn store(&self) -> KubeStore {
        KubeStore::new(self.client.clone(), KubeOptions { history_max: 5, watch_window: Duration::from_secs(10) })
    }

    /// One request; the answer's JSON, or the status of a refusal.
    pub async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Box<kube::core::Status>> {
        let kind = match method {
            "PATCH" => "application/merge-patch+json",
            "APPLY" => "application/apply-patch+yaml",
            _ => "application/json",
        };
        let method = if method == "APPLY" { "PATCH" } else { method };
        let request = hyper::Request::builder().method(method).uri(path).header("content-type", kind);
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        match self.client.request(request.body(body).unwrap()).await {
            Ok(answer) => Ok(answer),
            Err(kube::Error::Api(status)) => Err(status),
            Err(other) => panic!("{method} {path}: {other}"),
        }
    }

    /// Our definitions are there and nothing of ours is.
    async fn empty(&self) {
        for kind in [Kind::Agent, Kind::Halt] {
            let definition: Value = serde_saphyr::from_str(&crd_yaml(kind)).unwrap();
            let name = definition["metadata"]["name"].as_str().unwrap();
            let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}?fieldManager=test&force=true");
            self.ask("APPLY", &path, Some(&definition)).await.unwrap();
        }
        for name in ["other"] {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            let _ = self.ask("POST", "/api/v1/namespaces", Some(&namespace)).await;
        }
        for all in [AGENTS, HALTS] {
            self.until_empty(all).await;
        }
        let leases = "/apis/coordination.k8s.io/v1/leases?fieldSelector=metadata.name%3Dmosaic";
        for lease in self.ask("GET", leases, None).await.unwrap()["items"].as_array().unwrap() {
            let namespace = lease["metadata"]["namespace"].as_str().unwrap();
            let _ = self.ask("DELETE", &format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/mosaic"), None).await;
        }
        let maps = "/api/v1/namespaces/default/configmaps?labelSelector=app.kubernetes.io%2Fmanaged-by%3Dmosaic";
        self.ask("DELETE", maps, None).await.unwrap();
        self.ask("DELETE", "/apis/events.k8s.io/v1/namespaces/default/events", None).await.unwrap();
    }

    /// Removes everything of a kind, whoever holds it.
    async fn until_empty(&self, all: &str) {
        let started = Instant::now();
        loop {
            // The definition may just have been made.
            let items = self.ask("GET", all, None).await.ok().and_then(|list| list["items"].as_array().cloned());
            match items {
                Some(items) if items.is_empty() => return,
                Some(items) => {
                    for item in items {
                        let path = path_of(all, &item);
                        let _ = self.ask("DELETE", &path, None).await;
                        let _ = self.ask("PATCH", &path, Some(&json!({ "metadata": { "finalizers": null } }))).await;
                    }
                }
                None => {}
            }
            assert!(started.elapsed() < PATIENCE, "{all} is not empty");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The object of an agent of the default namespace, if it is there.
    pub async fn agent(&self, name: &str) -> Option<Value> {
        self.ask("GET", &format!("/apis/mosaicstack.dev/v1alpha1/namespaces/default/agents/{name}"), None).await.ok()
    }

    /// The lease, if it is there.
    pub async fn lease(&self) -> Option<Value> {
        self.ask("GET", "/apis/coordination.k8s.io/v1/namespaces/default/leases/mosaic", None).await.ok()
    }
}

fn path_of(all: &str, item: &Value) -> String {
    let name = item["metadata"]["name"].as_str().unwrap();
    match item["metadata"]["namespace"].as_str() {
        Some(namespace) => all.replace("/agents", &format!("/namespaces/{namespace}/agents/{name}")),
        None => format!("{all}/{name}"),
    }
}

/// Whether there is a kubectl; says so if not.
pub fn has_kubectl(test: &str) -> bool {
    let found = Command::new("kubectl").args(["version", "--client"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        skip(test, "there is no kubectl in PATH");
    }
    found
}

/// Runs kubectl; what it says on both outputs, and whether it succeeded.
pub fn kubectl_says(args: &[&str]) -> (bool, String) {
    let out = Command::new("kubectl").args(args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), said)
}

/// Runs kubectl, which must succeed.
#[track_caller]
pub fn kubectl(args: &[&str]) -> String {
    let (done, said) = kubectl_says(args);
    assert!(done, "kubectl {args:?}: {said}");
    said
}

/// Gives kubectl objects on its input.
pub fn kubectl_with(args: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new("kubectl");
    let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

/// What such a program can stop, in the order in which it comes back.
const PARTS: [&str; 4] = ["etcd", "apiserver", "containerd", "kubelet"];

/// A program that stops (SIGKILL) and starts parts of the cluster: `PROGRAM stop apiserver`.
pub struct Control(String);

impl Control {
    /// The one that `MOSAIC_TEST_CLUSTER` names; says so if there is none.
    pub fn of(test: &str) -> Option<Self> {
        let named = std::env::var("MOSAIC_TEST_CLUSTER").ok();
        if named.is_none() {
            skip(test, "nothing can stop the API server: name a program in MOSAIC_TEST_CLUSTER");
        }
        named.map(Self)
    }

    pub fn stop(&self, part: &str) {
        self.run("stop", part);
    }

    pub fn start(&self, part: &str) {
        self.run("start", part);
    }

    fn run(&self, verb: &str, part: &str) {
        let status = Command::new(&self.0).args([verb, part]).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{} {verb} {part}", self.0);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        PARTS.iter().for_each(|part| self.start(part));
        let started = Instant::now();
        while !kubectl_says(&["get", "--raw", "/readyz"]).0 && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
