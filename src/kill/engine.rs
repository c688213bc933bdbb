//! The container engine's path of a kill, on a thread and connections of its own; nothing waits for it longer than the kill lasts.
//!
//! What the kernel does not show from here is killed through the engine at once. What it shows has its SIGKILL already, so the engine is asked
//! only for what still lives after a moment: an engine needs some 26 ms of processor time for each, which the dying need more. Containers
//! that carry our labels and have no folder any more are killed as well. One that was made and never started is taken away: its start may be
//! on its way, and what is gone cannot be started. Only what the engine says is believed; its silence is unknown.

use crate::api::names::RunId;
use crate::kill::targets::Target;
use crate::sandbox::docker::engine::{Container, Engine, EngineError, Status};
use crate::sandbox::kill::{self as process, Life};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Calls at once: more make none of them faster.
const CALLS_MAX: usize = 8;
/// What the kernel has killed is dead by then, or the engine is asked too.
const HEDGE: Duration = Duration::from_millis(250);
/// Longest wait for the list of our containers: what has a folder does not wait for it.
const LIST_TIME_MAX: Duration = Duration::from_secs(2);
/// Pause between two looks whether the kernel's kill was enough.
const HEDGE_PAUSE: Duration = Duration::from_millis(10);
/// Pause between two looks at a container.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// What strays are called here.
pub const CONTAINERS: &str = "containers";

/// Name of the file in the state folder that says which engine has containers of ours.
const FILE_ENGINE: &str = "engine.json";

/// What that file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    host: String,
    installation: String,
}

/// Notes that an engine is used, before the first container is made: who kills without a controller finds it by that.
/// # Errors
/// The disk refuses.
pub fn remember(state: &Path, host: &str, installation: &str) -> io::Result<()> {
    let path = state.join(FILE_ENGINE);
    let bytes = serde_json::to_vec(&Remembered { host: host.to_owned(), installation: installation.to_owned() })?;
    if std::fs::read(&path).is_ok_and(|known| known == bytes) { Ok(()) } else { crate::durable::replace(&path, &bytes) }
}

/// An engine, and what of it is ours.
#[derive(Debug, Clone)]
pub struct EnginePath {
    /// A client of its own.
    pub engine: Engine,
    /// Id of this installation.
    pub installation: String,
}

impl EnginePath {
    /// The engine that this state folder uses; `None`: none was ever used.
    /// # Errors
    /// In words: there is one, and it cannot be told which.
    pub fn recall(state: &Path) -> Result<Option<Self>, String> {
        let bytes = match std::fs::read(state.join(FILE_ENGINE)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| format!("{FILE_ENGINE} cannot be read: {e}"))?,
        };
        let known: Remembered = serde_json::from_slice(&bytes).map_err(|e| format!("{FILE_ENGINE} cannot be read: {e}"))?;
        let engine = Engine::connect(Some(&known.host)).map_err(|e| words(&e))?;
        Ok(Some(Self { engine, installation: known.installation }))
    }
}

/// What the engine says of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saw {
    /// There is no container of it, so that none can be started.
    None,
    /// Its container has ended.
    Dead,
    /// Its create was asked for and not answered: something may still come of it.
    Coming,
    /// Of a pod: its kubelet, or the end of its node, says that it has ended, for good.
    Terminated,
    /// Of a pod: an operator says that its node is gone; who.
    SaidGone(String),
    /// It runs.
    Runs,
    /// The engine could not be asked.
    Unknown(String),
}

/// What came of the engine's path.
#[derive(Debug, Default)]
pub struct Answer {
    /// By run, of those that the engine was asked about.
    pub saw: BTreeMap<RunId, (Saw, Instant)>,
    /// What of ours has no folder.
    pub strays: Vec<(Stray, Saw, Instant)>,
    /// Why it could not be looked for strays, in a sentence.
    pub blind: Option<String>,
}

/// A container or pod of ours without a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Which run.
    pub run: RunId,
    /// `namespace/name` of its agent; empty: it was prepared for one.
    pub agent: String,
    /// What it is, for people.
    pub name: String,
}

impl Answer {
    /// It could not be looked for strays of one kind; why.
    #[must_use]
    pub fn blind(kind: &str, why: &str) -> Self {
        Self { blind: Some(format!("{kind} without a folder: {why}")), ..Self::default() }
    }
}

/// Which of what has no folder is meant.
pub type IsMeant = Arc<dyn Fn(&Stray) -> bool + Send + Sync>;

/// Begins. Without `is_meant` nobody looks for containers without a folder; those that are `known`, by name, have one.
/// # Errors
/// No thread could be made.
pub fn begin(
    path: &EnginePath,
    targets: &[Target],
    known: &BTreeSet<String>,
    is_meant: Option<IsMeant>,
    until: Instant,
) -> io::Result<JoinHandle<Answer>> {
    let (path, targets, known) = (path.clone(), targets.to_vec(), known.clone());
    std::thread::Builder::new().name("mosaic-kill-engine".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return Answer::blind(CONTAINERS, &format!("the container engine could not be asked: {e}")),
        };
        let answer = runtime.block_on(strike(&path, &targets, &known, is_meant.as_ref(), until));
        runtime.shutdown_background();
        answer
    })
}

