//! What a run is given: the task file, the command, its environment. The agent contract (docs/agent-contract.md) in code.

use crate::api::agent::{AgentType, Feedback, GateDefinition};
use crate::api::names::{CommitId, Epoch, Role, RunId};
use crate::api::validate::{ValidAgent, ValidRuntime};
use crate::plan::gates::keep_start;
use crate::sandbox::RunSpec;
use crate::workspace::TreePaths;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// `/mosaic/task.json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TaskFile<'a> {
    task_id: &'a str,
    agent_type: AgentType,
    attempt: u32,
    instructions: &'a str,
    work_items: &'a [String],
    skills: &'a [String],
    repository: &'a str,
    branch: Option<&'a str>,
    target_branch: &'a str,
    base_sha: Option<&'a str>,
    feedback: &'a [Feedback],
}

/// The agent's own run.
#[must_use]
pub fn agent_run(agent: &ValidAgent, run: &RunId, epoch: Epoch, paths: TreePaths) -> RunSpec {
    let workspace = agent.status.workspace.as_ref();
    let task = TaskFile {
        task_id: &agent.task_id,
        agent_type: agent.agent_type,
        attempt: run.attempt.0,
        instructions: &agent.instructions,
        work_items: &agent.work_items,
        skills: &agent.skills,
        repository: &agent.repository,
        branch: workspace.and_then(|w| w.base_branch.as_deref()),
        target_branch: agent.target_branch.as_str(),
        base_sha: workspace.and_then(|w| w.base_sha.as_deref()),
        feedback: &agent.status.feedback,
    };
    let (args, env) = match &agent.runtime {
        ValidRuntime::Command { args, env } => (args.clone(), env.clone()),
        // Admission refuses what is not built; a command that cannot be found says so if one ever gets here.
        ValidRuntime::NotBuilt(text) => (vec![text.clone()], BTreeMap::new()),
    };
    RunSpec {
        run: run.clone(),
        epoch,
        driver: agent.status.driver.unwrap_or(agent.driver),
        image: agent.image.clone(),
        runtime_class: agent.runtime_class.clone(),
        agent: agent.full_name(),
        tree: paths.tree,
        home: Some(paths.home),
        base_objects: Some(paths.base_objects),
        task: Some(serde_json::to_vec_pretty(&task).expect("a task is plain data")),
        args,
        env,
        deadline: None,
        limits: agent.limits.clone(),
    }
}

/// The run of one gate on one commit.
#[must_use]
pub fn gate_run(
    agent: &ValidAgent,
    run: &RunId,
    epoch: Epoch,
    gate: &GateDefinition,
    tree: PathBuf,
    base_objects: Option<PathBuf>,
) -> RunSpec {
    RunSpec {
        run: run.clone(),
        epoch,
        driver: agent.status.driver.unwrap_or(agent.driver),
        image: agent.image.clone(),
        runtime_class: agent.runtime_class.clone(),
        agent: agent.full_name(),
        tree,
        home: None,
        base_objects,
        task: None,
        args: vec!["sh".to_owned(), "-c".to_owned(), gate.command.clone()],
        env: BTreeMap::new(),
        deadline: Some(Duration::from_secs(u64::from(gate.timeout_seconds))),
        limits: agent.limits.clone(),
    }
}

/// Most of an agent's own commit message: with our lines below it stays within what a message may have (`workspace::repository`).
const SAID_BYTES_MAX: usize = 12 << 10;
/// Names of the lines that we add to a commit message, as an agent could spell them.
const OWN_TRAILERS: [&str; 2] = ["mosaic-agent", "mosaic-task"];

/// Key of a gate's tree: unique per run, and a name that a path may hold.
#[must_use]
pub fn gate_tree_key(run: &RunId) -> Option<String> {
    match &run.role {
        Role::Agent => None,
        Role::Gate { name, sha, tries } => Some(format!("{}-{name}-{}-{tries}", run.attempt, &sha.as_str()[..8])),
    }
}

/// Message of the commit: the agent's, or what is known of its task. The lines that say whose work it is are ours alone, and always the last.
#[must_use]
pub fn commit_message(agent: &ValidAgent) -> String {
    let run = agent.status.run.as_ref();
    let said = run.and_then(|run| run.commit_message.clone().or_else(|| run.summary.clone())).unwrap_or_default();
    let is_ours = |line: &&str| OWN_TRAILERS.iter().any(|name| line.trim_start().to_ascii_lowercase().starts_with(name));
    let lines: Vec<&str> = keep_start(&said, SAID_BYTES_MAX).lines().filter(|line| !is_ours(line)).collect();
    let said = lines.join("\n");
    let first = if said.trim().is_empty() { &agent.task_id } else { &said };
    format!("{}\n\nMosaic-Agent: {}\nMosaic-Task: {}\n", first.trim_end(), agent.uid, agent.task_id.replace(['\r', '\n'], " "))
}

/// Message of the merge with a moved base.
#[must_use]
pub fn merge_message(base_branch: &str, candidate: &CommitId) -> String {
    format!("Merge {} into {base_branch}\n", &candidate.as_str()[..12])
}
