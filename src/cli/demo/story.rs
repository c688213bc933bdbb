//! What the demo tells: each transition with its time as a watch shows it, what the gate said, and the proof.

use super::Folders;
use crate::api::condition;
use crate::api::names::Branch;
use crate::cli::Failure;
use crate::cli::describe::verdicts;
use crate::cli::output::{Paint, indented, one_line, out};
use crate::client::Client;
use crate::server::view::{AgentView, WatchLine};
use futures::StreamExt;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Instant;

/// Lines of a gate's evidence that are shown.
const EVIDENCE_LINES_MAX: usize = 18;

/// A teller of one agent's life.
pub(super) struct Story {
    paint: Paint,
    started: Instant,
    last: String,
    told_verdicts: BTreeSet<String>,
    told_feedback: usize,
}

impl Story {
    pub(super) fn new(paint: Paint, started: Instant) -> Self {
        Self { paint, started, last: String::new(), told_verdicts: BTreeSet::new(), told_feedback: 0 }
    }

    /// Tells every transition until the agent has finished and everything of it is gone; gives its last state. Ending the controller
    /// before that would leave a mounted tree behind, as nobody would be there to remove it.
    pub(super) async fn follow(mut self, client: &Client, agent: &AgentView) -> Result<AgentView, Failure> {
        let mut lines = client.watch(Some(&agent.namespace), Some(&agent.name)).await?;
        while let Some(line) = lines.next().await {
            match line? {
                WatchLine::Applied { agent } => {
                    self.tell(&agent);
                    if agent.is_finished() && agent.has_condition(condition::CLEANED_UP) {
                        out!("{} {:<10} sandboxes and tree were seen gone", self.stamp(), "");
                        return self.end(*agent);
                    }
                }
                WatchLine::Deleted { .. } => return Err(Failure::failed("the agent was deleted while the demo ran")),
                WatchLine::Bookmark { .. } => {}
                WatchLine::Ended { why } => return Err(Failure::failed(format!("the watch has ended: {why}"))),
            }
        }
        Err(Failure::failed("the server went away while the demo ran"))
    }

    fn stamp(&self) -> String {
        stamp(self.paint, self.started)
    }

    fn tell(&mut self, agent: &AgentView) {
        let status = &agent.object["status"];
        self.tell_verdicts(status);
        self.tell_feedback(status);
        let reason = agent.reason.as_deref().unwrap_or_default();
        let line = format!("{:<10} {reason:<20}", agent.phase);
        let key = format!("{line}{}", agent.attempt);
        // Before the first pass there is nothing to tell.
        if key != self.last && agent.reason.is_some() {
            let round = if agent.attempt > 0 { format!("round {}  ", agent.attempt) } else { String::new() };
            let message = agent.message.as_deref().map(one_line).unwrap_or_default();
            out!("{} {line} {}", self.stamp(), self.paint.dim(&format!("{round}{message}")));
            self.last = key;
        }
    }

    fn tell_verdicts(&mut self, status: &Value) {
        for gate in status["gates"].as_array().into_iter().flatten() {
            let text = |name: &str| gate[name].as_str().unwrap_or_default();
            let (name, verdict, sha) = (text("name"), text("verdict"), text("sha"));
            if !self.told_verdicts.insert(format!("{name} {verdict} {sha} {}", gate["tries"])) {
                continue;
            }
            let millis = gate["durationMillis"].as_u64().unwrap_or_default();
            let line = format!("gate {name}: {verdict} on commit {} ({millis} ms)", sha.get(..10).unwrap_or(sha));
            let line = if verdict == "pass" { self.paint.good(&line) } else { self.paint.bad(&line) };
            out!("{} {line}", self.stamp());
            if verdict != "pass" {
                out!("{}", self.paint.dim(&indented(&excerpt(text("evidence")), 15)));
            }
        }
    }

    fn tell_feedback(&mut self, status: &Value) {
        let rounds = status["feedback"].as_array().map(Vec::as_slice).unwrap_or_default();
        for feedback in rounds.iter().skip(self.told_feedback) {
            let summary = one_line(feedback["summary"].as_str().unwrap_or_default());
            out!("{} feedback for the next round: {summary}", self.stamp());
        }
        self.told_feedback = rounds.len();
    }

    fn end(self, agent: AgentView) -> Result<AgentView, Failure> {
        if agent.state == "completed" {
            return Ok(agent);
        }
        let why = agent.message.clone().or(agent.reason.clone()).unwrap_or_default();
        let feedback = agent.object["status"]["feedback"].as_array().and_then(|all| all.last().cloned()).unwrap_or_default();
        let details = feedback["details"].as_str().map(|d| format!("\n{}", indented(&excerpt(d), 2))).unwrap_or_default();
        Err(Failure::failed(format!("the agent is {}: {}{details}", agent.state, one_line(&why))))
    }
}

fn stamp(paint: Paint, started: Instant) -> String {
    paint.dim(&format!("{:>8} ms  ", started.elapsed().as_millis()))
}

/// The last lines that say something. Each line of a failed assertion is worth more than the frames beneath it.
fn excerpt(evidence: &str) -> String {
    let lines: Vec<&str> = evidence.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(EVIDENCE_LINES_MAX)..].join("\n")
}

/// Compares what the record says with what `git` says, and shows both.
/// # Errors
/// They differ, or the story was not the one that the demo is about.
pub(super) fn prove(agent: &AgentView, folders: &Folders, paint: Paint, started: Instant) -> Result<(), Failure> {
    let status = &agent.object["status"];
    let text = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_default();
    let (ref_name, sha) = (text(&status["push"]["ref"]), text(&status["push"]["sha"]));
    let name = ref_name.strip_prefix("refs/heads/").unwrap_or(&ref_name);
    let branch = Branch::new(name).map_err(|e| Failure::failed(format!("the record names no pushed branch: {e}")))?;
    let [listed, log] = crate::workspace::report(&folders.work, &folders.remote, &branch)
        .map_err(|e| Failure::failed(format!("failed to ask git for the remote: {}", crate::causes::one_line(&e))))?;
    out!("\n{}", paint.strong("Verdicts"));
    out!("{}", verdicts(status).unwrap_or_else(|| "none".to_owned()));
    out!("\n{}", paint.strong("The remote, in git's own words"));
    out!("$ git ls-remote {} {ref_name}\n{}", folders.remote.display(), one_line_each(&listed));
    out!("$ git --git-dir {} log --oneline {name}\n{}", folders.remote.display(), one_line_each(&log));
    let passed: BTreeSet<&str> = status["gates"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|gate| gate["sha"] == *sha && gate["verdict"] == "pass")
        .filter_map(|gate| gate["name"].as_str())
        .collect();
    let checks = [
        ("the remote ref is the commit of the record", !sha.is_empty() && listed == format!("{sha}\t{ref_name}")),
        ("tests and lint passed on exactly that commit", passed.contains("tests") && passed.contains("lint")),
        ("a gate refused the first round", agent.object["status"]["counts"]["rejections"].as_u64().unwrap_or_default() > 0),
    ];
    out!();
    for (what, holds) in checks {
        out!("{}  {what}", if holds { paint.good("yes") } else { paint.bad("NO ") });
    }
    match checks.iter().find(|(_, holds)| !holds) {
        Some((what, _)) => Err(Failure::failed(format!("this does not hold: {what}"))),
        None => {
            out!("{}{}", stamp(paint, started), paint.strong(&format!("pushed and verified: {ref_name} = {sha}")));
            Ok(())
        }
    }
}

fn one_line_each(text: &str) -> String {
    indented(text, 0).replace('\t', "  ")
}