async fn strike(path: &EnginePath, targets: &[Target], known: &BTreeSet<String>, is_meant: Option<&IsMeant>, until: Instant) -> Answer {
    let (hidden, shown): (Vec<&Target>, Vec<&Target>) = targets.iter().partition(|target| is_hidden(target));
    let hedged = async {
        let ask_at = (Instant::now() + HEDGE).min(until);
        while shown.iter().any(|target| is_alive(target)) && Instant::now() < ask_at {
            tokio::time::sleep(HEDGE_PAUSE).await;
        }
        end_all(path, shown.into_iter().filter(|target| is_alive(target)).collect(), until).await
    };
    let strays = async {
        match is_meant {
            Some(is_meant) => end_strays(path, known, is_meant, until).await,
            None => Ok(Vec::new()),
        }
    };
    let (mut saw, late, strays) = tokio::join!(end_all(path, hidden, until), hedged, strays);
    saw.extend(late);
    match strays {
        Ok(strays) => Answer { saw, strays, blind: None },
        Err(why) => Answer { saw, ..Answer::blind(CONTAINERS, &why) },
    }
}

async fn end_all(path: &EnginePath, targets: Vec<&Target>, until: Instant) -> BTreeMap<RunId, (Saw, Instant)> {
    let mut calls = Vec::new();
    for target in targets {
        let name = target.container(&path.installation);
        let may_come = || target.is_unanswered().unwrap_or(true);
        calls.push(async move { (target.run.clone(), end(&path.engine, &name, may_come, until).await) });
    }
    futures::stream::iter(calls).buffer_unordered(CALLS_MAX).collect().await
}

/// Ends containers of ours that have no folder. The error is why nobody can tell whether there are any.
async fn end_strays(
    path: &EnginePath,
    known: &BTreeSet<String>,
    is_meant: &IsMeant,
    until: Instant,
) -> Result<Vec<(Stray, Saw, Instant)>, String> {
    let listed = tokio::time::timeout_at((Instant::now() + LIST_TIME_MAX).min(until).into(), path.engine.ours(&path.installation)).await;
    let found = listed.map_err(|_| "the engine did not answer in time".to_owned())?.map_err(|e| words(&e))?;
    let mut calls = Vec::new();
    for Container { id, name, run, agent, .. } in found.into_iter().filter(|container| !known.contains(&container.name)) {
        let stray = Stray { run, agent, name: format!("container {name}") };
        if is_meant(&stray) {
            calls.push(async move {
                let (saw, at) = end(&path.engine, &id, || false, until).await;
                (stray, saw, at)
            });
        }
    }
    Ok(futures::stream::iter(calls).buffer_unordered(CALLS_MAX).collect().await)
}

/// Whether the kernel never showed the init of this run.
fn is_hidden(target: &Target) -> bool {
    !matches!(target.identity(), Ok(Some(identity)) if process::look(&identity).is_ok())
}

fn is_alive(target: &Target) -> bool {
    matches!(target.identity(), Ok(Some(identity)) if !matches!(process::look(&identity), Ok(Life::Gone | Life::Rebooted)))
}

/// SIGKILL, and a look until it does not run or the time is over. What `may_come` is not taken for absent, and is looked for again.
async fn end(engine: &Engine, name: &str, may_come: impl Fn() -> bool, until: Instant) -> (Saw, Instant) {
    let work = async {
        loop {
            // Asked first: a create that is answered after the look has made what the look could not find.
            let is_open = may_come();
            // A kill that the engine refuses is told by the look.
            let killed = engine.kill(name).await;
            match engine.state(name).await {
                Ok(None) if !is_open => return Saw::None,
                Ok(None) if Instant::now() >= until => return Saw::Coming,
                Ok(None) => {}
                Ok(Some(state)) if state.status == Status::Exited => return Saw::Dead,
                // Whether it could be taken away is told by the next look.
                Ok(Some(state)) if state.status == Status::Created => drop(engine.remove(&state.id).await),
                Ok(Some(_)) if Instant::now() >= until => return Saw::Runs,
                Ok(Some(_)) => {}
                Err(e) => return Saw::Unknown(killed.err().map_or_else(|| words(&e), |first| words(&first))),
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    };
    let saw = tokio::time::timeout_at(until.into(), work).await;
    let late = || if may_come() { Saw::Coming } else { Saw::Unknown("it did not answer in time".to_owned()) };
    (saw.unwrap_or_else(|_| late()), Instant::now())
}

fn words(error: &EngineError) -> String {
    crate::causes::one_line(error)
}
