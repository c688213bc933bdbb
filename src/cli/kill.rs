//! `mosaic kill`, `mosaic delete` and `mosaic halt`.

use super::output::{age, one_line, out, table};
use super::{Failure, Global};
use crate::api::validate::parse_duration;
use crate::audit::{Audit, AuditOptions};
use crate::causes;
use crate::kill::latch::Latch;
use crate::kill::receipt::{KillRequest, Receipt, Receipts, Verdict};
use crate::kill::{self, Killer, admin};
use crate::server::view::Ending;
use clap::{Args, Subcommand};
use futures::StreamExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the audit log is waited for.
const AUDIT_TIME_MAX: Duration = Duration::from_millis(300);
/// How long the records are waited for; what lives is dead before that.
const RECORD_TIME_MAX: Duration = Duration::from_secs(8);
/// The same where the controller has just kept silent: the receipts are not held back for it.
const SILENT_TIME_MAX: Duration = Duration::from_secs(1);

/// Pause before those are looked at again that were not seen dead.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// How many of them are asked for at once.
const LOOKS_AT_ONCE: usize = 8;

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
    /// You know that the node of their pods is gone for good (powered off, destroyed): count them as dead although nobody can look. Written to the audit log. Wrongly said it lets two live agents work on one branch. Only beside the controller, not over --server
    #[arg(long, conflicts_with = "all")]
    node_is_gone: bool,
    /// Look on for so long until all of them were seen dead, such as 60s: the kubelets of many pods need longer than a kill looks by itself (4.5 s). With --all, as long as something there could not be told apart, everything is killed again, and so is what has begun meanwhile
    #[arg(long, value_name = "DURATION", value_parser = |text: &str| parse_duration(text))]
    wait: Option<Duration>,
}

