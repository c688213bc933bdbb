//! The container engine's API, as small as Mosaic needs it: connect, look, make, start, kill, remove; each call with its own time limit.
//!
//! A client is cheap to clone and bound to no runtime: every call opens a connection of its own on the runtime that awaits it, so that the
//! kill lane can have one on its own thread and share nothing with the rest. An engine that is not there now may be there at the next call. Nothing is retried here, and nothing is decided: that there is
//! no such container (`None`) differs from that nobody could say (`Err`).
//!
//! Containers are ours by labels and by name together: labels alone can come from an image.

use crate::api::names::{Epoch, RunId};
use crate::sandbox::docker::labels;
use crate::sandbox::folder::short;
use bollard::Docker;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary, ImageInspect, SystemInfo, SystemVersion};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
    ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
};
use futures::StreamExt;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

mod address;

/// Longest time of a look at one thing.
pub const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time of a look at all containers: an engine with hundreds of them on a busy host takes a second.
pub const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time of a kill: what takes longer is told by looking, not by waiting.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time of making a container: the engine lays out its file system.
pub const CREATE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time of a start.
pub const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time of a removal: the engine deletes what the container wrote.
pub const REMOVE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks at a container that somebody removes.
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);
/// Longest silence of a pull; how long it takes altogether is its own matter.
pub const PULL_SILENCE: Duration = Duration::from_secs(60);
/// Longest time of a pull.
pub const PULL_TIMEOUT: Duration = Duration::from_secs(1800);
/// Longest text of an engine that is repeated.
const MESSAGE_BYTES_MAX: usize = 1000;

/// What the engine did not do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The address cannot be used.
    #[error("cannot use the engine at {host}: {why}")]
    Address {
        /// As it was given.
        host: String,
        /// Why, and what would do.
        why: String,
    },
    /// It said no.
    #[error("the engine at {host} refused to {what} ({status}): {message}")]
    Refused {
        /// Where it is.
        host: String,
        /// Verb and object.
        what: String,
        /// HTTP status.
        status: u16,
        /// Its words, shortened.
        message: String,
    },
    /// It did not answer in time: whether it will still do what was asked is unknown.
    #[error("the engine at {host} did not {what} within {} s", limit.as_secs())]
    TimedOut {
        /// Where it is.
        host: String,
        /// Verb and object.
        what: String,
        /// How long it had.
        limit: Duration,
    },
    /// It could not be asked, or its answer not be read: whether it does what was asked is unknown.
    #[error("could not ask the engine at {host} to {what}; does it run, and may this user use it?")]
    Unreachable {
        /// Where it is.
        host: String,
        /// Verb and object.
        what: String,
        /// Why.
        #[source]
        source: Box<bollard::errors::Error>,
    },
}

impl EngineError {
    /// The HTTP status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Address { .. } | Self::TimedOut { .. } | Self::Unreachable { .. } => None,
        }
    }

    /// Whether what was asked may still happen.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Unreachable { .. })
    }
}

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Made, never started.
    Created,
    /// It runs, or is about to.
    Running,
    /// Frozen.
    Paused,
    /// Its PID 1 has ended, by the engine's word.
    Exited,
    /// The engine takes it away.
    Removing,
}

/// One container of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The engine's id.
    pub id: String,
    /// Name, `container_name` of its run.
    pub name: String,
    /// Which run.
    pub run: RunId,
    /// `namespace/name` of the agent.
    pub agent: String,
    /// Epoch of the leader that made it.
    pub epoch: Epoch,
    /// Mark of the state folder that it was made from (`labels::home`).
    pub home: String,
    /// PID 1 as the engine's host numbers it; a list does not tell it, `Engine::state` does.
    pub pid: Option<i32>,
    /// What it does.
    pub state: Status,
}

/// What the engine says of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// The engine's id.
    pub id: String,
    /// What it does.
    pub status: Status,
    /// PID 1 as the engine's host numbers it, while it runs.
    pub pid: Option<i32>,
    /// Exit code of PID 1, once it has exited; 128 and the signal's number when a signal ended it.
    pub exit_code: Option<i32>,
    /// The kernel ended something in it because its memory was used up.
    pub oom_killed: bool,
    /// Why it did not start.
    pub error: String,
}

/// Name of the container of a run: the same for ever, so that making it twice makes one.
#[must_use]
pub fn container_name(installation: &str, run: &RunId) -> String {
    format!("{}{}", name_prefix(installation), short(run))
}

/// How the names of all containers of an installation begin.
#[must_use]
pub fn name_prefix(installation: &str) -> String {
    let letters: String = installation.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    format!("mosaic-{}-", letters.to_ascii_lowercase())
}

/// A client of one engine.
#[derive(Clone)]
pub struct Engine {
    /// The library wants the socket to be there when its client is made.
    docker: Arc<OnceLock<Docker>>,
    host: Arc<str>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({})", self.host)
    }
}

