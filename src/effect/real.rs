//! The real world: sandboxes, workspaces, gates and the store. One `match`, one arm per action, no decisions.

use crate::api::agent::{AgentStatus, Driver};
use crate::api::condition::{self, reason};
use crate::api::names::{ANNOTATION_APPROVE_TAMPER, ANNOTATION_ENDED_BY, Branch, CommitId, Epoch, FINALIZER, Role, RunId, Uid};
use crate::api::validate::ValidAgent;
use crate::causes;
use crate::effect::flight::{Ended, Flights};
use crate::effect::waits::{Seen, Waits};
use crate::effect::{EffectError, Subject, World, task};
use crate::gates::tamper::{Judges, evidence, tampering};
use crate::gates::{GATES_FILE, GATES_FILE_BYTES_MAX, TrustedTree, gate_set, protected};
use crate::kill::latch::Latch;
use crate::plan::action::{Action, ActionId, Effect};
use crate::plan::elsewhere::{self, Elsewhere, Judged};
use crate::plan::observed::{Failure, FailureClass, Integrated, Inventory, Look, Observed, Outcome, Resolved, Snapshot};
use crate::plan::orphans::OrphanAction;
use crate::plan::status::ending;
use crate::sandbox::{Sandbox, SandboxError};
use crate::store::{Record, Store, StoreError};
use crate::workspace::{
    GateTreeSpec, IntegrateSpec, PushSpec, RescueSpec, SnapshotSpec, Stop, TreeSpec, WorkspaceError, Workspaces, stoppable,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the real world is made of.
pub struct RealWorld {
    parts: Arc<Parts>,
    flights: Flights,
    /// Says who was killed, whatever the store knows.
    latch: Arc<Latch>,
    /// The installation whose sandboxes and trees are here.
    installation: String,
    /// Highest epoch that was seen: effects of a lower one are refused.
    epoch_seen: AtomicU64,
    takeover: Takeover,
    /// Agents of elsewhere.
    waits: Waits,
}

/// When an agent in pods is taken over from the controller that has begun it.
pub struct Takeover {
    /// How long one of which nothing runs any more waits for that one to lead again.
    pub after: Duration,
    /// Whether the controller of an installation is there, and goes on with it some time.
    pub is_present: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

#[derive(Clone)]
struct Parts {
    store: Arc<dyn Store>,
    sandbox: Arc<dyn Sandbox>,
    workspaces: Arc<Workspaces>,
    /// Says whether the effect that these parts work for is still wanted.
    stop: Arc<Stop>,
}

impl RealWorld {
    /// Puts the parts together; `flights` tells of ended effects, `installation` names what of the records is here.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        sandbox: Arc<dyn Sandbox>,
        workspaces: Arc<Workspaces>,
        flights: Flights,
        latch: Arc<Latch>,
        installation: String,
        takeover: Takeover,
    ) -> Self {
        let parts = Parts { store, sandbox, workspaces, stop: Arc::default() };
        let (epoch_seen, waits) = (AtomicU64::new(0), Waits::default());
        Self { parts: Arc::new(parts), flights, latch, installation, epoch_seen, takeover, waits }
    }

    /// What can be said of an agent whose sandbox and tree are another installation's: nothing, unless it was stored that all of it was seen
    /// gone (`Ok`). `None`: it is here.
    fn elsewhere(&self, subject: &Subject) -> Option<Result<(), String>> {
        let status = &subject.record.status;
        let other = status["installation"].as_str().filter(|other| *other != self.installation)?;
        let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == condition::CLEANED_UP && c["status"] == "True") {
            return Some(Ok(()));
        }
        let why = format!("it is on another host or in another state folder (installation {other}); only its own controller can look");
        Some(Err(why))
    }

    /// The same by its pods, which can be looked at from here: its own controller may never come back (`plan::elsewhere`).
    async fn look_elsewhere(&self, subject: &Subject, why: &str) -> Judged {
        let record = &subject.record;
        let other = record.status["installation"].as_str().unwrap_or_default();
        let driver = driver_in(record);
        if driver.is_some_and(|driver| driver != "pod") {
            return Judged::unknown(why);
        }
        let is_deleted = record.metadata.deletion_timestamp.is_some();
        let has_ended = match &subject.agent {
            Some(agent) => ending(&agent.status).is_some(),
            None => serde_json::from_value(record.status.clone()).is_ok_and(|status| ending(&status).is_some()),
        };
        if let Some(told) = self.waits.told(&subject.uid, has_ended, Instant::now()).filter(|_| !is_deleted) {
            return Judged::unknown(&told);
        }
        let pods = match self.parts.sandbox.observe_elsewhere(&subject.uid, other).await {
            Ok(Some(pods)) => pods,
            Ok(None) => return Judged::unknown(why),
            Err(error) => return Judged::unknown(&causes::one_line(&error)),
        };
        let is_attended = (self.takeover.is_present)(other);
        let seen = Seen { has_pods: !pods.is_empty(), lives: elsewhere::lives(&pods), is_attended };
        let (since, had_pods) = self.waits.looked(&subject.uid, (other, is_deleted), &seen, Instant::now());
        let (has_only_pods, quiet) = (driver.is_some() || had_pods, since.elapsed());
        let takeover_after = self.takeover.after;
        let known = Elsewhere { installation: other, why, is_deleted, has_ended, has_only_pods, pods, is_attended, quiet, takeover_after };
        let judged = elsewhere::judge(known);
        if let Look::Unknown(text) = &judged.workspace {
            self.waits.tell(&subject.uid, text, Instant::now());
        }
        judged
    }

    /// What says whether an effect is still wanted. A kill counts from the moment that it is noted, also for what waits for its turn.
    fn stop_of(&self, effect: &Effect) -> Stop {
        let (latch, uid) = (self.latch.clone(), effect.uid.clone());
        if effect.action.starts_something() { Stop::when(move || latch.killed(&uid).is_some()) } else { Stop::default() }
    }

    fn check_epoch(&self, epoch: Epoch) -> Result<(), EffectError> {
        if epoch == Epoch(0) {
            // Decided without leading: it ends what is held here, which no other epoch could begin again.
            return Ok(());
        }
        let seen = self.epoch_seen.fetch_max(epoch.0, Ordering::SeqCst);
        if seen > epoch.0 {
            return Err(EffectError::Fenced { mine: epoch, seen: Epoch(seen) });
        }
        Ok(())
    }
}