impl Kill {
    /// What lives is ended first, on this machine without asking the server where that can be; then the records are told.
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let request = self.request(global);
        let here = match &global.server {
            None => {
                let (state, request) = (global.state()?, request.clone());
                tokio::task::spawn_blocking(move || here(&state, &request))
                    .await
                    .map_err(|e| Failure::failed(format!("the kill broke: {e}")))?
            }
            Some(_) => None,
        };
        let is_silent = here.as_ref().is_some_and(|here| !here.by_lane);
        let patience = if is_silent { SILENT_TIME_MAX } else { RECORD_TIME_MAX };
        let here = here.map(|here| here.receipts);
        let told = tokio::time::timeout(patience, self.tell(global, &request)).await;
        let told = told.unwrap_or_else(|_| Err(Failure::failed(format!("the server did not answer within {} s", patience.as_secs()))));
        let is_told = told.is_ok();
        let (mut agents, mut notes, here) = match (here, told) {
            (None, told) => {
                let told = told?;
                (told.agents, told.notes, Receipts::default())
            }
            (Some(here), Ok(told)) => (told.agents, told.notes, here),
            (Some(here), Err(failure)) if here.agents.is_empty() && !self.all => {
                notes_of(&here).iter().for_each(|note| eprintln!("warning: {note}"));
                if is_silent {
                    eprintln!("warning: no agent of that name has a sandbox or a tree here; what else there is only the records tell");
                }
                return Err(failure);
            }
            (Some(here), Err(failure)) => {
                let is_latched = here.agents.iter().all(|receipt| receipt.steps.latched.is_some());
                let keeps = if is_latched { "the latch keeps it, and the next controller tells them" } else { "nothing keeps it for them" };
                (Vec::new(), vec![format!("the records are not told yet: {}; {keeps}", failure.message())], here)
            }
        };
        notes.extend(notes_of(&here));
        merge(&mut agents, here.agents, is_told);
        let mut unknown = here.unknown.len();
        if let Some(wait) = self.wait {
            self.look_on(global, &request, &mut agents, &mut unknown, Instant::now() + wait).await;
        }
        if self.all && agents.is_empty() && unknown == 0 {
            out!("nothing to kill");
        }
        notes.iter().for_each(|note| eprintln!("warning: {note}"));
        if self.hold {
            eprintln!("nothing starts until: mosaic halt release {}", request.halt.unwrap_or_default());
        }
        report(&agents, unknown)
    }

    /// Kills those again that were not seen dead, until they were or the time is over: through the server, or from here where none answers.
    /// What could not be told apart (`unknown`) by the whole request, for it has no name.
    async fn look_on(&self, global: &Global, request: &KillRequest, agents: &mut [Ending], unknown: &mut usize, until: Instant) {
        while (agents.iter().any(|agent| !agent.is_dead()) || *unknown > 0) && Instant::now() < until {
            tokio::time::sleep(LOOK_PAUSE).await;
            if *unknown > 0
                && let Some(receipts) = here_again(global, request.clone()).await
            {
                *unknown = receipts.unknown.len();
            }
            let open: Vec<String> = agents.iter().filter(|agent| !agent.is_dead()).map(|agent| agent.agent_id.clone()).collect();
            let looks = futures::stream::iter(open).map(|id| self.look_again(global, id)).buffer_unordered(LOOKS_AT_ONCE);
            let seen: Vec<Ending> = looks.filter_map(futures::future::ready).collect().await;
            for ending in seen {
                agents.iter_mut().filter(|agent| agent.agent_id == ending.agent_id).for_each(|agent| *agent = ending.clone());
            }
        }
    }

    /// `None`: it was not seen dead.
    async fn look_again(&self, global: &Global, id: String) -> Option<Ending> {
        let asked = match global.client() {
            Ok(client) => client.kill(&id, None).await.ok(),
            Err(_) => None,
        };
        let ending = match asked {
            Some(ending) => Some(ending),
            None if global.server.is_some() => None,
            None => {
                let request =
                    KillRequest { agents: vec![id], all: false, halt: None, hold: false, namespace: None, ..self.request(global) };
                // Where something could not be told apart that may be all there is of it.
                let seen = here_again(global, request).await.filter(|receipts| receipts.unknown.is_empty())?;
                seen.agents.into_iter().next().map(|receipt| Ending::of_receipt(receipt, 0, ""))
            }
        };
        ending.filter(Ending::is_dead)
    }

    fn request(&self, global: &Global) -> KillRequest {
        let namespace = (!self.all || self.this_namespace).then(|| global.namespace.clone());
        KillRequest {
            agents: self.names.clone(),
            all: self.all,
            halt: self.all.then(kill::new_halt_name),
            namespace,
            reason: self.reason.clone(),
            hold: self.hold,
            node_is_gone: self.node_is_gone,
            who: "command line".to_owned(),
        }
    }

    async fn tell(&self, global: &Global, request: &KillRequest) -> Result<Told, Failure> {
        let client = global.client()?;
        if self.all {
            let namespace = request.namespace.as_deref();
            let all = client.kill_all(namespace, self.reason.as_deref(), self.hold, request.halt.as_deref()).await?;
            return Ok(Told { agents: all.agents, notes: all.warnings.into_iter().chain(all.unknown).collect() });
        }
        let mut agents = Vec::new();
        for name in &self.names {
            agents.push(client.kill(name, Some(&global.namespace)).await?);
        }
        Ok(Told { agents, notes: Vec::new() })
    }
}

/// Kills again on this machine, where there is something to kill.
async fn here_again(global: &Global, request: KillRequest) -> Option<Receipts> {
    let state = global.state().ok()?;
    let seen = tokio::task::spawn_blocking(move || here(&state, &request)).await.ok()??;
    Some(seen.receipts)
}

/// What the server said.
struct Told {
    agents: Vec<Ending>,
    notes: Vec<String>,
}

/// What was done on this machine.
struct Here {
    receipts: Receipts,
    /// By the lane of the controller; else by ourselves, because none answered.
    by_lane: bool,
}

/// Kills on this machine: through the lane of the controller, else by ourselves. `None`: no agent ever ran from this state folder.
fn here(state: &Path, request: &KillRequest) -> Option<Here> {
    if !state.join("runs").is_dir() {
        return None;
    }
    let error = match admin::ask(state, request) {
        Ok(receipts) => return Some(Here { receipts, by_lane: true }),
        Err(error) => error,
    };
    let audit = open_audit(state);
    let killer = Killer {
        state: state.to_owned(),
        latch: Latch::open(state).map(Arc::new).map_err(|e| e.to_string()),
        controller: None,
        audit: audit.as_ref().ok().cloned(),
    };
    let mut receipts = killer.kill(request);
    drop(killer);
    receipts.warnings.insert(0, format!("no controller answered on {} ({error}): killed from here", state.display()));
    receipts.warnings.extend(audit.and_then(close_audit).err().map(|why| format!("not in the audit log: {why}")));
    Some(Here { receipts, by_lane: false })
}