impl Engine {
    /// A client of the engine at an address; `None`: `DOCKER_HOST`, else the current context of the `docker` program, else the usual
    /// socket. Nothing is asked yet.
    /// # Errors
    /// The address is of no kind that is spoken here.
    pub fn connect(host: Option<&str>) -> Result<Self, EngineError> {
        let host = match host {
            Some(host) => host.to_owned(),
            None => address::find()?,
        };
        let refuse = |why: String| EngineError::Address { host: host.clone(), why };
        address::check(&host).map_err(refuse)?;
        Ok(Self { docker: Arc::default(), host: host.into() })
    }

    fn docker(&self, what: &str) -> Result<&Docker, EngineError> {
        if let Some(docker) = self.docker.get() {
            return Ok(docker);
        }
        let docker = Docker::connect_with_host(&self.host).map_err(|e| self.error(what, e))?;
        Ok(self.docker.get_or_init(|| docker))
    }

    /// Where it is.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path of its socket, when it is on this machine's file system.
    #[must_use]
    pub fn socket(&self) -> Option<&str> {
        self.host.strip_prefix("unix://")
    }

    /// What the engine is and can do.
    /// # Errors
    /// It does not answer.
    pub async fn about(&self) -> Result<(SystemVersion, SystemInfo), EngineError> {
        let version = self.call(LOOK_TIMEOUT, "tell its version", async |docker| docker.version().await).await?;
        // It counts all containers for this.
        Ok((version, self.call(LIST_TIMEOUT, "tell what it can", async |docker| docker.info().await).await?))
    }

    /// All containers of this installation, whatever their state, by labels and name.
    /// # Errors
    /// Could not look: nothing may be taken for absent.
    pub async fn ours(&self, installation: &str) -> Result<Vec<Container>, EngineError> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{}={installation}", labels::INSTALLATION)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let all = self.call(LIST_TIMEOUT, "list containers", async |docker| docker.list_containers(Some(options)).await).await?;
        Ok(all.into_iter().filter_map(|found| ours(installation, found)).collect())
    }

    /// What one container does; `None`: the engine says that there is none.
    /// # Errors
    /// Could not look.
    pub async fn state(&self, id_or_name: &str) -> Result<Option<ContainerState>, EngineError> {
        Ok(self.inspect(id_or_name).await?.map(state_of))
    }

    /// Everything that the engine says of a container; `None`: there is none.
    /// # Errors
    /// Could not look.
    pub async fn inspect(&self, id_or_name: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let call = async |docker: &Docker| docker.inspect_container(id_or_name, None::<InspectContainerOptions>).await;
        absent_is_none(self.call(LOOK_TIMEOUT, &format!("look at {id_or_name}"), call).await)
    }

    /// What the engine has under an image's name; `None`: nothing. The name must have been checked (`image::ImageName`).
    /// # Errors
    /// Could not look.
    pub async fn image(&self, name: &str) -> Result<Option<ImageInspect>, EngineError> {
        absent_is_none(self.call(LOOK_TIMEOUT, &format!("look at the image {name}"), async |docker| docker.inspect_image(name).await).await)
    }

    /// Pulls an image; `tell` hears how far it is.
    /// # Errors
    /// It is refused, silent for too long, or the engine ends it.
    pub async fn pull(&self, name: &str, mut tell: impl FnMut(&str)) -> Result<(), EngineError> {
        let what = format!("pull {name}");
        let options = CreateImageOptionsBuilder::default().from_image(name).build();
        let mut lines = self.docker(&what)?.create_image(Some(options), None, None).boxed();
        let all = async {
            loop {
                let line = tokio::time::timeout(PULL_SILENCE, lines.next()).await;
                let line =
                    line.map_err(|_| EngineError::TimedOut { host: self.host.to_string(), what: what.clone(), limit: PULL_SILENCE })?;
                match line {
                    None => return Ok(()),
                    Some(Ok(info)) => tell(&words_of(&info)),
                    Some(Err(e)) => return Err(self.error(&what, e)),
                }
            }
        };
        match tokio::time::timeout(PULL_TIMEOUT, all).await {
            Ok(outcome) => outcome,
            Err(_) => Err(EngineError::TimedOut { host: self.host.to_string(), what, limit: PULL_TIMEOUT }),
        }
    }

    /// Makes a container; its id. One that has the name already is a refusal with status 409.
    /// # Errors
    /// `EngineError`; unless it is a refusal the container may come into being later.
    pub async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, EngineError> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let made =
            self.call(CREATE_TIMEOUT, &format!("make {name}"), async |docker| docker.create_container(Some(options), body).await).await?;
        Ok(made.id)
    }

    /// Starts a container. That it runs already is no error.
    /// # Errors
    /// `EngineError`; unless it is a refusal it may start later.
    pub async fn start(&self, id: &str) -> Result<(), EngineError> {
        let call = async |docker: &Docker| docker.start_container(id, None::<StartContainerOptions>).await;
        self.call(START_TIMEOUT, &format!("start {id}"), call).await
    }

    /// SIGKILLs the PID 1 of a container, frozen or not. That it does not run or is not there is no error.
    /// # Errors
    /// Could not ask, or the engine failed to.
    pub async fn kill(&self, id: &str) -> Result<(), EngineError> {
        let options = KillContainerOptionsBuilder::default().signal("KILL").build();
        match self.call(KILL_TIMEOUT, &format!("kill {id}"), async |docker| docker.kill_container(id, Some(options)).await).await {
            Err(e) if matches!(e.status(), Some(404 | 409)) => Ok(()),
            other => other,
        }
    }

    /// Removes a container, ending what runs in it. That it is not there is no error; a removal that somebody has begun is waited for, and
    /// only then is it gone.
    /// # Errors
    /// Could not ask, the engine failed to, or a removal under way did not come to its end in time: it may still.
    pub async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let what = format!("remove {id}");
        match self.call(REMOVE_TIMEOUT, &what, async |docker| docker.remove_container(id, Some(options)).await).await {
            Err(e) if e.status() == Some(404) => Ok(()),
            Err(e) if e.status() == Some(409) => {
                let gone = async {
                    while self.inspect(id).await?.is_some() {
                        tokio::time::sleep(REMOVAL_PAUSE).await;
                    }
                    Ok(())
                };
                let late = || EngineError::TimedOut { host: self.host.to_string(), what, limit: REMOVE_TIMEOUT };
                tokio::time::timeout(REMOVE_TIMEOUT, gone).await.unwrap_or_else(|_| Err(late()))
            }
            other => other,
        }
    }

    async fn call<T>(
        &self,
        limit: Duration,
        what: &str,
        call: impl AsyncFnOnce(&Docker) -> Result<T, bollard::errors::Error>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(limit, call(self.docker(what)?)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.error(what, error)),
            Err(_) => Err(EngineError::TimedOut { host: self.host.to_string(), what: what.to_owned(), limit }),
        }
    }

    fn error(&self, what: &str, error: bollard::errors::Error) -> EngineError {
        use bollard::errors::Error;
        let (host, what) = (self.host.to_string(), what.to_owned());
        match error {
            Error::DockerResponseServerError { status_code, message } => {
                EngineError::Refused { host, what, status: status_code, message: shortened(&message) }
            }
            // An error in the middle of a stream that began well: a pull that the registry refuses.
            Error::DockerStreamError { error } => EngineError::Refused { host, what, status: 200, message: shortened(&error) },
            other => EngineError::Unreachable { host, what, source: Box::new(other) },
        }
    }
}

