//! Pods that were made and started ahead (`--warm`): each waits for the run that takes it.
//!
//! ```text
//! prepare: Pod -> its Secret and policy, which it owns -> init asks how to begin, and is held at that
//! claim:   files are packed, the pod becomes the run's (labels, owner, our finalizer) -> intent -> the link answers the question
//! ```
//!
//! From there on everything is as in a pod that was made for the run. A pod is taken once and never again, and only by a run that would get the
//! very same: as many are kept of each shape that was asked for within the last hour.
//!
//! Nothing of an agent is in such a pod, and it executes nothing. It has no folder and no finalizer, and its labels name a run that never was.
//! When nobody answers it for a minute it ends by itself; what a controller leaves behind the next one sweeps. A kill of everything ends it with
//! the other pods of this state folder (`kill::cluster`).

use super::body::{Mark, Plan, place_of};
use super::cluster::{Cluster, Object};
use super::maker::{pack, user_of};
use super::word::{self, Word};
use super::{Entry, FILE_TOKEN, Pods, Served, Shared};
use crate::api::names::{Attempt, Epoch, Role, RunId, Secret, Uid};
use crate::api::validate::Limits;
use crate::inside::wire::FILE_CONTAINER;
use crate::sandbox::docker::engine::container_name;
use crate::sandbox::docker::labels;
use crate::sandbox::folder::{ContainerSpec, FILE_PREPARED, MadeContainer, PreparedContainer, short};
use crate::sandbox::link::Standing;
use crate::sandbox::runs::{Claimed, Run, failed};
use crate::sandbox::{RunSpec, SandboxError};
use crate::store::kube::call::CallError;
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pause between two rounds of keeping.
const ROUND_PAUSE: Duration = Duration::from_millis(250);
/// How long a shape is kept prepared after it was asked for last.
const SHAPE_TIME: Duration = Duration::from_secs(60 * 60);
/// How many shapes are kept at once; the one that was asked for longest ago goes first.
const SHAPES_MAX: usize = 4;
/// Pods that are being prepared at once.
const MAKING_MAX: usize = 4;
/// How long nothing is prepared after one was asked for: the run that asked begins first.
const ASK_PAUSE: Duration = Duration::from_millis(300);
/// How long nothing is prepared after an agent has found no room.
const ROOM_PAUSE: Duration = Duration::from_secs(60);
/// Whoever has asked so recently lives: a question is held for two seconds.
const ASKED_WITHIN: Duration = Duration::from_secs(5);
/// Whoever has not asked for so long does not any more.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// How long one may take to ask for the first time.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// Oldest one that is given to a run: its image may mean another one by then, and the kubelet ends a pod some day.
const AGE_MAX: Duration = Duration::from_secs(12 * 60 * 60);
/// How long the API server may take to delete what is prepared, at the end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What is prepared.
#[derive(Default)]
pub(super) struct Pool {
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    /// How many of each shape; 0: none.
    wanted: usize,
    /// With the instant at which each was asked for last; the latest last.
    shapes: Vec<(Shape, Instant)>,
    /// They are there, or are being made.
    made: Vec<Made>,
    /// What is not used, and may still be there.
    waste: Vec<Made>,
    /// Names of pods that were taken, and are not a run's yet.
    taken: BTreeSet<String>,
    paused_until: Option<Instant>,
}

/// What makes one pod as good as another.
#[derive(Debug, Clone, PartialEq)]
struct Shape {
    namespace: String,
    wish: ContainerSpec,
    limits: Limits,
}

/// One pod.
#[derive(Clone)]
struct Made {
    /// As what it was made.
    run: RunId,
    shape: Shape,
    name: String,
    token: Secret,
    /// Once the API server has answered.
    uid: Option<String>,
    since: Instant,
}

/// A pod that a run has taken.
struct Taken {
    made: Made,
    pool: Arc<Pool>,
    shared: Arc<Shared>,
    is_handed: bool,
}

