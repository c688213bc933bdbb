//! `mosaic up`: the controller and its server on this machine, until SIGTERM or SIGINT. Sandboxes go on without it for a lease.

use super::output::out;
use super::{Failure, Global};
use crate::config::{Config, Settings};
use clap::Args;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// Start the controller and its server on this machine
#[derive(Args, Debug)]
pub(super) struct Up {
    /// TOML file of settings; flags and MOSAIC_* variables go before it
    #[arg(long, env = "MOSAIC_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Up {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let file = self.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let config = Config::from_settings(self.settings.or(file), global.state()?, home)?;
        let running = crate::up::start(&config).await.map_err(|e| Failure::failed(e.to_string()))?;
        running.notes.iter().for_each(|note| eprintln!("{note}"));
        out!("Mosaic serves on http://{} with the state folder {}", running.addr, config.state.display());
        let signal = stop_signal().await?;
        eprintln!("{signal}: stopping; running agents go on for {} s and are taken up again by the next start", config.lease.as_secs());
        running.shutdown().await;
        Ok(())
    }
}

/// Waits for SIGTERM or SIGINT; says which.
pub(super) async fn stop_signal() -> Result<&'static str, Failure> {
    let listen = |kind| signal(kind).map_err(|e| Failure::failed(format!("failed to listen for signals: {e}")));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    })
}