fn absent_is_none<T>(looked: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.status() == Some(404) => Ok(None),
        Err(e) => Err(e),
    }
}

fn shortened(text: &str) -> String {
    let end = (0..=MESSAGE_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    crate::sandbox::logs::clean(text[..end].trim())
}

fn words_of(info: &bollard::models::CreateImageInfo) -> String {
    let status = info.status.as_deref().unwrap_or_default();
    let layer = info.id.as_deref().map(|id| format!("{id}: ")).unwrap_or_default();
    let part = info.progress_detail.as_ref().and_then(|detail| Some((detail.current?, detail.total.filter(|total| *total > 0)?)));
    let part = part.map(|(current, total)| format!(" {} %", current.saturating_mul(100) / total)).unwrap_or_default();
    shortened(&format!("{layer}{status}{part}"))
}

fn ours(installation: &str, found: ContainerSummary) -> Option<Container> {
    let labels = found.labels.unwrap_or_default();
    let run: RunId = serde_json::from_str(labels.get(labels::RUN)?).ok()?;
    let name = container_name(installation, &run);
    // The engine writes a slash before names.
    let has_name = found.names.unwrap_or_default().iter().any(|found| found.trim_start_matches('/') == name);
    let state = status_of(found.state.map(|state| state.to_string()).as_deref());
    let epoch = Epoch(labels.get(labels::EPOCH).and_then(|text| text.parse().ok()).unwrap_or_default());
    let text = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let (agent, home) = (text(labels::AGENT), text(labels::HOME));
    has_name.then_some(Container { id: found.id?, name, run, agent, epoch, home, pid: None, state })
}

fn status_of(word: Option<&str>) -> Status {
    match word {
        Some("created") => Status::Created,
        Some("paused") => Status::Paused,
        Some("exited" | "dead") => Status::Exited,
        Some("removing") => Status::Removing,
        // What is no state that we know of may run.
        _ => Status::Running,
    }
}

/// What an inspection says of the container's state.
#[must_use]
pub fn state_of(found: ContainerInspectResponse) -> ContainerState {
    let state = found.state.unwrap_or_default();
    let status = status_of(state.status.map(|status| status.to_string()).as_deref());
    let number = |value: Option<i64>| value.and_then(|value| i32::try_from(value).ok());
    ContainerState {
        id: found.id.unwrap_or_default(),
        status,
        pid: number(state.pid).filter(|pid| *pid > 0),
        exit_code: number(state.exit_code).filter(|_| status == Status::Exited),
        oom_killed: state.oom_killed.unwrap_or_default(),
        error: shortened(&state.error.unwrap_or_default()),
    }
}
