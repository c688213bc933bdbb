//! What the pod driver does for all runs: `runs::Maker` for pods.

use super::body::{self, Mark, Plan};
use super::cluster::{Object, failed as call_failed, is_over_quota, refusal};
use super::word::{self, Word};
use super::{Entry, Pods, Served, watch};
use crate::api::agent::Driver;
use crate::api::names::RunId;
use crate::cleanups::Stray;
use crate::inside::archive::{self, Bounds, Manifest, Root};
use crate::inside::wire::{ExitReport, FILE_CONTAINER, FILE_SPEC, FILE_WAIT, LaunchSpec, WORKSPACE, WaitReport};
use crate::sandbox::docker::engine::{container_name, name_prefix};
use crate::sandbox::docker::labels;
use crate::sandbox::folder::{ContainerSpec, MadeContainer, RunFolder, StoredSpec, short};
use crate::sandbox::limits::{Bound, Means};
use crate::sandbox::link::remote::{FILE_FILES, FILE_PARCEL, parcel_of};
use crate::sandbox::runs::{Claimed, Coming, Maker, Run, failed};
use crate::sandbox::{Refusal, RunSpec, SandboxError};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First of the user ids of pods; each run has one of its own, so that the kernel counts its processes by themselves.
const UID_FIRST: u32 = 1_000_000_000;
/// How many there are: two runs on one node hardly ever have the same.
const UIDS: u32 = 1_000_000_000;
/// Threads of init itself.
const THREADS_OF_INIT: u64 = 8;
/// How long an image may be refused before that is final: a registry may have hiccups, and the kubelet tries again by itself.
const REFUSED_PATIENCE: Duration = Duration::from_secs(15);
/// How long a quota may take to count what has made room for an agent, and the pause between two tries.
const QUOTA_PATIENCE: Duration = Duration::from_secs(5);
const QUOTA_PAUSE: Duration = Duration::from_millis(250);
/// Of a run whose pod went without anybody having seen its end.
const WITHOUT_POD: &str =
    "its pod is not in the cluster, and nobody has said that its container ended; `mosaic kill NAME --node-is-gone` if you know";
/// Pods that are swept at once, in one pass.
const SWEPT_MAX: usize = 256;

impl Maker for Pods {
    fn driver(&self) -> Driver {
        Driver::Pod
    }

    fn means(&self) -> Means {
        Means { memory: Bound::Kernel, pids: Bound::Kernel, cpu: Bound::Kernel }
    }

    fn check(&self, run: &Arc<Run>, spec: &RunSpec) -> Result<Option<Box<dyn Claimed>>, SandboxError> {
        self.claim(run, spec)
    }

