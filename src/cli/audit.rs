//! `mosaic audit verify`: is the record of what happened whole? Reads files only: it works while a server writes, and without one.

use super::output::{out, table};
use super::{Failure, Global};
use crate::audit::{WriterReport, verify};
use clap::Subcommand;

#[derive(Subcommand, Debug)]
pub(super) enum AuditCommand {
    /// Check the chain of every writer; exit code 1 if one is broken
    Verify,
}

impl AuditCommand {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let Self::Verify = self;
        let folder = global.state()?.join("audit");
        if !folder.is_dir() {
            return Err(Failure::failed(format!("there is no audit log at {}: name the state folder with --state", folder.display())));
        }
        let report = verify(&folder).map_err(|e| Failure::failed(crate::causes::one_line(&e)))?;
        let rows: Vec<Vec<String>> = report.writers.iter().map(row).collect();
        out!("{}", table(Some(&["WRITER", "FILES", "ENTRIES", "LAST", "UNKNOWN-OUTCOMES", "CHAIN"]), &rows, &mut Vec::new()));
        if report.is_whole() { Ok(()) } else { Err(Failure::failed("the audit log was changed or damaged: see CHAIN")) }
    }
}

fn row(writer: &WriterReport) -> Vec<String> {
    let chain = match (&writer.first_break, writer.is_torn) {
        (Some(first), _) => format!("broken at {first}"),
        (None, true) => "whole; the last line is cut off, as after a crash".to_owned(),
        (None, false) => "whole".to_owned(),
    };
    let numbers = [writer.files as u64, writer.entries, writer.last_seq, writer.unknown_outcomes];
    let numbers = numbers.iter().map(ToString::to_string);
    [writer.writer_id.clone()].into_iter().chain(numbers).chain([chain]).collect()
}
