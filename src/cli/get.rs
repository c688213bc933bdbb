//! `mosaic get` and `mosaic queue`.

use super::output::{Format, age, out, structured, table};
use super::{Failure, Global};
use crate::client::Client;
use crate::server::view::{AgentView, STATES, WatchLine};
use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};

/// Show agents
#[derive(Args, Debug)]
pub(super) struct Get {
    /// Names or ids; none: all agents of the namespace
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    /// Go on with every change
    #[arg(short, long)]
    watch: bool,
    /// Agents of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only agents in this phase, such as Running
    #[arg(long, value_name = "PHASE", value_parser = phase, conflicts_with_all = ["names", "watch"])]
    phase: Option<String>,
}

/// A state or phase that the server knows.
fn phase(text: &str) -> Result<String, String> {
    let phase = text.to_lowercase();
    if STATES.contains(&phase.as_str()) { Ok(phase) } else { Err(format!("it is not one of {}", STATES.join(", "))) }
}

impl Get {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        let namespace = (!self.all_namespaces).then_some(global.namespace.as_str());
        if self.watch {
            if self.names.len() > 1 {
                return Err(Failure::usage("--watch takes at most one name"));
            }
            return self.watch(&client, namespace).await;
        }
        if self.names.is_empty() {
            let agents = client.list(namespace, self.phase.as_deref()).await?;
            if agents.is_empty() && !matches!(self.output, Some(Format::Json | Format::Yaml)) {
                eprintln!("No agents found{}.", namespace.map_or_else(String::new, |n| format!(" in namespace {n}")));
                return Ok(());
            }
            return self.print(&agents, true);
        }
        let mut agents = Vec::new();
        for name in &self.names {
            agents.push(client.get(name, Some(&global.namespace)).await?);
        }
        self.print(&agents, self.names.len() > 1)
    }

    fn print(&self, agents: &[AgentView], is_list: bool) -> Result<(), Failure> {
        match self.output {
            Some(format @ (Format::Json | Format::Yaml)) => {
                let objects: Vec<&Value> = agents.iter().map(|a| &a.object).collect();
                let value = match objects.as_slice() {
                    [one] if !is_list => (*one).clone(),
                    _ => json!({ "apiVersion": "v1", "kind": "List", "items": objects }),
                };
                out!("{}", structured(&value, format)?);
            }
            Some(Format::Name) => agents.iter().for_each(|a| out!("agent/{}", a.name)),
            Some(Format::Wide) | None => {
                let rows: Vec<Vec<String>> = agents.iter().map(|a| self.row(a)).collect();
                out!("{}", table(Some(&self.header()), &rows, &mut Vec::new()));
            }
        }
        Ok(())
    }

    fn header(&self) -> Vec<&'static str> {
        let mut header = Vec::new();
        if self.all_namespaces {
            header.push("NAMESPACE");
        }
        header.extend(["NAME", "TYPE", "PHASE", "REASON", "GATES", "AGE"]);
        if self.output == Some(Format::Wide) {
            header.extend(["ATTEMPT", "REPOSITORY", "REF"]);
        }
        header
    }

    fn row(&self, agent: &AgentView) -> Vec<String> {
        let text = |value: &Value, default: &str| value.as_str().unwrap_or(default).to_owned();
        let (spec, status) = (&agent.object["spec"], &agent.object["status"]);
        let mut row = Vec::new();
        if self.all_namespaces {
            row.push(agent.namespace.clone());
        }
        row.extend([
            agent.name.clone(),
            text(&spec["agentType"], "worker"),
            agent.phase.clone(),
            agent.reason.clone().unwrap_or_else(|| "<none>".to_owned()),
            text(&spec["gates"]["profile"], "standard"),
            age(agent.object["metadata"]["creationTimestamp"].as_str()),
        ]);
        if self.output == Some(Format::Wide) {
            row.extend([agent.attempt.to_string(), text(&spec["context"]["repository"], ""), text(&status["push"]["ref"], "<none>")]);
        }
        row
    }

    async fn watch(&self, client: &Client, namespace: Option<&str>) -> Result<(), Failure> {
        let mut lines = client.watch(namespace, self.names.first().map(String::as_str)).await?;
        let mut widths = Vec::new();
        let mut first: Option<Vec<AgentView>> = Some(Vec::new());
        while let Some(line) = lines.next().await {
            match line? {
                WatchLine::Applied { agent } | WatchLine::Deleted { agent } => match &mut first {
                    // The present state comes first and is printed at once, so that columns fit.
                    Some(present) => present.push(*agent),
                    None => self.print_change(&agent, &mut widths)?,
                },
                WatchLine::Bookmark { .. } => {
                    if let Some(present) = first.take() {
                        self.print_present(&present, &mut widths)?;
                    }
                }
                WatchLine::Ended { why } => return Err(Failure::failed(format!("the watch has ended: {why}"))),
            }
        }
        Err(Failure::failed("the server has ended the watch"))
    }

    fn print_present(&self, agents: &[AgentView], widths: &mut Vec<u16>) -> Result<(), Failure> {
        if matches!(self.output, Some(Format::Wide) | None) {
            let rows: Vec<Vec<String>> = agents.iter().map(|a| self.row(a)).collect();
            out!("{}", table(Some(&self.header()), &rows, widths));
            return Ok(());
        }
        agents.iter().try_for_each(|a| self.print_change(a, widths))
    }

    fn print_change(&self, agent: &AgentView, widths: &mut Vec<u16>) -> Result<(), Failure> {
        match self.output {
            Some(Format::Json) => out!("{}", agent.object),
            Some(Format::Yaml) => out!("---\n{}", structured(&agent.object, Format::Yaml)?),
            Some(Format::Name) => out!("agent/{}", agent.name),
            Some(Format::Wide) | None => out!("{}", table(None, &[self.row(agent)], widths)),
        }
        Ok(())
    }
}

/// `mosaic health`.
pub(super) async fn health(global: &Global) -> Result<(), Failure> {
    let health = global.client()?.health().await?;
    let status = health["status"].as_str().unwrap_or("unknown");
    out!("{status}, up for {} s", health["uptime"]);
    if status == "healthy" { Ok(()) } else { Err(Failure::failed(format!("the server says that it is {status}"))) }
}

/// `mosaic queue`.
pub(super) async fn queue(global: &Global) -> Result<(), Failure> {
    let queue = global.client()?.queue().await?;
    out!("pending {}, active {}, completed {}, failed {}", queue.pending, queue.active, queue.completed, queue.failed);
    if !queue.positions.is_empty() {
        let rows: Vec<Vec<String>> = queue
            .positions
            .iter()
            .map(|p| {
                vec![
                    p.position.to_string(),
                    p.namespace.clone(),
                    p.name.clone(),
                    p.priority.to_string(),
                    p.reason.clone().unwrap_or_default(),
                ]
            })
            .collect();
        out!("{}", table(Some(&["POSITION", "NAMESPACE", "NAME", "PRIORITY", "REASON"]), &rows, &mut Vec::new()));
    }
    Ok(())
}
