//! The pod driver: a sandbox is a pod with `mosaic-init` as PID 1 of its container.
//!
//! ```text
//!  intent, files as an archive ─> Secret, NetworkPolicy, Pod (POST, fixed names) ─> init asks over TLS: begin, files, grant ─> runs
//!  output, changed files, last word over the link ─> container terminated, by the kubelet's word ─> the end ─> finalizer, objects removed
//! ```
//!
//! Nothing is shared with the host of a pod: what the other drivers mount travels over the link (`link::remote`, `inside::pod`), and is laid
//! out in the same folders here, so that all that comes after a run is the same. That a run lives is told by its lock, which this driver holds
//! for it from its making until its end was seen; a restart takes it again. An end is the terminated state of its container, which our
//! finalizer keeps, or that its node has ended; never that an object is not there (`word`). `body` says what is made.
//!
//! With `--warm` some pods are made ahead, and wait for a run (`warm`).
//!
//! The API server is asked to make and to remove; what becomes of pods is followed by one watch. A kill is the word over the link, which ends
//! the namespace within milliseconds, and beside it a deletion with a second of grace.

mod body;
pub(crate) mod cluster;
mod elsewhere;
mod maker;
mod warm;
mod watch;
mod word;

use crate::api::names::{Role, RunId, Secret};
use crate::inside::wire::{ExitReport, FILE_CONTAINER, FILE_EXIT, FILE_WAIT, WaitReport};
use crate::sandbox::bridge::Bridge;
use crate::sandbox::config::SandboxConfig;
use crate::sandbox::docker::labels;
use crate::sandbox::folder::{MadeContainer, RunFolder};
use crate::sandbox::link::LinkServer;
use crate::sandbox::link::remote::{Authority, FILE_UNTAKEN, age_of_files};
use crate::sandbox::runs::{Run, status_of};
use crate::sandbox::{Refusal, SandboxError};
use crate::store::kube::call::Api;
use cluster::Cluster;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use word::End;

/// Our finalizer on a pod: off once its end was seen.
pub(crate) const FINALIZER: &str = "mosaicstack.dev/end-seen";
/// How often a running agent's files are sent, so that a lost node costs no more than this.
pub(crate) const SNAPSHOT_MILLIS: u64 = 30_000;
/// File of a run with the token of its pod.
const FILE_TOKEN: &str = "token";
/// File of a run: an operator says that its node is gone, as JSON text who.
pub(crate) const FILE_NODE_GONE: &str = "node-gone.json";
/// Where the image that brings init has it.
pub const INIT_PATH_DEFAULT: &str = "/usr/local/bin/mosaic-init";

/// Settings of the pod driver.
#[derive(Debug, Clone, PartialEq)]
pub struct PodConfig {
    /// Where the link of pods listens.
    pub listen: SocketAddr,
    /// `host:port` at which pods find it.
    pub address: String,
    /// Pods behind that address, where it is a Service's: namespace and labels. A policy looks at pods, not at Services.
    pub link_pods: Option<(String, BTreeMap<String, String>)>,
    /// Image of runs that name none.
    pub image: String,
    /// Image with `mosaic-init`.
    pub init_image: String,
    /// Where it is in there.
    pub init_path: String,
    /// `imagePullPolicy`.
    pub pull_policy: Option<String>,
    /// `imagePullSecrets`, by name, in the namespace of the agent.
    pub pull_secrets: Vec<String>,
    /// `nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// `tolerations`.
    pub tolerations: Vec<Value>,
    /// How long a pod may wait for a node or an image.
    pub pending_max: Duration,
    /// The records are in the same cluster, so that an agent can own its pods.
    pub is_owned: bool,
}

/// The pod driver's part of all runs.
pub(crate) struct Pods {
    config: Arc<SandboxConfig>,
    /// `None`: this controller makes no pods.
    served: Option<Served>,
    bridge: Bridge,
    shared: Arc<Shared>,
    warm: Arc<warm::Pool>,
}

/// What is there where pods are made.
struct Served {
    pod: PodConfig,
    cluster: Arc<Cluster>,
    link: Vec<SocketAddr>,
    authority: Authority,
    /// Bound, and not served yet.
    listener: Mutex<Option<TcpListener>>,
}

