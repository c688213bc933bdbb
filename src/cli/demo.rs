//! `mosaic demo`: the whole way once, for people: a sample project with a remote, an agent whose first round a gate refuses, the feedback, the
//! second round, the verdict, a verified push.
//!
//! Flow: folders of its own -> sample -> an `up` of its own on a free port -> spawn and watch over HTTP, as any client would -> proof by the
//! `git` program itself. Nothing is arranged between gate and agent: the script learns from the feedback file what to mend. Failing at any
//! point is a failure of the demo, with the reason.

mod sample;
mod story;

use super::output::{Paint, out};
use super::up::stop_signal;
use super::{Failure, Global};
use crate::api::validate::parse_duration;
use crate::client::Client;
use crate::config::{Config, Settings};
use crate::server::view::AgentView;
use crate::up::{self, Running};
use clap::Args;
use std::io::IsTerminal;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use story::Story;

/// How many folders of earlier demos are kept.
const DEMOS_KEPT: usize = 3;
/// What their names begin with.
const FOLDER_PREFIX: &str = "demo-";

/// See the whole job on a sample project: a gate rejects, the agent mends it, a verified push
#[derive(Args, Debug)]
pub(super) struct Demo {
    /// Longest time of the whole demo; the first build of a cold machine is the longest part
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = |text: &str| parse_duration(text))]
    timeout: Duration,
    #[command(flatten)]
    settings: Settings,
}

/// Where everything of one demo is.
struct Folders {
    state: PathBuf,
    remote: PathBuf,
    project: PathBuf,
    work: PathBuf,
}

impl Demo {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let started = Instant::now();
        let folders = Folders::make(&global.state()?)?;
        let stays = std::io::stdin().is_terminal();
        let paint = Paint::stdout();
        out!("{}", paint.strong("Mosaic demo: an agent shall write a function; a gate decides what is pushed."));
        sample::make(&folders.project, &folders.remote).map_err(|e| Failure::failed(format!("failed to make the sample project: {e}")))?;
        out!("sample project   {}", folders.project.display());
        out!("its remote       {} (bare, branch main)", folders.remote.display());
        let running = self.start(&folders).await?;
        out!("server           http://{} (state in {})\n", running.addr, folders.state.display());
        let told = async {
            tokio::select! {
                told = tell(&running, &folders, paint, started) => told,
                signal = stop_signal() => Err(Failure::failed(format!("stopped by {}", signal?))),
            }
        };
        let told = tokio::time::timeout(self.timeout.saturating_sub(started.elapsed()), told).await;
        let result = told.unwrap_or_else(|_| {
            let hint = format!("on a slow machine give it longer: mosaic demo --timeout {}m", self.timeout.as_secs() / 30 + 1);
            Err(Failure::Failed { message: format!("the demo was not done within {} s", self.timeout.as_secs()), hint: Some(hint) })
        });
        if result.is_ok() && stays {
            out!("\nThe server goes on until Ctrl-C.");
            stop_signal().await?;
        }
        if result.is_err()
            && let Ok(client) = client_of(&running)
        {
            // Nothing of a demo that failed shall run on, not even for a lease. What this cannot end, the lease does.
            let _ = client.kill_all(None, Some("the demo failed"), false, None).await;
        }
        running.shutdown().await;
        result
    }

    async fn start(&self, folders: &Folders) -> Result<Running, Failure> {
        let listen = self.settings.listen.clone().or_else(|| Some("127.0.0.1:0".to_owned()));
        // The sample's gates need this machine's compiler, which no image need have.
        let driver = self.settings.driver.clone().or_else(|| Some("process".to_owned()));
        let settings = Settings { listen, driver, ..self.settings.clone() };
        let mut config = Config::from_settings(settings, folders.state.clone(), None)?;
        config.local_repos.push(folders.work.clone());
        up::start(&config).await.map_err(|e| Failure::failed(crate::causes::one_line(&e)))
    }
}

fn client_of(running: &Running) -> Result<Client, Failure> {
    Ok(Client::new(&format!("http://{}", running.addr), running.token.clone())?)
}

async fn tell(running: &Running, folders: &Folders, paint: Paint, started: Instant) -> Result<(), Failure> {
    let client = client_of(running)?;
    let remote = folders.remote.display().to_string();
    let agent = client.spawn(&sample::request(&remote)).await?.agent;
    out!("$ mosaic spawn --repo {remote} --task-id {} …\nagent/{} created\n", agent.task_id, agent.name);
    let done = Story::new(paint, started).follow(&client, &agent).await?;
    story::prove(&done, folders, paint, started)?;
    try_next(&done, folders, paint);
    Ok(())
}

fn try_next(agent: &AgentView, folders: &Folders, paint: Paint) {
    let (name, state) = (&agent.name, folders.state.display());
    let branch = agent.object["status"]["push"]["ref"].as_str().unwrap_or_default().trim_start_matches("refs/heads/");
    out!("\n{}", paint.strong("What to try next"));
    let diff = format!("git -C {0} fetch && git -C {0} diff main origin/{branch}", folders.project.display());
    if std::io::stdin().is_terminal() {
        out!("  in another terminal:  export MOSAIC_STATE={state}");
        out!("  mosaic describe {name}\n  mosaic logs {name} --attempt 1\n  mosaic diff {name}\n  {diff}");
        out!("  mosaic spawn --repo {} --branch {branch} --wait -- sh -c 'echo more >> README.md'", folders.remote.display());
    } else {
        out!("  mosaic up --state {state} &\n  export MOSAIC_STATE={state}");
        out!("  mosaic describe {name}; mosaic logs {name} --attempt 1; mosaic diff {name}\n  {diff}");
    }
    out!("  on a repository of yours:  mosaic up &  mosaic spawn --repo . --instructions '…' --wait -- COMMAND");
}

impl Folders {
    /// Folders of this demo alone: state and repositories beside each other, as no repository may lie in a state folder.
    fn make(home: &Path) -> Result<Self, Failure> {
        let fail = |e: std::io::Error| Failure::failed(format!("failed to make a folder for the demo in {}: {e}", home.display()));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(home).map_err(fail)?;
        forget_old(home);
        // Version 7 begins with the time: names sort by age.
        let own = home.join(format!("{FOLDER_PREFIX}{}", &uuid::Uuid::now_v7().simple().to_string()[..12]));
        let work = own.join("sample");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&work).map_err(fail)?;
        let own = std::fs::canonicalize(own).map_err(fail)?;
        let work = own.join("sample");
        Ok(Self { state: own.join("state"), remote: work.join("roman.git"), project: work.join("roman"), work })
    }
}

/// Removes the oldest demos beyond those that are kept. One that still serves, or cannot be removed, stays.
fn forget_old(home: &Path) {
    let Ok(entries) = std::fs::read_dir(home) else { return };
    let is_demo = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FOLDER_PREFIX));
    let mut demos: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_demo).collect();
    demos.sort_unstable();
    let old = demos.len().saturating_sub(DEMOS_KEPT - 1);
    for demo in demos.into_iter().take(old).filter(|demo| !demo.join("state/server").exists()) {
        if let Err(error) = std::fs::remove_dir_all(&demo) {
            tracing::debug!(%error, folder = %demo.display(), "left an old demo in place");
        }
    }
}