/// Opens the audit log, unless its disk keeps us waiting: a kill does not wait for it.
fn open_audit(state: &Path) -> Result<Arc<Audit>, String> {
    let (folder, (told, opened)) = (state.join("audit"), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let audit = Audit::open(&folder, "cli", AuditOptions::default());
        // Nobody listens any more once it took too long.
        let _ = told.send(audit.map(Arc::new).map_err(|e| causes::one_line(&e)));
    });
    opened.recv_timeout(AUDIT_TIME_MAX).unwrap_or_else(|_| Err(format!("it did not open within {} ms", AUDIT_TIME_MAX.as_millis())))
}

/// Lets the audit log write what waits, as long as a kill may wait for it.
fn close_audit(audit: Arc<Audit>) -> Result<(), String> {
    let (told, closed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        audit.close();
        let _ = told.send(());
    });
    closed.recv_timeout(AUDIT_TIME_MAX).map_err(|_| format!("it was not written within {} ms", AUDIT_TIME_MAX.as_millis()))
}

fn notes_of(receipts: &Receipts) -> Vec<String> {
    let unknown = receipts.unknown.iter().map(|what| format!("UNKNOWN: {what}"));
    receipts.warnings.iter().cloned().chain(unknown).collect()
}

/// What was seen on this machine stands beside what the server says; what ran of those that the server does not name is shown all the same.
/// The server looked after us: whom it saw dead is dead, although we had not seen it. Of those of which nothing ran a server that knows the
/// records has said all there is: they had ended before.
fn merge(agents: &mut Vec<Ending>, receipts: Vec<Receipt>, is_told: bool) {
    for receipt in receipts {
        match agents.iter_mut().find(|agent| agent.agent_id == receipt.agent_id.as_str()) {
            Some(agent) if receipt.verdict == Verdict::DeadVerified => agent.receipt = Some(receipt),
            Some(agent) if agent.receipt.as_ref().is_some_and(|later| later.verdict == Verdict::DeadVerified) => {}
            Some(agent) => {
                agent.message = format!("{}; {}", receipt.message, agent.message);
                agent.receipt = Some(receipt);
            }
            None if is_told && receipt.runs == 0 => {}
            None => agents.push(Ending::of_receipt(receipt, 0, "")),
        }
    }
}

fn report(agents: &[Ending], unknown: usize) -> Result<(), Failure> {
    for ending in agents {
        let gone = if ending.verified { format!("gone {} ms", ending.millis) } else { "record and tree not seen gone yet".to_owned() };
        let proof = match &ending.receipt {
            Some(receipt) => {
                let dead = receipt.steps.dead.map(|millis| format!(", dead {millis} ms")).unwrap_or_default();
                format!("{}{dead}, {gone}", receipt.verdict.as_str())
            }
            None if ending.verified => format!("verified, {} ms", ending.millis),
            None => format!("NOT VERIFIED, {} ms", ending.millis),
        };
        out!("agent/{} {} ({proof}): {}", ending.name, ending.state, one_line(&ending.message));
    }
    let open = agents.iter().filter(|ending| !ending.is_dead()).count() + unknown;
    if open == 0 { Ok(()) } else { Err(Failure::failed(format!("{open} of {} agents were not seen dead", agents.len() + unknown))) }
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
                let (halts, unreadable) = client.halts().await?;
                unreadable.iter().for_each(|why| eprintln!("warning: everything counts as halted: {why}"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::names::Uid;
    use crate::kill::receipt::Steps;

    fn receipt(verdict: Verdict, message: &str) -> Receipt {
        let agent_id = Uid::new("one-agent-of-many").unwrap();
        Receipt { agent_id, agent: "default/one".to_owned(), verdict, runs: 1, steps: Steps::default(), message: message.to_owned() }
    }

    #[test]
    fn whom_either_look_saw_dead_is_dead_and_why_neither_did_is_told() {
        let merged = |here: Verdict, server: Verdict| {
            let mut agents = vec![Ending::of_receipt(receipt(server, "seen by the server"), 1, "")];
            merge(&mut agents, vec![receipt(here, "seen from here")], true);
            (agents[0].is_dead(), agents[0].message.clone())
        };
        let (dead, open) = (Verdict::DeadVerified, Verdict::RevokedUnverified);
        assert!(merged(dead, open).0 && merged(open, dead).0 && merged(dead, dead).0);
        let (is_dead, message) = merged(open, open);
        assert!(!is_dead && message.contains("seen from here") && message.contains("seen by the server"), "{message}");
    }
}