impl World for RealWorld {
    fn place(&self) -> Option<&str> {
        Some(&self.installation)
    }

    fn driver_of(&self, agent: &ValidAgent) -> Option<Driver> {
        Some(self.parts.sandbox.driver_of(agent.driver, agent.image.is_some() || agent.runtime_class.is_some()))
    }

    fn observe<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Observed> {
        async move {
            // The table first: what ends after this look is seen in the look at the sandboxes, or wakes another pass.
            let (in_flight, outcomes) = self.flights.look(&subject.uid);
            match self.elsewhere(subject) {
                Some(Ok(())) => {
                    return Observed { sandboxes: Look::Seen(Vec::new()), workspace: Look::Seen(None), in_flight, outcomes };
                }
                Some(Err(why)) => {
                    let Judged { sandboxes, workspace } = self.look_elsewhere(subject, &why).await;
                    return Observed { sandboxes, workspace, in_flight, outcomes };
                }
                None => {}
            }
            let sandboxes = match self.parts.sandbox.observe(Some(&subject.uid)).await {
                Ok(seen) => Look::Seen(seen),
                Err(error) => Look::Unknown(causes::one_line(&error)),
            };
            let uid = subject.uid.clone();
            let workspace = match self.parts.blocking(move |w| w.observe_tree(&uid)).await {
                Ok(seen) => Look::Seen(seen),
                Err(failure) => Look::Unknown(failure.message),
            };
            Observed { sandboxes, workspace, in_flight, outcomes }
        }
        .boxed()
    }

    fn apply<'a>(&'a self, subject: &'a Subject, effect: Effect) -> BoxFuture<'a, Result<(), EffectError>> {
        async move {
            self.check_epoch(effect.epoch)?;
            let action = effect.action.clone();
            if !action.is_blocking() {
                return self.parts.write(subject, &action).await.map_err(EffectError::Store);
            }
            let urgent = matches!(action, Action::StopSandbox { .. });
            let stop = Arc::new(self.stop_of(&effect));
            let parts = Arc::new(Parts { stop: stop.clone(), ..(*self.parts).clone() });
            let (subject, epoch) = (subject.clone(), effect.epoch);
            self.flights.start(effect, urgent, stop, async move { parts.work(subject, epoch, action).await }.boxed());
            Ok(())
        }
        .boxed()
    }

    fn end_quietly(&self, uid: &Uid, effects: &BTreeSet<ActionId>) {
        self.flights.end_quietly(uid, effects);
    }