impl Pool {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of all pods that are prepared, or on their way to a run. To be read before the runs: what is handed over meanwhile is found there.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let inside = self.inside();
        inside.made.iter().map(|made| made.name.clone()).chain(inside.taken.iter().cloned()).collect()
    }

    /// An agent needs the room: everything prepared goes, and nothing new comes for a while. Whether there was anything.
    pub(super) fn give_way(&self) -> bool {
        let mut inside = self.inside();
        inside.paused_until = Some(Instant::now() + ROOM_PAUSE);
        let made = std::mem::take(&mut inside.made);
        let had_some = !made.is_empty();
        inside.waste.extend(made);
        had_some
    }

    /// Takes one that is what a run would get, and notes that it was asked for.
    fn take(&self, shape: &Shape, is_ready: impl Fn(&Made) -> bool) -> Option<Made> {
        let mut inside = self.inside();
        if inside.wanted == 0 {
            return None;
        }
        inside.shapes.retain(|(known, _)| known != shape);
        inside.shapes.push((shape.clone(), Instant::now()));
        let at = inside.made.iter().position(|made| made.shape == *shape && is_ready(made))?;
        let made = inside.made.remove(at);
        inside.taken.insert(made.name.clone());
        Some(made)
    }
}

impl Inside {
    /// One of a shape came to nothing: so would the next one, until a run asks for that shape again.
    fn forget(&mut self, shape: &Shape, why: &str) {
        tracing::warn!(namespace = shape.namespace, image = shape.wish.image, why, "no pods are prepared until a run asks for one again");
        self.shapes.retain(|(known, _)| known != shape);
    }

    /// Takes in what came of making one; false: it is of no use.
    fn note_prepared(&mut self, made: &Made, answer: Result<String, CallError>) -> bool {
        let Some(at) = self.made.iter().position(|known| known.name == made.name) else { return false };
        match answer {
            Ok(uid) => {
                self.made[at].uid = Some(uid);
                true
            }
            Err(error) => {
                self.made.remove(at);
                self.forget(&made.shape, &crate::causes::one_line(&error));
                false
            }
        }
    }

    /// Which shapes are to be prepared now, once for each pod that is missing.
    fn missing(&self, now: Instant, is_coming: impl Fn(&Made) -> bool) -> Vec<Shape> {
        let just_asked = self.shapes.last().is_some_and(|(_, at)| now.duration_since(*at) < ASK_PAUSE);
        if just_asked || self.paused_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        let of = |shape: &Shape| self.wanted.saturating_sub(self.made.iter().filter(|made| made.shape == *shape).count());
        // What was asked for last comes first.
        let missing = self.shapes.iter().rev().flat_map(|(shape, _)| std::iter::repeat_n(shape.clone(), of(shape)));
        missing.take(MAKING_MAX.saturating_sub(self.made.iter().filter(|made| is_coming(made)).count())).collect()
    }
}

impl Made {
    fn mark<'a>(&'a self, pods: &'a Pods) -> Mark<'a> {
        Mark {
            installation: &pods.config.installation,
            state: &pods.config.state,
            namespace: &self.shape.namespace,
            name: &self.name,
            run: &self.run,
            agent: "",
            epoch: Epoch(0),
            is_owned: false,
        }
    }
}

impl Claimed for Taken {
    fn made_for(&self) -> &RunId {
        &self.made.run
    }

    fn hand_over(mut self: Box<Self>, run: &Run, lock: File) {
        let (namespace, name) = (self.made.shape.namespace.clone(), self.made.name.clone());
        self.shared.enter(Entry::new(run, namespace, name, lock));
        self.pool.inside().taken.remove(&self.made.name);
        self.is_handed = true;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.is_handed {
            let mut inside = self.pool.inside();
            inside.taken.remove(&self.made.name);
            inside.waste.push(self.made.clone());
        }
    }
}

