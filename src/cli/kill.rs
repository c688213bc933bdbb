//! `mosaic kill`, `mosaic delete` and `mosaic halt`.

use super::output::{age, one_line, out, table};
use super::{Failure, Global};
use crate::server::view::Ending;
use clap::{Args, Subcommand};

/// Kill one agent or all of them
#[derive(Args, Debug)]
pub(super) struct Kill {
    /// Names or ids
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// All agents of all namespaces; with --this-namespace, of one
    #[arg(long)]
    all: bool,
    /// Nothing starts again until the halt is released
    #[arg(long, requires = "all", conflicts_with = "names")]
    hold: bool,
    /// Why, for the record
    #[arg(long, requires = "all", conflicts_with = "names", value_name = "TEXT")]
    reason: Option<String>,
    /// Only agents of the namespace that --namespace names
    #[arg(long, requires = "all", conflicts_with = "names")]
    this_namespace: bool,
}

impl Kill {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        if self.all {
            let namespace = self.this_namespace.then_some(global.namespace.as_str());
            let all = client.kill_all(namespace, self.reason.as_deref(), self.hold).await?;
            if all.agents.is_empty() {
                out!("nothing to kill");
            }
            if all.hold {
                eprintln!("nothing starts until: mosaic halt release {}", all.halt);
            }
            return report(&all.agents);
        }
        let mut endings = Vec::new();
        for name in &self.names {
            endings.push(client.kill(name, Some(&global.namespace)).await?);
        }
        report(&endings)
    }
}

fn report(endings: &[Ending]) -> Result<(), Failure> {
    for ending in endings {
        let proof = if ending.verified { "verified" } else { "NOT VERIFIED" };
        out!("agent/{} {} ({proof}, {} ms): {}", ending.name, ending.state, ending.millis, one_line(&ending.message));
    }
    let open = endings.iter().filter(|e| !e.verified).count();
    if open == 0 { Ok(()) } else { Err(Failure::failed(format!("{open} of {} agents were not seen gone yet", endings.len()))) }
}

/// Kill an agent if it runs, and remove its record
#[derive(Args, Debug)]
pub(super) struct Delete {
    /// Names or ids
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

impl Delete {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        let mut open = 0;
        for name in &self.names {
            let ending = client.delete(name, Some(&global.namespace)).await?;
            out!("agent/{} {}", ending.name, if ending.verified { "deleted" } else { "is being deleted" });
            open += usize::from(!ending.verified);
        }
        if open == 0 { Ok(()) } else { Err(Failure::failed(format!("{open} of {} agents were not seen gone yet", self.names.len()))) }
    }
}

#[derive(Subcommand, Debug)]
pub(super) enum HaltCommand {
    /// Show halts
    List,
    /// Release a halt; restarts nothing
    Release {
        /// Name of the halt
        name: String,
    },
}

impl HaltCommand {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        match self {
            Self::List => {
                let halts = client.halts().await?;
                if halts.is_empty() {
                    eprintln!("No halts.");
                    return Ok(());
                }
                let killed = |halt: &serde_json::Value| halt["status"]["killed"].as_u64().unwrap_or_default().to_string();
                let created = |halt: &serde_json::Value| age(halt["metadata"]["creationTimestamp"].as_str());
                let rows: Vec<Vec<String>> = halts
                    .iter()
                    .map(|h| {
                        vec![h.name.clone(), h.release.clone(), h.reason.clone().unwrap_or_default(), killed(&h.object), created(&h.object)]
                    })
                    .collect();
                out!("{}", table(Some(&["NAME", "RELEASE", "REASON", "KILLED", "AGE"]), &rows, &mut Vec::new()));
            }
            Self::Release { name } => {
                client.release(&name).await?;
                out!("halt/{name} released");
            }
        }
        Ok(())
    }
}