    fn acknowledge(&self, uid: &Uid, taken: &BTreeSet<ActionId>) {
        self.flights.acknowledge(uid, taken);
    }

    fn abandon(&self, uid: &Uid) {
        self.flights.abandon(uid);
    }

    fn is_busy(&self) -> bool {
        self.flights.any_but_starts()
    }

    fn forget(&self, uid: &Uid) {
        // Nothing of it is in flight where it was let go of; it may be where another controller has done that.
        self.flights.abandon(uid);
        self.flights.forget(uid);
        self.waits.forget(uid);
    }

    fn inventory(&self) -> BoxFuture<'_, Result<Inventory, EffectError>> {
        async move {
            let sandboxes = self.parts.sandbox.observe(None).await.map_err(|error| EffectError::Failed(causes::one_line(&error)))?;
            let trees = self.parts.blocking(|w| w.inventory()).await.map_err(|failure| EffectError::Failed(failure.message))?;
            let gate_trees = trees.gate_trees.into_iter().map(|(uid, _, key)| (uid, key)).collect();
            Ok(Inventory { sandboxes, workspaces: trees.trees, gate_trees })
        }
        .boxed()
    }

    fn apply_orphan(&self, epoch: Epoch, action: OrphanAction) -> BoxFuture<'_, Result<(), EffectError>> {
        async move {
            self.check_epoch(epoch)?;
            let result = match action {
                OrphanAction::StopSandbox(run) => self.parts.stop(&run).await,
                OrphanAction::RemoveSandbox(run) => self.parts.remove_sandbox(&run).await,
                OrphanAction::RemoveWorkspace(uid) => self.parts.remove_orphan(uid).await,
            };
            result.map(|_| ()).map_err(|failure| EffectError::Failed(failure.message))
        }
        .boxed()
    }
}

impl Parts {
    /// Writes to the record; short, so done within the pass.
    async fn write(&self, subject: &Subject, action: &Action) -> Result<(), StoreError> {
        let mut record = subject.record.clone();
        match action {
            Action::AddFinalizer => {
                record.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
                self.store.replace(record).await.map(|_| ())
            }
            Action::RemoveFinalizer => {
                record.metadata.finalizers.iter_mut().for_each(|all| all.retain(|finalizer| finalizer != FINALIZER));
                self.store.replace(record).await.map(|_| ())
            }
            Action::Archive => self.store.archive(record).await,
            Action::DeleteRecord => {
                let how = [(ANNOTATION_ENDED_BY, "ttlAfterFinished".to_owned())];
                self.store.delete(&record.key(), Some(&subject.uid), &how).await.map(|_| ())
            }
            Action::Resolve
            | Action::EnsureSandbox { .. }
            | Action::StopSandbox { .. }
            | Action::RemoveSandbox { .. }
            | Action::TakeSnapshot { .. }
            | Action::Integrate { .. }
            | Action::Push { .. }
            | Action::Rescue { .. }
            | Action::RemoveWorkspace => unreachable!("blocking actions go to the in-flight table"),
        }
    }

    /// Does a blocking effect to its end.
    async fn work(self: Arc<Self>, subject: Subject, epoch: Epoch, action: Action) -> Ended {
        let agent = || subject.agent.clone().ok_or_else(|| infrastructure(reason::INVALID_SPEC, "the record does not decode".to_owned()));
        match action {
            Action::StopSandbox { run } => self.stop(&run).await,
            Action::RemoveSandbox { run } => self.remove_sandbox(&run).await,
            Action::RemoveWorkspace => {
                let uid = subject.uid.clone();
                self.blocking(move |w| w.remove(&uid)).await.map(|()| Outcome::Done)
            }
            Action::Rescue { .. } => self.rescue(&subject).await,
            Action::Resolve => self.resolve(agent()?).await,
            Action::EnsureSandbox { run, base, content } => match run.role {
                Role::Agent => self.ensure_agent(agent()?, run, epoch, base, content).await,
                Role::Gate { .. } => self.ensure_gate(agent()?, run, epoch).await,
            },
            Action::TakeSnapshot { base, .. } => self.take_snapshot(agent()?, approved(&subject), base).await,
            Action::Integrate { candidate, .. } => self.integrate(agent()?, approved(&subject), candidate).await.map(Outcome::Integrated),
            Action::Push { head, base, expected_old, .. } => self.push(agent()?, head, base, expected_old).await,
            Action::AddFinalizer | Action::Archive | Action::RemoveFinalizer | Action::DeleteRecord => {
                unreachable!("writes to the record are done within the pass")
            }
        }
    }