impl Pods {
    /// Keeps so many pods prepared from now on, of each shape that is asked for.
    pub(crate) fn keep_warm(self: &Arc<Self>, count: usize) {
        self.warm.inside().wanted = count;
        let pods = Arc::downgrade(self);
        self.bridge.begin(async move {
            while let Some(pods) = pods.upgrade() {
                if !pods.round().await {
                    return;
                }
                drop(pods);
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        });
    }

    /// Ends and removes what is prepared, and prepares nothing more. What the API server does not remove in time the next controller does.
    pub(crate) fn end_prepared(&self) {
        let Ok(served) = self.served() else { return };
        let (cluster, all) = (served.cluster.clone(), {
            let mut inside = self.warm.inside();
            inside.wanted = 0;
            let made = std::mem::take(&mut inside.made);
            made.into_iter().chain(std::mem::take(&mut inside.waste)).collect::<Vec<_>>()
        });
        let ending = async move { join_all(all.iter().map(|made| discard(&cluster, made))).await };
        let _ = self.bridge.wait(async move { tokio::time::timeout(END_PATIENCE, ending).await.map(drop) });
    }

    /// Takes a prepared pod for a run, if there is one that is what the run would get.
    pub(super) fn claim(&self, run: &Run, spec: &RunSpec) -> Result<Option<Box<dyn Claimed>>, SandboxError> {
        let served = self.served()?;
        let (namespace, _) = place_of(&spec.agent);
        let shape = Shape { namespace: namespace.to_owned(), wish: self.wish_of(served, spec), limits: spec.limits.clone() };
        let Some(made) = self.warm.take(&shape, |made| self.is_ready(made)) else { return Ok(None) };
        let taken = Taken { made, pool: self.warm.clone(), shared: self.shared.clone(), is_handed: false };
        match self.give(served, run, spec, &taken.made) {
            (Ok(()), Ok(())) => return Ok(Some(Box::new(taken))),
            (_, Err(error)) => return Err(failed(&run.id, "prepare")(error)),
            (Err(error), _) => {
                let error = crate::causes::one_line(&error);
                tracing::warn!(run = %run.id, error, "a prepared pod cannot be used; making a new one");
            }
        }
        // What was written into it says another pod. Its tombstone stays, if somebody has stopped the run meanwhile.
        for name in [FILE_CONTAINER, FILE_PREPARED, FILE_TOKEN] {
            std::fs::remove_file(run.folder.path().join(name)).map_err(failed(&run.id, "prepare"))?;
        }
        Ok(None)
    }

    /// Lets the pod be the run's, in the cluster and in its folder.
    fn give(&self, served: &Served, run: &Run, spec: &RunSpec, made: &Made) -> (Result<(), CallError>, io::Result<()>) {
        let mark = Mark { run: &run.id, agent: &spec.agent, epoch: spec.epoch, is_owned: served.pod.is_owned, ..made.mark(self) };
        let (namespace, name) = (made.shape.namespace.clone(), made.name.clone());
        let pod = self.shared.pod(&namespace, &name).unwrap_or_default();
        let id = made.uid.clone().unwrap_or_default();
        let (cluster, patch) = (served.cluster.clone(), mark.claim(&id, pod.metadata.finalizers.unwrap_or_default()));
        let container = MadeContainer { id, name: format!("{namespace}/{name}") };
        self.bridge.wait_beside(async move { cluster.change_pod(&namespace, &name, &patch).await }, || {
            run.folder.make(self.config.ids.uid, self.config.ids.gid)?;
            crate::durable::make_once(&run.folder.path().join(FILE_TOKEN), made.token.expose().as_bytes())?;
            let prepared = PreparedContainer { run: made.run.clone(), home: labels::home(&self.config.state) };
            run.folder.write_durably(FILE_PREPARED, &prepared)?;
            run.folder.write_durably(FILE_CONTAINER, &container)?;
            pack(&run.folder, &spec.tree, spec.home.as_deref(), spec.base_objects.as_deref())
        })
    }

    /// Whether its init waits, by its own word a moment ago, and by the cluster's.
    fn is_ready(&self, made: &Made) -> bool {
        let has_asked = self.shared.link.asked_at(&short(&made.run)).is_some_and(|at| at.elapsed() < ASKED_WITHIN);
        let is_it = |pod: &Pod| pod.metadata.uid == made.uid && pod.metadata.deletion_timestamp.is_none() && word::of(pod) == Word::Runs;
        has_asked && made.since.elapsed() < AGE_MAX && self.shared.pod(&made.shape.namespace, &made.name).as_ref().is_some_and(is_it)
    }

    /// Why one is of no use any more; `None`: it is, or will be.
    fn is_spent(&self, made: &Made) -> Option<String> {
        let asked_at = self.shared.link.asked_at(&short(&made.run));
        if asked_at.is_some_and(|at| at.elapsed() > SILENT_MAX) || made.since.elapsed() > AGE_MAX {
            return Some("it does not ask any more, or is too old".to_owned());
        }
        match self.shared.pod(&made.shape.namespace, &made.name).as_ref().map(word::of) {
            Some(Word::Ended(end)) => Some(end.words.unwrap_or_else(|| "its container has ended".to_owned())),
            Some(Word::Coming { hopeless: Some((_, words)), .. }) => Some(words),
            Some(Word::Coming { doing, .. }) if made.since.elapsed() > START_PATIENCE => Some(doing),
            Some(Word::Coming { .. }) => None,
            Some(Word::Runs) | None if asked_at.is_none() && made.since.elapsed() > START_PATIENCE => {
                Some("it was never heard of over the link".to_owned())
            }
            Some(Word::Runs) | None => None,
        }
    }

    /// Takes away what is of no use, and makes what is missing; false: nothing is wanted any more.
    async fn round(&self) -> bool {
        let Some((served, waste, new)) = self.served().ok().and_then(|served| self.decide().map(|(waste, new)| (served, waste, new)))
        else {
            return false;
        };
        join_all(waste.iter().map(|made| discard(&served.cluster, made))).await;
        let answers = join_all(new.iter().map(|made| self.prepare(served, made))).await;
        let spent: Vec<&Made> = {
            let mut inside = self.warm.inside();
            let noted = new.iter().zip(answers).map(|(made, answer)| (made, inside.note_prepared(made, answer)));
            noted.filter_map(|(made, is_kept)| (!is_kept).then_some(made)).collect()
        };
        spent.iter().for_each(|made| self.shared.link.wait_no_more(&short(&made.run)));
        join_all(spent.into_iter().map(|made| discard(&served.cluster, made))).await;
        true
    }

    /// What is taken away, and what is made. `None`: nothing any more.
    fn decide(&self) -> Option<(Vec<Made>, Vec<Made>)> {
        let is_wanted = self.shared.link.standing(None) == Standing::Leads && self.config.latch.halts().is_empty();
        let mut inside = self.warm.inside();
        if inside.wanted == 0 {
            return None;
        }
        let now = Instant::now();
        if !is_wanted {
            // Nothing comes back by itself that somebody has ended, or that another one leads now.
            inside.shapes.clear();
        }
        inside.shapes.retain(|(_, asked_at)| now.duration_since(*asked_at) < SHAPE_TIME);
        let too_many = inside.shapes.len().saturating_sub(SHAPES_MAX);
        inside.shapes.drain(..too_many);
        let has_asked = |made: &Made| self.shared.link.asked_at(&short(&made.run)).is_some();
        for made in std::mem::take(&mut inside.made) {
            let spent = self.is_spent(&made);
            if spent.is_none() && inside.shapes.iter().any(|(shape, _)| *shape == made.shape) {
                inside.made.push(made);
                continue;
            }
            // What ended before it was of any use says that the next one would, too.
            if let Some(why) = spent.filter(|_| !has_asked(&made)) {
                inside.forget(&made.shape, &why);
            }
            inside.waste.push(made);
        }
        let waste = std::mem::take(&mut inside.waste);
        waste.iter().for_each(|made| self.shared.link.wait_no_more(&short(&made.run)));
        let missing = inside.missing(now, |made| !has_asked(made));
        let new: Vec<Made> = missing.into_iter().map(|shape| self.intend(shape)).collect();
        inside.made.extend(new.iter().cloned());
        Some((waste, new))
    }

    /// One more; from now on its init is heard.
    fn intend(&self, shape: Shape) -> Made {
        let uid = Uid::new(format!("prepared-{}", uuid::Uuid::new_v4().simple())).expect("letters, digits and a dash");
        let run = RunId { uid, attempt: Attempt(1), role: Role::Agent };
        let (name, token) = (container_name(&self.config.installation, &run), super::new_token());
        self.shared.link.wait(&short(&run), token.clone());
        Made { run, shape, name, token, uid: None, since: Instant::now() }
    }

    /// Makes a pod, and what it owns: so those go with it, whoever removes it. Its kubelet waits for the token, and its init for the policy.
    async fn prepare(&self, served: &Served, made: &Made) -> Result<String, CallError> {
        let plan = Plan {
            pod: &served.pod,
            mark: made.mark(self),
            user: user_of(&made.run),
            limits: &made.shape.limits,
            wish: &made.shape.wish,
            token: &made.token,
            link: &served.link,
            authority: served.authority.certificate(),
            owner: None,
        };
        let uid = served.cluster.create(Object::Pod, &plan.pod()).await?.unwrap_or_default();
        let plan = Plan { owner: Some(&uid), ..plan };
        let (secret, policy) = (plan.secret(), plan.policy());
        let (secret, policy) = tokio::join!(served.cluster.create(Object::Secret, &secret), served.cluster.create(Object::Policy, &policy));
        secret.and(policy).map(|_| uid)
    }
}

/// What does not go now is swept later.
async fn discard(cluster: &Cluster, made: &Made) {
    if let Err(error) = cluster.delete(Object::Pod, &made.shape.namespace, &made.name, made.uid.as_deref()).await {
        tracing::debug!(name = made.name, error = crate::causes::one_line(&error), "could not remove a prepared pod; it is swept later");
    }
}
