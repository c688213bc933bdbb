//! `mosaic doctor`: what this machine can do, and what would help. It needs no server and changes nothing.

use super::output::{Format, out, structured, table};
use super::{Failure, Global};
use crate::config::{Config, Settings};
use crate::doctor::{Report, Verdict, examine};
use clap::Args;
use std::path::{Path, PathBuf};

/// Show what this machine can do for sandboxes, and what would help
#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
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
        let report = examine(&config);
        match self.output {
            Some(format @ (Format::Json | Format::Yaml)) => out!("{}", structured(&report, format)?),
            None | Some(Format::Wide | Format::Name) => print(&report),
        }
        if report.is_usable() { Ok(()) } else { Err(Failure::failed("no agent can start here: see the lines marked MISSING")) }
    }
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