    async fn stop(&self, run: &RunId) -> Ended {
        self.sandbox.stop(run).await.map(|()| Outcome::Done).map_err(|error| sandbox_failure(&error))
    }

    async fn remove_sandbox(&self, run: &RunId) -> Ended {
        // The tree first: the sandbox that is still there has this done again after a crash in between, and a tree alone would stay.
        if let Some(key) = task::gate_tree_key(run) {
            let uid = run.uid.clone();
            self.blocking(move |w| w.remove_gate_tree(&uid, &key)).await?;
        }
        self.sandbox.remove(run).await.map(|()| Outcome::Done).map_err(|error| sandbox_failure(&error))
    }

    async fn resolve(&self, agent: ValidAgent) -> Ended {
        let found = self.blocking_ended(move |w| resolve(w, &agent)).await?;
        Ok(Outcome::Resolved(found))
    }

    async fn ensure_agent(&self, agent: ValidAgent, run: RunId, epoch: Epoch, base: CommitId, content: Option<CommitId>) -> Ended {
        let spec = tree_spec(&agent, run.attempt, base, content);
        let paths = self.blocking(move |w| w.ensure_tree(&spec)).await?;
        let spec = task::agent_run(&agent, &run, epoch, paths);
        self.sandbox.ensure(spec).await.map(|()| Outcome::Done).map_err(|error| sandbox_failure(&error))
    }

    async fn ensure_gate(&self, agent: ValidAgent, run: RunId, epoch: Epoch) -> Ended {
        let Role::Gate { name, sha, .. } = run.role.clone() else { return Ok(Outcome::Done) };
        let gates = agent.status.gate_set.as_ref().map(|set| set.gates.as_slice()).unwrap_or_default();
        let gate = gates.iter().find(|gate| gate.name == name.as_str()).cloned();
        let gate = gate.ok_or_else(|| infrastructure(reason::GATE_MISSING, format!("the record has no gate {name}")))?;
        let key = task::gate_tree_key(&run).expect("a gate's run has a key");
        let spec = GateTreeSpec {
            namespace: agent.namespace.clone(),
            repository: agent.repository.clone(),
            uid: agent.uid.clone(),
            attempt: run.attempt,
            key,
            head: sha,
        };
        // A gate may ask git about its commit: the tree's own `.git` borrows objects from the base repository.
        let (tree, base_objects) = self
            .blocking(move |w| {
                let tree = w.ensure_gate_tree(&spec)?;
                Ok((tree, w.tree_paths(&spec.uid)?.map(|paths| paths.base_objects)))
            })
            .await?;
        let spec = task::gate_run(&agent, &run, epoch, &gate, tree, base_objects);
        self.sandbox.ensure(spec).await.map(|()| Outcome::Done).map_err(|error| sandbox_failure(&error))
    }

    async fn take_snapshot(&self, agent: ValidAgent, approved: Option<CommitId>, base: CommitId) -> Ended {
        let author = agent.clone();
        let snapshot = self.blocking(move |w| {
            let agent = author;
            let conflicts = agent.status.workspace.as_ref().map(|w| w.conflicts.clone()).unwrap_or_default();
            w.snapshot(&SnapshotSpec {
                namespace: agent.namespace.clone(),
                repository: agent.repository.clone(),
                uid: agent.uid.clone(),
                base,
                conflicts: &conflicts,
                message: task::commit_message(&agent),
                date: finished_at(&agent.status),
            })
        });
        let snapshot = snapshot.await?;
        let integrated = match &snapshot {
            // What fails of this has failed for the step that does it alone, too, and is told by that one.
            Snapshot::Candidate(candidate) => self.integrate(agent, approved, candidate.clone()).await.ok(),
            Snapshot::Unchanged | Snapshot::Refused(_) | Snapshot::Unresolved(_) => None,
        };
        Ok(Outcome::Snapshot(snapshot, integrated))
    }

