//! `mosaic describe`: one agent with everything that was seen of it.

use super::output::{age, indented, one_line, out, table};
use super::{Failure, Global};
use crate::server::view::AgentView;
use clap::Args;
use serde_json::Value;

/// Show one agent with everything that was seen of it
#[derive(Args, Debug)]
pub(super) struct Describe {
    /// Name or id
    name: String,
}

impl Describe {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let agent = global.client()?.get(&self.name, Some(&global.namespace)).await?;
        out!("{}", text_of(&agent));
        Ok(())
    }
}

/// The description; also what the demo shows in the end.
pub(super) fn text_of(agent: &AgentView) -> String {
    let (spec, status) = (&agent.object["spec"], &agent.object["status"]);
    let mut text = facts(agent, spec, status);
    for (title, body) in [("Gates", verdicts(status)), ("Conditions", conditions(status)), ("Feedback", feedback(status))] {
        if let Some(body) = body {
            text.push_str(&format!("\n{title}:\n{}", indented(&body, 2)));
        }
    }
    text
}

fn facts(agent: &AgentView, spec: &Value, status: &Value) -> String {
    let counts = &status["counts"];
    let counted = |name: &str| counts[name].as_u64().unwrap_or_default();
    let failures = format!(
        "{} of the agent, {} rejections, {} of infrastructure",
        counted("agentFailures"),
        counted("rejections"),
        counted("infrastructure")
    );
    let pushed = match (status["push"]["ref"].as_str(), status["push"]["sha"].as_str()) {
        (Some(name), Some(sha)) => Some(format!("{name} = {sha}")),
        (Some(name), None) => Some(format!("nothing yet (to {name})")),
        (None, _) => None,
    };
    let isolation = status["sandbox"]["isolation"].as_array().filter(|names| !names.is_empty());
    let isolation = isolation.map(|names| names.iter().map(cell).collect::<Vec<_>>().join(" "));
    let rows = [
        ("Name", Some(agent.name.clone())),
        ("Namespace", Some(agent.namespace.clone())),
        ("Agent id", Some(agent.agent_id.clone())),
        ("Task id", Some(agent.task_id.clone())),
        ("Type", spec["agentType"].as_str().map(str::to_owned)),
        ("Priority", Some(agent.priority.to_string())),
        ("Age", Some(age(agent.object["metadata"]["creationTimestamp"].as_str()))),
        ("Repository", spec["context"]["repository"].as_str().map(str::to_owned)),
        ("Branch", spec["context"]["branch"].as_str().map(str::to_owned)),
        ("Phase", Some(agent.phase.clone())),
        ("Reason", agent.reason.clone()),
        ("Message", agent.message.clone()),
        ("Attempt", Some(agent.attempt.to_string())),
        ("Failures", (!counts.is_null()).then_some(failures)),
        ("Started", agent.started_at.clone()),
        ("Completed", agent.completed_at.clone()),
        ("Progress", status["progress"]["message"].as_str().map(str::to_owned)),
        ("Worktree", status["workspace"]["worktree"].as_str().map(str::to_owned)),
        ("Base", status["workspace"]["baseSha"].as_str().map(str::to_owned)),
        ("Candidate", status["workspace"]["candidateSha"].as_str().map(str::to_owned)),
        ("Isolation", isolation),
        ("Pushed", pushed),
        ("Rescue", status["workspace"]["rescueRef"].as_str().map(str::to_owned)),
    ];
    let shown = rows.into_iter().filter_map(|(name, value)| value.map(|v| format!("{:<12} {}", format!("{name}:"), one_line(&v))));
    shown.collect::<Vec<_>>().join("\n")
}

fn cell(value: &Value) -> String {
    value.as_str().map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

/// The verdicts as a table; `None` without any.
pub(super) fn verdicts(status: &Value) -> Option<String> {
    let gates = status["gates"].as_array().filter(|g| !g.is_empty())?;
    let row = |gate: &Value| {
        let sha = cell(&gate["sha"]).chars().take(12).collect();
        let duration = gate["durationMillis"].as_u64().map_or_else(String::new, |ms| format!("{ms} ms"));
        vec![cell(&gate["name"]), cell(&gate["verdict"]), sha, duration]
    };
    let rows: Vec<Vec<String>> = gates.iter().map(row).collect();
    Some(table(Some(&["GATE", "VERDICT", "COMMIT", "TIME"]), &rows, &mut Vec::new()))
}

fn conditions(status: &Value) -> Option<String> {
    let conditions = status["conditions"].as_array().filter(|c| !c.is_empty())?;
    let row = |c: &Value| {
        vec![cell(&c["type"]), cell(&c["status"]), cell(&c["reason"]), age(c["lastTransitionTime"].as_str()), cell(&c["message"])]
    };
    let rows: Vec<Vec<String>> = conditions.iter().map(row).collect();
    Some(table(Some(&["TYPE", "STATUS", "REASON", "AGE", "MESSAGE"]), &rows, &mut Vec::new()))
}

fn feedback(status: &Value) -> Option<String> {
    let rounds = status["feedback"].as_array().filter(|f| !f.is_empty())?;
    let one = |f: &Value| {
        let head = format!("attempt {} ({}): {}", f["attempt"], cell(&f["kind"]), one_line(&cell(&f["summary"])));
        f["details"].as_str().map_or_else(|| head.clone(), |details| format!("{head}\n{}", indented(details, 2)))
    };
    Some(rounds.iter().map(one).collect::<Vec<_>>().join("\n"))
}