/// What the watch and the runs have in common.
struct Shared {
    link: Arc<LinkServer>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Pods of this installation, by namespace and name, as the cluster last showed them.
    pods: BTreeMap<(String, String), Pod>,
    /// Those of the listing that goes on.
    listed: Option<BTreeSet<(String, String)>>,
    /// All of them were shown since the watch began.
    is_synced: bool,
    /// Runs that live, or may.
    runs: BTreeMap<RunId, Arc<Entry>>,
}

/// A run whose end was not seen.
struct Entry {
    run: RunId,
    folder: RunFolder,
    namespace: String,
    name: String,
    /// Whoever holds it lives: the pod cannot, so we do for it. Dropped when its end was seen.
    lock: Mutex<Option<File>>,
}

impl Pods {
    /// Connects to the cluster where pods are served; adopts nothing yet.
    pub(crate) fn open(config: Arc<SandboxConfig>, pod: Option<PodConfig>, link: Arc<LinkServer>) -> Result<Self, SandboxError> {
        let cannot = |e: io::Error| SandboxError::Unsupported(format!("failed to prepare for pods: {e}"));
        let bridge = Bridge::new().map_err(cannot)?;
        let shared = Arc::new(Shared { link, state: Mutex::default() });
        let warm = Arc::default();
        let Some(mut pod) = pod else { return Ok(Self { config, served: None, bridge, shared, warm }) };
        let client = bridge.wait(crate::store::kube::client()).map_err(|e| SandboxError::Unsupported(crate::causes::one_line(&e)))?;
        let cluster = Arc::new(Cluster::new(client));
        let authority = Authority::open(&config.state).map_err(cannot)?;
        let bound = TcpListener::bind(pod.listen).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        });
        let (listen, listener) = bound.map_err(|e| SandboxError::Unsupported(format!("cannot listen on {} for pods: {e}", pod.listen)))?;
        pod.listen = listen;
        // A port that was left to the kernel is known only now.
        let address = match pod.address.strip_suffix(":0") {
            Some(host) => format!("{host}:{}", pod.listen.port()),
            None => pod.address.clone(),
        };
        let addresses = body::addresses(&address).map_err(SandboxError::Unsupported)?;
        let asked = cluster.clone();
        bridge.wait(async move { may_make_pods(asked.api()).await }).map_err(SandboxError::Unsupported)?;
        crate::kill::cluster::remember(&config.state, &config.installation).map_err(cannot)?;
        watch::start(&bridge, &cluster, &shared, &config);
        let served = Served { pod, cluster, link: addresses, authority, listener: Mutex::new(Some(listener)) };
        Ok(Self { config, served: Some(served), bridge, shared, warm })
    }

    /// All runs of this state folder are known: their pods are answered from now on.
    pub(crate) fn serve(&self) {
        let Some(served) = &self.served else { return };
        if let Some(listener) = served.listener.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.shared.link.listen(listener, &served.authority);
        }
    }

    /// Where pods find the link, for people; `None`: no pods are made here.
    pub(crate) fn link(&self) -> Option<String> {
        let served = self.served.as_ref()?;
        let link: Vec<String> = served.link.iter().map(ToString::to_string).collect();
        Some(format!("link at {}, listening on {}; image {}", link.join(" and "), served.pod.listen, served.pod.image))
    }

    fn served(&self) -> Result<&Served, SandboxError> {
        let message = "this controller makes no pods: start it with --link-address, which pods reach it at";
        self.served.as_ref().ok_or_else(|| SandboxError::Refused { why: Refusal::DriverNotServed, message: message.to_owned() })
    }
}

/// Looks whether pods can be made from here: what would refuse each of them is told before the first.
/// # Errors
/// In words: the address is none, no cluster answers, or rights are missing.
pub(crate) fn examine(pod: &PodConfig) -> Result<String, String> {
    let addresses = body::addresses(&pod.address)?;
    let bridge = Bridge::new().map_err(|e| e.to_string())?;
    bridge.wait(async {
        let client = crate::store::kube::client().await.map_err(|e| crate::causes::one_line(&e))?;
        let cluster = Cluster::new(client);
        may_make_pods(cluster.api()).await
    })?;
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    Ok(format!("the cluster lets us make them; they find the link at {}", addresses.join(" and ")))
}

