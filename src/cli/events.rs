//! `mosaic events`: what happened, in a line each.

use super::output::{one_line, out};
use super::{Failure, Global};
use crate::server::view::EventLine;
use clap::Args;
use futures::StreamExt;

/// Show what happened
#[derive(Args, Debug)]
pub(super) struct Events {
    /// Only what happened to this agent, by name or id
    name: Option<String>,
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

impl Events {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut lines = global.client()?.events(self.name.as_deref(), Some(&global.namespace), self.follow).await?;
        while let Some(line) = lines.next().await {
            let line = line?;
            if self.json {
                out!("{}", serde_json::to_string(&line).expect("a line is plain data"));
            } else {
                print(&line);
            }
            if let EventLine::Lagged { missed } = line {
                return Err(Failure::failed(format!("this was too slow and missed {missed} events; start it again")));
            }
        }
        if self.follow { Err(Failure::failed("the server has ended the stream")) } else { Ok(()) }
    }
}

fn print(line: &EventLine) {
    match line {
        EventLine::Event { at, name, before, after, reason, message, .. } => {
            let change = match (before, after) {
                (Some(before), Some(after)) => format!("{before} -> {after} ({reason})"),
                _ => reason.clone(),
            };
            let message = message.as_deref().map(one_line).unwrap_or_default();
            out!("{at}  {}  {change}{}{message}", name.as_deref().unwrap_or("-"), if message.is_empty() { "" } else { ": " });
        }
        EventLine::Gap => eprintln!("(earlier events are not in memory any more; the audit folder has them)"),
        EventLine::Stream { .. } | EventLine::Lagged { .. } => {}
    }
}
