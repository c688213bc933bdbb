//! `mosaic doctor`: what this machine can do, and what would help. It needs no server and changes nothing.

use super::output::{Format, out, structured, table};
use super::{Failure, Global};
use crate::config::{Config, Settings};
use crate::doctor::{Report, Verdict, drills, examine};
use crate::kill::drill::{self, Drilled};
use clap::Args;
use std::path::{Path, PathBuf};

/// Show what this machine can do for sandboxes, and what would help
#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    /// Kill a canary by each path, and print how long each took
    #[arg(long)]
    drill: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Doctor {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let state = global.state()?;
        let beside = existing(&state);
        // Beside the state folder: whether overlays work depends on the file system.
        let folder = tempfile::Builder::new().prefix("mosaic-doctor-").tempdir_in(&beside).or_else(|_| tempfile::tempdir());
        let folder = folder.map_err(|e| Failure::failed(format!("failed to make a temporary folder: {e}")))?;
        let config = Config::from_settings(self.settings, folder.path().to_owned(), None)?;
        if self.drill {
            return run_drill(&config, &state, self.output);
        }
        let report = examine(&config, &state);
        match self.output {
            Some(format @ (Format::Json | Format::Yaml)) => out!("{}", structured(&report, format)?),
            None | Some(Format::Wide | Format::Name) => print(&report),
        }
        if report.is_usable() { Ok(()) } else { Err(Failure::failed("no agent can start here: see the lines marked MISSING")) }
    }
}

fn run_drill(config: &Config, state: &Path, format: Option<Format>) -> Result<(), Failure> {
    // The drivers have runtimes of their own within; this thread has one already.
    let drilled = std::thread::scope(|scope| scope.spawn(|| drills(config)).join());
    let drilled = drilled.map_err(|_| Failure::failed("the drill broke"))?.map_err(Failure::failed)?;
    match format {
        Some(format @ (Format::Json | Format::Yaml)) => out!("{}", structured(&drilled, format)?),
        None | Some(Format::Wide | Format::Name) => {
            let millis = |millis: Option<u64>| millis.map_or_else(|| "-".to_owned(), |millis| format!("{millis} ms"));
            let row = |d: &Drilled| vec![d.driver.clone(), d.path.clone(), millis(d.millis), d.seen.clone()];
            let rows: Vec<Vec<String>> = drilled.iter().map(row).collect();
            out!("{}", table(Some(&["DRIVER", "PATH", "DEAD AFTER", "SEEN"]), &rows, &mut Vec::new()));
        }
    }
    let failed = drilled.iter().filter(|drilled| drilled.failed).count();
    if failed > 0 || drilled.is_empty() {
        return Err(Failure::failed(format!("{failed} of {} canaries were not killed as they should", drilled.len())));
    }
    if state.is_dir()
        && let Err(error) = drill::remember(state)
    {
        eprintln!("warning: the drill could not be noted in {}: {error}", state.display());
    }
    Ok(())
}

/// The nearest folder above the state folder that is there.
fn existing(state: &Path) -> PathBuf {
    state.ancestors().skip(1).find(|path| path.is_dir()).map_or_else(std::env::temp_dir, Path::to_owned)
}

fn print(report: &Report) {
    let mut rows = Vec::new();
    for section in &report.sections {
        let mut title = section.title.to_owned();
        for row in &section.rows {
            let verdict = match row.verdict {
                Verdict::Ok => "ok",
                Verdict::Weak => "weak",
                Verdict::Missing => "MISSING",
            };
            let detail = if row.remedy.is_empty() { row.detail.clone() } else { format!("{}; what helps: {}", row.detail, row.remedy) };
            rows.push(vec![std::mem::take(&mut title), row.name.clone(), verdict.to_owned(), detail]);
        }
    }
    out!("{}", table(Some(&["", "WHAT", "VERDICT", "SEEN"]), &rows, &mut Vec::new()));
}