async fn may_make_pods(api: &Api) -> Result<(), String> {
    let missing = crate::store::kube::missing_for_pods(api).await.map_err(|e| crate::causes::one_line(&e))?;
    match missing.is_empty() {
        true => Ok(()),
        false => Err(format!("this controller may not {}; `mosaic crd --rbac` prints the rights that pods need", missing.join(", "))),
    }
}

/// The token of a run's pod, made once.
pub(crate) fn token_of(folder: &RunFolder) -> io::Result<Secret> {
    let path = folder.path().join(FILE_TOKEN);
    if !path.exists() {
        crate::durable::make_once(&path, new_token().expose().as_bytes())?;
    }
    std::fs::read_to_string(path).map(Secret::new)
}

/// A token that nobody can guess.
fn new_token() -> Secret {
    Secret::new(format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple()))
}

/// Whether nothing of a pod runs, or ever will, by its own object.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    matches!(word::of(pod), word::Word::Ended(_))
}

/// The run of a pod, and `namespace/name` of its agent; `None`: it is none of ours.
pub(crate) fn run_of(pod: &Pod) -> Option<(RunId, String)> {
    let notes = pod.metadata.annotations.as_ref()?;
    let run = serde_json::from_str(notes.get(labels::RUN)?).ok()?;
    Some((run, notes.get(labels::AGENT).cloned().unwrap_or_default()))
}

/// What selects the pods of an installation that were made from one state folder.
pub(crate) fn selector(installation: &str, home: &str) -> String {
    format!("{}={installation},{}={home}", labels::INSTALLATION, labels::HOME)
}

/// Namespace and name of a pod.
pub(crate) fn key_of(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

/// Namespace and name of a made pod.
pub(crate) fn place_of(made: &MadeContainer) -> (&str, &str) {
    made.name.split_once('/').unwrap_or(("default", &made.name))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the lock of a run from now on.
    fn enter(&self, entry: Entry) {
        self.state().runs.insert(entry.run.clone(), Arc::new(entry));
    }

    fn entry(&self, run: &RunId) -> Option<Arc<Entry>> {
        self.state().runs.get(run).cloned()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        self.state().pods.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Writes down how a run ended, and lets go of its lock. Until both are done it counts as alive.
    fn conclude(&self, entry: &Entry, end: &End) -> io::Result<()> {
        let mut lock = entry.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_none() {
            return Ok(());
        }
        // Whatever is being taken of it is finished first.
        self.link.close(&entry.run);
        let untaken: Option<String> = entry.folder.read(FILE_UNTAKEN)?;
        let has_report = entry.has_last_word();
        let unsaid = || end.words.clone().unwrap_or_else(|| "its container ended without a word of its init".to_owned());
        let failed = match untaken {
            Some(why) => Some(format!("its files could not be taken back: {why}")),
            None if has_report => None,
            None => Some(unsaid()),
        };
        let failed = failed.map(|why| if entry.run.role == Role::Agent { format!("{why}; {}", age_of_files(&entry.folder)) } else { why });
        // Where nobody tells a code, init's report alone is not contradicted.
        let status = end.code.map(status_of);
        let word = WaitReport { failed, status, oom_kills: u64::from(end.oom_killed), ..WaitReport::default() };
        match entry.folder.write_durably(FILE_WAIT, &word) {
            // Somebody took the folder away: there is nothing to be told, and nobody to tell.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !entry.folder.path().exists() => {}
            written => written?,
        }
        *lock = None;
        drop(lock);
        self.state().runs.remove(&entry.run);
        self.link.tell(&entry.run.uid);
        Ok(())
    }
}

impl Entry {
    fn new(run: &Run, namespace: String, name: String, lock: File) -> Self {
        Self { run: run.id.clone(), folder: run.folder.clone(), namespace, name, lock: Mutex::new(Some(lock)) }
    }

    /// Whether an operator has said that the node of this run is gone.
    fn is_node_said_gone(&self) -> bool {
        self.folder.path().join(FILE_NODE_GONE).exists()
    }

    /// The uid of its pod, once the API server has answered.
    fn uid(&self) -> Option<String> {
        self.folder.read::<MadeContainer>(FILE_CONTAINER).ok().flatten().map(|made| made.id)
    }

    /// Whether its init has said that nothing else lives there any more.
    fn has_last_word(&self) -> bool {
        self.folder.read::<ExitReport>(FILE_EXIT).is_ok_and(|report| report.is_some())
    }
}
