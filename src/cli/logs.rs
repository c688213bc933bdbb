//! `mosaic logs` and `mosaic diff`.

use super::output::{bytes, safe};
use super::{Failure, Global};
use clap::Args;
use futures::StreamExt;

/// Show what an agent prints
#[derive(Args, Debug)]
pub(super) struct Logs {
    /// Name or id
    name: String,
    /// Go on until the agent has finished
    #[arg(short, long)]
    follow: bool,
    /// This attempt only [default: the last one, and with --follow those after it]
    #[arg(long, value_name = "NUMBER")]
    attempt: Option<u32>,
}

impl Logs {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut pieces = global.client()?.logs(&self.name, Some(&global.namespace), self.follow, self.attempt).await?;
        while let Some(piece) = pieces.next().await {
            // The server has taken control characters out already.
            bytes(&piece?);
        }
        Ok(())
    }
}

/// Show the change that an agent has made so far
#[derive(Args, Debug)]
pub(super) struct Diff {
    /// Name or id
    name: String,
}

impl Diff {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let patch = global.client()?.diff(&self.name, Some(&global.namespace)).await?;
        bytes(safe(&patch).as_bytes());
        Ok(())
    }
}