    async fn integrate(&self, agent: ValidAgent, approved: Option<CommitId>, candidate: CommitId) -> Result<Integrated, Failure> {
        let base_branch = base_branch(&agent)?;
        let candidate_base = stored_commit(agent.status.workspace.as_ref().and_then(|w| w.base_sha.as_deref()))?;
        let spec = IntegrateSpec {
            namespace: agent.namespace.clone(),
            repository: agent.repository.clone(),
            message: task::merge_message(base_branch.as_str(), &candidate),
            base_branch,
            candidate,
            candidate_base,
            date: finished_at(&agent.status),
        };
        let integrated = self.blocking_ended(move |w| {
            let integrated = w.integrate(&spec).map_err(|error| workspace_failure(&error))?;
            compared(w, &agent, approved.as_ref(), integrated)
        });
        integrated.await
    }

    async fn push(&self, agent: ValidAgent, head: CommitId, base: CommitId, expected_old: Option<CommitId>) -> Ended {
        let spec = PushSpec {
            namespace: agent.namespace.clone(),
            repository: agent.repository.clone(),
            uid: agent.uid.clone(),
            base_branch: base_branch(&agent)?,
            base,
            head,
            target: agent.target_branch.clone(),
            expected_old,
        };
        self.blocking(move |w| w.push(&spec)).await.map(Outcome::Pushed)
    }

    /// Works from the status alone where the spec does not decode: an agent that never had a base has no work to keep.
    async fn rescue(&self, subject: &Subject) -> Ended {
        let uid = subject.uid.clone();
        let Some(agent) = subject.agent.clone() else {
            return self.blocking(move |w| w.rescue_tree(&uid)).await.map(Outcome::Rescued);
        };
        let workspace = agent.status.workspace.clone().unwrap_or_default();
        let commit = |sha: Option<String>| sha.and_then(|sha| CommitId::new(sha).ok());
        let base = commit(workspace.base_sha);
        let commits: Vec<CommitId> = [commit(workspace.candidate_sha), commit(workspace.head_sha)].into_iter().flatten().collect();
        let date = agent.status.started_at.as_ref().map_or(agent.created_at, |at| at.0);
        let kept = self.blocking(move |w| {
            let (namespace, repository) = (agent.namespace.clone(), agent.repository.clone());
            w.rescue(&RescueSpec { namespace, repository, uid, base, commits: &commits, date })
        });
        kept.await.map(Outcome::Rescued)
    }

    /// Keeps what a tree without a record holds, then removes it.
    async fn remove_orphan(&self, uid: Uid) -> Ended {
        self.blocking(move |w| w.rescue_tree(&uid).and_then(|_| w.remove(&uid))).await.map(|()| Outcome::Done)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Workspaces) -> Result<T, WorkspaceError> + Send + 'static,
    ) -> Result<T, Failure> {
        self.blocking_ended(move |workspaces| work(workspaces).map_err(|error| workspace_failure(&error))).await
    }

    async fn blocking_ended<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Workspaces) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (workspaces, stop) = (self.workspaces.clone(), self.stop.clone());
        let joined = tokio::task::spawn_blocking(move || stoppable(stop, || work(&workspaces))).await;
        joined.unwrap_or_else(|panic| Err(infrastructure(reason::INTERNAL_ERROR, format!("the workspace code broke: {panic}"))))
    }
}

/// Finds repository, branch, target ref and gates.
pub fn resolve(workspaces: &Workspaces, agent: &ValidAgent) -> Result<Resolved, Failure> {
    let (namespace, repository) = (&agent.namespace, agent.repository.as_str());
    let found = workspaces
        .resolve(namespace, repository, agent.branch.as_ref(), &agent.target_branch)
        .map_err(|error| workspace_failure(&error))?;
    let root_files = workspaces.list_root(namespace, repository, &found.trusted).map_err(|error| workspace_failure(&error))?;
    let read = |path: &str| {
        let content = workspaces.read_file(namespace, repository, &found.trusted, path, crate::gates::MANIFEST_BYTES_MAX);
        content.map_err(|error| error.to_string())
    };
    let set = gate_set(&TrustedTree { root_files: &root_files, read: &read }, agent.profile, &agent.required_gates).map_err(|error| {
        let class = if error.is_infrastructure() { FailureClass::Infrastructure } else { FailureClass::Invalid };
        Failure { class, reason: error.reason.to_owned(), message: error.message, at: Timestamp::now() }
    })?;
    Ok(Resolved {
        remote: found.remote,
        base_branch: found.base_branch,
        base: found.base,
        target: found.target,
        gate_source: set.source,
        trusted: found.trusted,
        gates: set.gates,
    })
}

