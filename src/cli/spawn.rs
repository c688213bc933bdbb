//! `mosaic spawn`.

use super::output::out;
use super::wait::{self, Goal};
use super::{Failure, Global};
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Start an agent on a repository
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  mosaic spawn --repo . --profile minimal --wait -- sh -c 'echo hello > hello.txt'")]
pub(super) struct Spawn {
    /// URL or path of the git repository
    #[arg(long, value_name = "URL|PATH")]
    repo: String,
    /// Branch to start from [default: the repository's default branch]
    #[arg(long)]
    branch: Option<String>,
    /// Your id of the task; the same id with the same request gives the same agent [default: a new one]
    #[arg(long, value_name = "ID")]
    task_id: Option<String>,
    /// What to do, for the agent
    #[arg(long, value_name = "TEXT")]
    instructions: Option<String>,
    /// A piece of work, in your words; repeatable
    #[arg(long = "work-item", value_name = "TEXT")]
    work_items: Vec<String>,
    /// worker, reviewer or tester
    #[arg(long = "type", value_name = "TYPE")]
    agent_type: Option<String>,
    /// Gates that must pass: minimal (tests), standard (tests, lint) or strict
    #[arg(long)]
    profile: Option<String>,
    /// Branch to push to [default: mosaic/<name>-<id>]
    #[arg(long, value_name = "BRANCH")]
    target_branch: Option<String>,
    /// 1 to 10; 10 is the most urgent [default: 5]
    #[arg(long)]
    priority: Option<i32>,
    /// Longest time until the push, such as 30m [default: 1h]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// Longest time without a sign of life [default: 10m]
    #[arg(long, value_name = "DURATION")]
    idle_timeout: Option<String>,
    /// How many failures and rejections are answered by another round [default: 3]
    #[arg(long, value_name = "NUMBER")]
    max_retries: Option<i32>,
    /// Name of an agent that must complete first; repeatable
    #[arg(long = "depends-on", value_name = "NAME")]
    depends_on: Vec<String>,
    /// Id of the finished agent of this task to run again
    #[arg(long, value_name = "ID", requires = "task_id")]
    rerun_of: Option<String>,
    /// Where it runs: auto, process, docker or pod [default: auto]
    #[arg(long)]
    driver: Option<String>,
    /// Image of its container or pod [default: the server's]
    #[arg(long)]
    image: Option<String>,
    /// Processors, such as 2 or 500m
    #[arg(long, value_name = "QUANTITY")]
    cpu: Option<String>,
    /// Memory, such as 2Gi
    #[arg(long, value_name = "QUANTITY")]
    memory: Option<String>,
    /// Environment variable for the command; repeatable
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Wait until it has finished; exit code 0 only when it completed
    #[arg(long)]
    wait: bool,
    /// The agent's program and arguments; no shell is added
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Spawn {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.client()?;
        let request = self.request(&global.namespace)?;
        let written = client.spawn(&request).await?;
        out!("agent/{} {}", written.agent.name, written.result);
        if !self.wait {
            eprintln!("follow it with: mosaic logs -f {}", written.agent.name);
            return Ok(());
        }
        let goal = Goal::Phase("Completed".to_owned());
        wait::until(&client, &written.agent.agent_id, &global.namespace, &goal, None, true).await
    }

    fn request(&self, namespace: &str) -> Result<Value, Failure> {
        let mut env = Map::new();
        for pair in &self.env {
            let (name, value) = pair.split_once('=').ok_or_else(|| Failure::usage(format!("--env {pair:?}: write NAME=VALUE")))?;
            env.insert(name.to_owned(), json!(value));
        }
        let sandbox = [("driver", &self.driver), ("image", &self.image), ("cpu", &self.cpu), ("memory", &self.memory)];
        let sandbox: Map<String, Value> =
            sandbox.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?)))).collect();
        let list = |items: &[String]| if items.is_empty() { Value::Null } else { json!(items) };
        Ok(json!({
            "namespace": namespace,
            "taskId": self.task_id.clone().unwrap_or_else(|| format!("task-{}", uuid::Uuid::now_v7())),
            "agentType": self.agent_type,
            "context": {
                "repository": repository(&self.repo),
                "branch": self.branch,
                "targetBranch": self.target_branch,
                "instructions": self.instructions,
                "workItems": list(&self.work_items),
            },
            "runtime": { "command": { "args": self.command, "env": if env.is_empty() { Value::Null } else { Value::Object(env) } } },
            "sandbox": if sandbox.is_empty() { Value::Null } else { Value::Object(sandbox) },
            "gates": self.profile.as_ref().map(|p| json!({ "profile": p })),
            "priority": self.priority,
            "timeout": self.timeout,
            "idleTimeout": self.idle_timeout,
            "maxRetries": self.max_retries,
            "dependsOn": list(&self.depends_on),
            "rerunOf": self.rerun_of,
        }))
    }
}

/// A path that exists here becomes absolute: the server has another working folder. Everything else stays as it is.
fn repository(given: &str) -> String {
    let path = Path::new(given);
    if given.contains("://") || !path.exists() {
        return given.to_owned();
    }
    std::fs::canonicalize(path).ok().and_then(|p| p.into_os_string().into_string().ok()).unwrap_or_else(|| given.to_owned())
}
