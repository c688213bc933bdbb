//! `mosaic wait`: until a condition, a phase or the end of the record; at once a failure when it cannot come any more.

use super::output::out;
use super::{Failure, Global};
use crate::api::validate::parse_duration;
use crate::client::Client;
use crate::server::view::{AgentView, WatchLine};
use clap::Args;
use futures::StreamExt;
use std::str::FromStr;
use std::time::Duration;
use tokio::time::Instant;

/// How often a watch that broke off is begun again.
const WATCHES_MAX: u32 = 5;
/// Pause before it is.
const WATCH_PAUSE: Duration = Duration::from_millis(500);

/// Wait until something is so
#[derive(Args, Debug)]
pub(super) struct Wait {
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// condition=TYPE[=True|False], phase=PHASE or delete
    #[arg(long = "for", value_name = "WHAT", default_value = "phase=Completed")]
    goal: Goal,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = |text: &str| parse_duration(text))]
    timeout: Duration,
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Goal {
    /// A condition of that type has that status.
    Condition(String, String),
    /// The agent is in that phase.
    Phase(String),
    /// The record is gone.
    Delete,
}

impl FromStr for Goal {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let phases = ["Pending", "Spawning", "Running", "Completed", "Failed", "Killed"];
        let parts: Vec<&str> = text.split('=').collect();
        match parts.as_slice() {
            ["delete"] => Ok(Self::Delete),
            ["condition", type_] if !type_.is_empty() => Ok(Self::Condition((*type_).to_owned(), "True".to_owned())),
            ["condition", type_, status] if ["True", "False", "Unknown"].contains(status) => {
                Ok(Self::Condition((*type_).to_owned(), (*status).to_owned()))
            }
            ["phase", wanted] => {
                let known = phases.into_iter().find(|p| p.eq_ignore_ascii_case(wanted));
                known.map(|p| Self::Phase(p.to_owned())).ok_or_else(|| format!("phase is one of {}", phases.join(", ")))
            }
            _ => Err("write condition=TYPE[=True|False], phase=PHASE or delete".to_owned()),
        }
    }
}

impl Goal {
    fn is_reached(&self, agent: &AgentView) -> bool {
        match self {
            Self::Phase(phase) => agent.phase == *phase,
            Self::Condition(type_, status) => {
                let conditions = agent.object["status"]["conditions"].as_array();
                conditions.is_some_and(|all| all.iter().any(|c| c["type"] == **type_ && c["status"] == **status))
            }
            Self::Delete => false,
        }
    }
}

impl Wait {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        let deadline = Instant::now() + self.timeout;
        for name in &self.names {
            until(&client, name, &global.namespace, &self.goal, Some(deadline), false).await?;
            out!("agent/{name} condition met");
        }
        Ok(())
    }
}

/// Waits until the goal is reached; with `tells`, prints each change of phase and reason.
/// # Errors
/// The time is over, the agent ended otherwise, or the server went away.
pub(super) async fn until(
    client: &Client,
    id: &str,
    namespace: &str,
    goal: &Goal,
    deadline: Option<Instant>,
    tells: bool,
) -> Result<(), Failure> {
    let waited = follow(client, id, namespace, goal, tells);
    match deadline {
        None => waited.await,
        Some(deadline) => tokio::time::timeout_at(deadline, waited)
            .await
            .unwrap_or_else(|_| Err(Failure::failed(format!("timed out waiting for agent {id:?}; `mosaic describe {id}` shows why")))),
    }
}

async fn follow(client: &Client, id: &str, namespace: &str, goal: &Goal, tells: bool) -> Result<(), Failure> {
    let mut last = String::new();
    let agent = match client.get(id, Some(namespace)).await {
        Err(error) if error.is_not_found() && *goal == Goal::Delete => return Ok(()),
        other => other?,
    };
    for _ in 0..WATCHES_MAX {
        let mut lines = client.watch(Some(&agent.namespace), Some(&agent.name)).await?;
        let mut is_present = false;
        while let Some(Ok(line)) = lines.next().await {
            match line {
                WatchLine::Applied { agent: seen } if seen.agent_id == agent.agent_id => {
                    is_present = true;
                    if tells {
                        tell(&seen, &mut last);
                    }
                    if let Some(result) = judge(&seen, goal) {
                        return result;
                    }
                }
                WatchLine::Deleted { agent: seen } if seen.agent_id == agent.agent_id => return gone(client, &agent, goal).await,
                // The present state is told: it was not in it.
                WatchLine::Bookmark { .. } if !is_present => return gone(client, &agent, goal).await,
                WatchLine::Applied { .. } | WatchLine::Deleted { .. } | WatchLine::Bookmark { .. } => {}
                WatchLine::Ended { .. } => break,
            }
        }
        tokio::time::sleep(WATCH_PAUSE).await;
    }
    Err(Failure::failed(format!("the server went away while waiting for agent {id:?}")))
}

fn tell(agent: &AgentView, last: &mut String) {
    let line = format!("{} {}", agent.phase, agent.reason.as_deref().unwrap_or_default());
    if line != *last && agent.reason.is_some() {
        eprintln!("{line}{}", agent.message.as_deref().map(|m| format!(": {}", super::output::one_line(m))).unwrap_or_default());
        *last = line;
    }
}

/// `None`: wait on.
fn judge(agent: &AgentView, goal: &Goal) -> Option<Result<(), Failure>> {
    if goal.is_reached(agent) {
        return Some(Ok(()));
    }
    let cannot_come = agent.is_finished() && *goal != Goal::Delete;
    cannot_come.then(|| Err(ended_otherwise(agent)))
}

fn ended_otherwise(agent: &AgentView) -> Failure {
    let why = agent.message.clone().or_else(|| agent.reason.clone()).unwrap_or_default();
    Failure::Failed {
        message: format!("agent/{} is {}: {}", agent.name, agent.state, super::output::one_line(&why)),
        hint: Some(format!("mosaic describe {0}, mosaic logs {0}", agent.name)),
    }
}

/// The record is gone: its last state decides.
async fn gone(client: &Client, agent: &AgentView, goal: &Goal) -> Result<(), Failure> {
    if *goal == Goal::Delete {
        return Ok(());
    }
    let last = client.get(&agent.agent_id, Some(&agent.namespace)).await?;
    judge(&last, goal).unwrap_or_else(|| Err(Failure::failed(format!("agent/{} was deleted", agent.name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_read_as_kubectl_reads_them() {
        assert_eq!("delete".parse(), Ok(Goal::Delete));
        assert_eq!("condition=Pushed".parse(), Ok(Goal::Condition("Pushed".into(), "True".into())));
        assert_eq!("condition=Pushed=False".parse(), Ok(Goal::Condition("Pushed".into(), "False".into())));
        assert_eq!("phase=completed".parse(), Ok(Goal::Phase("Completed".into())));
        for wrong in ["", "phase=Done", "condition=", "condition=A=maybe", "deleted"] {
            assert!(wrong.parse::<Goal>().is_err(), "{wrong}");
        }
    }
}
