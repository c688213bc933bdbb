//! `mosaic suspend`, `mosaic resume` and `mosaic patch`: all that may change of an agent.

use super::output::out;
use super::{Failure, Global};
use clap::Args;
use serde_json::{Value, json};

/// Stop an agent and keep its tree
#[derive(Args, Debug)]
pub(super) struct Suspend {
    /// Name or id
    name: String,
}

/// Let a suspended agent go on
#[derive(Args, Debug)]
pub(super) struct Resume {
    /// Name or id
    name: String,
}

/// Change the priority of an agent
#[derive(Args, Debug)]
pub(super) struct Patch {
    /// Name or id
    name: String,
    /// 1 to 10; 10 is the most urgent
    #[arg(long)]
    priority: i32,
}

impl Suspend {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        change(global, &self.name, &json!({ "suspend": true }), "suspended").await
    }
}

impl Resume {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        change(global, &self.name, &json!({ "suspend": false }), "resumed").await
    }
}

impl Patch {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        change(global, &self.name, &json!({ "priority": self.priority }), "patched").await
    }
}

async fn change(global: &Global, name: &str, change: &Value, done: &str) -> Result<(), Failure> {
    let agent = global.client()?.patch(name, Some(&global.namespace), change).await?;
    out!("agent/{} {done}", agent.name);
    Ok(())
}