/// Compares a head with its base in what decides verdicts. What a person approved in another commit is left out, if it is the same content.
fn compared(
    workspaces: &Workspaces,
    agent: &ValidAgent,
    approved: Option<&CommitId>,
    integrated: Integrated,
) -> Result<Integrated, Failure> {
    let Integrated::Head { head, base } = integrated else { return Ok(integrated) };
    let (namespace, repository) = (&agent.namespace, agent.repository.as_str());
    let failed = |error: WorkspaceError| workspace_failure(&error);
    let set = agent.status.gate_set.clone().unwrap_or_default();
    let trusted = stored_commit(Some(&set.trusted_sha))?;
    let file = workspaces.read_file(namespace, repository, &trusted, GATES_FILE, GATES_FILE_BYTES_MAX).map_err(failed)?;
    let protect = protected(file.as_deref()).map_err(|error| infrastructure(error.reason, error.message))?;
    let judges = Judges { gates: &set.gates, protect: &protect };
    let changes = workspaces.changes(namespace, repository, &base, &head).map_err(failed)?;
    let mut found = tampering(&judges, &changes, &|id| workspaces.read_object(namespace, repository, id)).map_err(failed)?;
    if let Some(approved) = approved.filter(|_| !found.is_empty()) {
        // A commit that is not here approves nothing.
        let known = workspaces.changes(namespace, repository, &base, approved).unwrap_or_default();
        found.retain(|(change, _)| !known.contains(change));
    }
    if found.is_empty() {
        return Ok(Integrated::Head { head, base });
    }
    let evidence = evidence(&found, head.as_str());
    Ok(Integrated::Tampered { head, base, definition: judges.digest(), evidence })
}

/// The commit whose tampering a person approved.
fn approved(subject: &Subject) -> Option<CommitId> {
    let annotations = subject.record.metadata.annotations.as_ref()?;
    CommitId::new(annotations.get(ANNOTATION_APPROVE_TAMPER)?.clone()).ok()
}

fn tree_spec(agent: &ValidAgent, attempt: crate::api::names::Attempt, base: CommitId, content: Option<CommitId>) -> TreeSpec {
    TreeSpec {
        namespace: agent.namespace.clone(),
        repository: agent.repository.clone(),
        uid: agent.uid.clone(),
        agent: agent.full_name(),
        name: agent.worktree_name(),
        attempt,
        base,
        content,
        branch_for_head: agent.target_branch.clone(),
    }
}

/// The driver that the attempt of a record has; `None`: nothing says it. A record of before `status.driver` may say it otherwise.
fn driver_in(record: &Record) -> Option<&str> {
    let places = [&record.status, &record.status["sandbox"], &record.spec["sandbox"]];
    places.into_iter().find_map(|place| place["driver"].as_str().filter(|driver| *driver != "auto"))
}

fn base_branch(agent: &ValidAgent) -> Result<Branch, Failure> {
    let stored = agent.status.workspace.as_ref().and_then(|w| w.base_branch.clone()).unwrap_or_default();
    Branch::new(stored).map_err(|error| infrastructure(reason::INTERNAL_ERROR, format!("the record has no base branch: {error}")))
}

fn stored_commit(sha: Option<&str>) -> Result<CommitId, Failure> {
    CommitId::new(sha.unwrap_or_default())
        .map_err(|error| infrastructure(reason::INTERNAL_ERROR, format!("the record has no base: {error}")))
}

/// Date of the commits of an attempt: from the record, so that a commit made again has the same id.
fn finished_at(status: &AgentStatus) -> Timestamp {
    let finished = status.run.as_ref().and_then(|run| run.finished_at.as_ref());
    finished.or(status.started_at.as_ref()).map_or(Timestamp::UNIX_EPOCH, |at| at.0)
}

fn infrastructure(reason: &str, message: String) -> Failure {
    Failure { class: FailureClass::Infrastructure, reason: reason.to_owned(), message, at: Timestamp::now() }
}

fn workspace_failure(error: &WorkspaceError) -> Failure {
    let class = if error.is_invalid() { FailureClass::Invalid } else { FailureClass::Infrastructure };
    Failure { class, reason: error.reason().to_owned(), message: causes::one_line(error), at: Timestamp::now() }
}

fn sandbox_failure(error: &SandboxError) -> Failure {
    let class = if error.is_invalid() { FailureClass::Invalid } else { FailureClass::Infrastructure };
    Failure { class, reason: error.reason().to_owned(), message: causes::one_line(error), at: Timestamp::now() }
}