    fn complete(&self, spec: &RunSpec, launch: &mut LaunchSpec, claimed: Option<&RunId>) -> Option<ContainerSpec> {
        (launch.contained, launch.pod) = (true, true);
        launch.uid = user_of(claimed.unwrap_or(&spec.run));
        launch.gid = launch.uid;
        launch.env.clone_from(&spec.env);
        launch.limits.memory_bytes_max = Some(spec.limits.memory_bytes);
        launch.limits.processes_max = Some(u64::from(spec.limits.pids_max) + THREADS_OF_INIT);
        let served = self.served.as_ref()?;
        let wish = self.wish_of(served, spec);
        if body::brings_init(&served.pod, &wish.image) && !launch.env.contains_key("GIT_CONFIG_COUNT") {
            // The kubelet makes the folders of the volume, as root, and git works in no tree of somebody else's that nobody vouches for.
            let vouched = [("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", WORKSPACE)];
            launch.env.extend(vouched.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        Some(wish)
    }

    fn adopt(&self, run: &Run, spec: &StoredSpec) -> io::Result<()> {
        let is_there = |name: &str| run.folder.path().join(name).exists();
        if is_there(FILE_CONTAINER) && !is_there(FILE_WAIT) {
            let lock = run.folder.open_lock()?;
            crate::inside::system::lock_file(lock.as_fd())?;
            self.enter(run, spec, lock)?;
        }
        Ok(())
    }

    fn start(&self, run: &Run, spec: &StoredSpec, lock: File) -> Result<(), SandboxError> {
        if run.folder.is_stopped().map_err(failed(&run.id, "look at"))? {
            return Ok(());
        }
        let launch = &spec.launch;
        let packed = pack(&run.folder, &launch.tree, launch.home.as_deref(), launch.base_objects.as_deref());
        packed.map_err(failed(&run.id, "pack the files of"))?;
        self.enter(run, spec, lock).map_err(failed(&run.id, "look at"))?;
        let made = self.make(run, spec);
        if made.is_err() {
            self.leave(&run.id);
        }
        made
    }

    fn is_unfinished(&self, run: &Run) -> io::Result<bool> {
        let is_there = |name: &str| run.folder.path().join(name).exists();
        Ok(!is_there(FILE_CONTAINER) && !is_there(FILE_WAIT) && run.session()?.is_none() && !run.folder.is_stopped()?)
    }

    fn may_come(&self, run: &Run) -> io::Result<bool> {
        let is_there = |name: &str| run.folder.path().join(name).exists();
        if is_there(FILE_WAIT) {
            return Ok(false);
        }
        // It may be taking a pod that waits.
        if !is_there(FILE_SPEC) && run.is_being_made() {
            return Ok(true);
        }
        if self.shared.entry(&run.id).is_some() {
            return Ok(true);
        }
        // A create that was asked for may have been answered when nobody listened.
        let Ok(served) = self.served() else { return Ok(false) };
        let Some((namespace, name)) = self.name_of(run)? else { return Ok(false) };
        let cluster = served.cluster.clone();
        let found = self.bridge.wait(async move { cluster.pod(&namespace, &name).await }).map_err(io::Error::other)?;
        Ok(found.is_some_and(|pod| !matches!(word::of(&pod), Word::Ended(_))))
    }

    fn last_word(&self, run: &Run, _report: Option<&ExitReport>) -> io::Result<Option<WaitReport>> {
        run.folder.read(FILE_WAIT)
    }

    fn strike(&self, run: &Run) {
        let (Ok(served), Ok(Some((namespace, name)))) = (self.served(), self.name_of(run)) else { return };
        let uid = run.folder.read::<MadeContainer>(FILE_CONTAINER).ok().flatten().map(|made| made.id);
        let cluster = served.cluster.clone();
        self.bridge.begin(async move {
            if let Err(error) = cluster.delete(Object::Pod, &namespace, &name, uid.as_deref()).await {
                tracing::debug!(name, error = crate::causes::one_line(&error), "the API server did not delete a pod");
            }
        });
    }

    fn kill_starter(&self, _run: &Run, _init_gone_for: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn clear(&self, run: &Run) -> io::Result<()> {
        let Some((namespace, name)) = self.name_of(run)? else { return Ok(()) };
        let Ok(served) = self.served() else {
            return Err(io::Error::other("its pod cannot be removed: this controller makes no pods (--link-address)"));
        };
        let uid = run.folder.read::<MadeContainer>(FILE_CONTAINER)?.map(|made| made.id);
        let cluster = served.cluster.clone();
        let removed = self.bridge.wait(async move {
            let (secret, policy) = tokio::join!(
                cluster.delete(Object::Secret, &namespace, &name, None),
                cluster.delete(Object::Policy, &namespace, &name, None)
            );
            secret?;
            policy?;
            let Some(pod) = cluster.pod(&namespace, &name).await? else { return Ok(()) };
            let uid = uid.or(pod.metadata.uid).unwrap_or_default();
            cluster.delete(Object::Pod, &namespace, &name, Some(&uid)).await?;
            cluster.release(&namespace, &name, &uid).await
        });
        removed.map_err(|e| call_failed(&run.id, "remove", e)).map_err(|e| io::Error::other(crate::causes::one_line(&e)))
    }

    fn sweep(&self, known: &dyn Fn() -> BTreeSet<String>) -> io::Result<()> {
        let (Ok(served), Some(pods)) = (self.served(), watch::shown(&self.shared)) else { return Ok(()) };
        if pods.is_empty() {
            return Ok(());
        }
        // After the look: who makes a pod is known before. What is prepared first: it becomes a run's, in whose entry is the name that it keeps.
        let mut names = self.warm.names();
        names.extend(self.shared.state().runs.values().map(|entry| entry.name.clone()));
        let known = known();
        let is_known = |pod: &Pod| match run_name(pod) {
            _ if names.contains(&super::key_of(pod).1) => true,
            None => true,
            Some(run) => known.contains(run) && self.is_pod_of(run, pod),
        };
        let strays = pods.into_values().filter(|pod| !is_known(pod));
        for pod in strays.take(SWEPT_MAX) {
            let (namespace, name) = (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default());
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let has_ended = matches!(word::of(&pod), Word::Ended(_));
            let (cluster, place) = (served.cluster.clone(), (namespace.clone(), name.clone()));
            let swept = self.bridge.wait(async move {
                let (namespace, name) = place;
                cluster.delete(Object::Pod, &namespace, &name, Some(&uid)).await?;
                if has_ended {
                    cluster.delete(Object::Secret, &namespace, &name, None).await?;
                    cluster.delete(Object::Policy, &namespace, &name, None).await?;
                    cluster.release(&namespace, &name, &uid).await?;
                }
                Ok::<(), crate::store::kube::call::CallError>(())
            });
            swept.map_err(io::Error::other)?;
            if has_ended {
                tracing::info!(name, namespace, "removed a pod that belongs to no run");
                self.config.cleanups.tell(Stray::Container, &format!("pod {namespace}/{name}, which belongs to no run"));
            }
        }
        Ok(())
    }

    fn takes_back(&self) -> bool {
        true
    }

    fn start_patience(&self) -> Duration {
        self.served.as_ref().map_or(Duration::ZERO, |served| served.pod.pending_max)
    }

    fn coming(&self, run: &Run, since: Instant) -> Coming {
        let Some(entry) = self.shared.entry(&run.id) else { return Coming::default() };
        let Some(pod) = self.shared.pod(&entry.namespace, &entry.name) else { return Coming::default() };
        let Word::Coming { doing, hopeless } = word::of(&pod) else { return Coming::default() };
        if let Some((Refusal::Unschedulable, _)) = &hopeless {
            self.warm.give_way();
        }
        let patience = match &hopeless {
            // A node may be on its way, as an image that its registry refuses is not.
            Some((why, _)) if why.may_pass() => self.start_patience(),
            Some(_) => REFUSED_PATIENCE,
            None => Duration::MAX,
        };
        let refused = hopeless.filter(|_| since.elapsed() >= patience);
        Coming { doing: Some(doing), refused: refused.map(|(why, message)| SandboxError::Refused { why, message }) }
    }

    fn doubt(&self, run: &Run) -> Option<String> {
        let entry = self.shared.entry(&run.id)?;
        if self.shared.pod(&entry.namespace, &entry.name).is_some() || entry.has_last_word() {
            return None;
        }
        // The watch may be behind, and what is said has consequences.
        let cluster = self.served().ok()?.cluster.clone();
        let found = self.bridge.wait(async move { cluster.pod(&entry.namespace, &entry.name).await });
        matches!(found, Ok(None)).then(|| WITHOUT_POD.to_owned())
    }

    fn still(&self, run: &Run) -> String {
        let pod = self.shared.entry(&run.id).and_then(|entry| self.shared.pod(&entry.namespace, &entry.name));
        let Some(pod) = pod else { return WITHOUT_POD.to_owned() };
        let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
        let has_said = self.shared.entry(&run.id).is_some_and(|entry| entry.has_last_word());
        let text = if has_said { "; its init has said that nothing else lives" } else { "" };
        format!("the kubelet of node {node} has not said yet that its container ended{text}")
    }
}

/// The user of a pod that is made for this run.
pub(super) fn user_of(run: &RunId) -> u32 {
    let number = u32::from_str_radix(&short(run)[..8], 16).unwrap_or_default();
    UID_FIRST + number % UIDS
}

fn run_name(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(labels::RUN_NAME).map(String::as_str)
}

/// Packs what the pod begins with, unless that was done.
pub(super) fn pack(folder: &RunFolder, tree: &Path, home: Option<&Path>, base_objects: Option<&Path>) -> io::Result<()> {
    if folder.path().join(FILE_PARCEL).exists() {
        return Ok(());
    }
    let mut roots = Vec::new();
    for (root, path) in [(Root::Workspace, Some(tree)), (Root::Home, home), (Root::Base, base_objects)] {
        if let Some(path) = path {
            roots.push((root, archive::open_root(path)?));
        }
    }
    let roots: Vec<_> = roots.iter().map(|(root, path)| (*root, path)).collect();
    let path = folder.path().join(FILE_FILES);
    let mut out = io::BufWriter::with_capacity(1 << 20, File::create(&path)?);
    Manifest::default().write_changes(&roots, Bounds { bytes_max: u64::MAX, entries_max: u64::MAX }, &mut out)?;
    out.flush()?;
    folder.write_durably(FILE_PARCEL, &parcel_of(&path)?)
}

impl Pods {
    /// What the kubelet is asked for.
    pub(super) fn wish_of(&self, served: &Served, spec: &RunSpec) -> ContainerSpec {
        ContainerSpec { image: spec.image.clone().unwrap_or_else(|| served.pod.image.clone()), runtime: spec.runtime_class.clone() }
    }

    /// Whether a pod is that of the run in this folder; where that cannot be told it is.
    fn is_pod_of(&self, run: &str, pod: &Pod) -> bool {
        let (namespace, name) = super::key_of(pod);
        match RunFolder::at(self.config.state.join("runs").join(run)).read::<MadeContainer>(FILE_CONTAINER) {
            Ok(Some(made)) => made.name == format!("{namespace}/{name}"),
            Ok(None) => name == format!("{}{run}", name_prefix(&self.config.installation)),
            Err(_) => true,
        }
    }

    /// Holds the lock of a run from now on.
    fn enter(&self, run: &Run, spec: &StoredSpec, lock: File) -> io::Result<()> {
        let (namespace, name) = self.place_of(run, spec)?;
        self.shared.enter(Entry::new(run, namespace, name, lock));
        Ok(())
    }

    /// Lets go of it: nothing was made, or the next try takes it again.
    fn leave(&self, run: &RunId) {
        self.shared.state().runs.remove(run);
    }

    /// Namespace and name of the pod of a run; `None`: there is no intent for one.
    fn name_of(&self, run: &Run) -> io::Result<Option<(String, String)>> {
        let spec = run.folder.read::<StoredSpec>(FILE_SPEC)?;
        spec.map(|spec| self.place_of(run, &spec)).transpose()
    }

    /// The same by its intent: one that was made ahead keeps its name.
    fn place_of(&self, run: &Run, spec: &StoredSpec) -> io::Result<(String, String)> {
        if let Some(made) = run.folder.read::<MadeContainer>(FILE_CONTAINER)? {
            let (namespace, name) = super::place_of(&made);
            return Ok((namespace.to_owned(), name.to_owned()));
        }
        Ok((body::place_of(&spec.agent).0.to_owned(), container_name(&self.config.installation, &run.id)))
    }

    /// Makes the objects of a run, as far as they are not there.
    fn make(&self, run: &Run, spec: &StoredSpec) -> Result<(), SandboxError> {
        let served = self.served()?;
        let wish = spec.container.clone().ok_or_else(|| SandboxError::Unsupported("the intent names no image".to_owned()))?;
        let token = super::token_of(&run.folder).map_err(failed(&run.id, "make"))?;
        let name = container_name(&self.config.installation, &run.id);
        let (namespace, _) = body::place_of(&spec.agent);
        let plan = Plan {
            pod: &served.pod,
            mark: Mark {
                installation: &self.config.installation,
                state: &self.config.state,
                namespace,
                name: &name,
                run: &run.id,
                agent: &spec.agent,
                epoch: spec.epoch,
                is_owned: served.pod.is_owned,
            },
            user: spec.launch.uid,
            limits: &spec.limits,
            wish: &wish,
            token: &token,
            link: &served.link,
            authority: served.authority.certificate(),
            owner: None,
        };
        let (secret, policy, pod) = (plan.secret(), plan.policy(), plan.pod());
        let (cluster, place) = (served.cluster.clone(), (namespace.to_owned(), name.clone()));
        let warm = self.warm.clone();
        let made = self.bridge.wait(async move {
            let (secret, policy) = tokio::join!(cluster.create(Object::Secret, &secret), cluster.create(Object::Policy, &policy));
            secret?;
            policy?;
            let until = Instant::now() + QUOTA_PATIENCE;
            let mut gave_way = false;
            loop {
                match cluster.create(Object::Pod, &pod).await {
                    Ok(Some(uid)) => return Ok(Some(uid)),
                    // One of an earlier try.
                    Ok(None) => return Ok(cluster.pod(&place.0, &place.1).await?.and_then(|pod| pod.metadata.uid)),
                    Err(error) if is_over_quota(&error) && Instant::now() < until => {
                        gave_way |= warm.give_way();
                        if !gave_way {
                            return Err(error);
                        }
                        tokio::time::sleep(QUOTA_PAUSE).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        });
        let uid = made.map_err(|error| refusal(&run.id, error))?;
        let uid = uid.ok_or_else(|| failed(&run.id, "make")(io::Error::other(format!("pod {namespace}/{name} was there and is gone"))))?;
        let made = MadeContainer { id: uid, name: format!("{namespace}/{name}") };
        run.folder.write_durably(FILE_CONTAINER, &made).map_err(failed(&run.id, "make"))?;
        Ok(())
    }
}
