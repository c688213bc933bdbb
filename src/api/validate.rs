//! Raw record -> `ValidAgent`, once. Later steps never see a raw spec.
//!
//! Flow: the spec is decoded leniently, every field is parsed into its type with the default of the documentation, and every mistake
//! is collected (a person sees all of them at once). The status is decoded on its own: one that does not decode counts as empty and
//! blinds nobody. What the spec may say but this version cannot do goes to `not_built`: admission refuses it with that text.

pub mod parse;

use crate::api::address::Address;
use crate::api::agent::{AgentSpec, AgentStatus, AgentType, Driver, GateProfile, Runtime, SandboxSpec};
use crate::api::names::{AgentName, Branch, FINALIZER, GateName, Namespace, Uid};
use crate::store::Record;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

pub use parse::{parse_bytes, parse_cpu_millis, parse_duration};

/// `spec.priority` when it is absent.
pub const PRIORITY_DEFAULT: u8 = 5;
/// `spec.timeout` when it is absent.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);
/// `spec.idleTimeout` when it is absent.
pub const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);
/// `spec.maxRetries` when it is absent.
pub const RETRIES_DEFAULT: u32 = 3;
/// `spec.backoff.initial` when it is absent.
pub const BACKOFF_INITIAL_DEFAULT: Duration = Duration::from_secs(10);
/// `spec.backoff.max` when it is absent.
pub const BACKOFF_MAX_DEFAULT: Duration = Duration::from_secs(300);
/// `spec.sandbox` when it is absent: two cores, 2 GiB, 512 processes, 10 GiB.
pub const LIMITS_DEFAULT: Limits = Limits { cpu_millis: 2000, memory_bytes: 2 << 30, pids_max: 512, disk_bytes: 10 << 30 };
/// CPU that an agent can be given: less cannot start a shell in reasonable time, more has no machine and is a mistake in the unit.
pub const CPU_RANGE: Range<u32> = Range { least: (10, "10m"), most: (10_000_000, "10000") };
/// Memory that an agent can be given, in bytes: less cannot hold a shell and git, more has no machine.
pub const MEMORY_RANGE: Range<u64> = Range { least: (16 << 20, "16Mi"), most: (64 << 40, "64Ti") };
/// Disk that an agent can be given, in bytes.
pub const DISK_RANGE: Range<u64> = Range { least: (1 << 20, "1Mi"), most: (1 << 50, "1024Ti") };

/// What a quantity may be, with the ends as people write them.
pub struct Range<T> {
    /// Least.
    pub least: (T, &'static str),
    /// Most.
    pub most: (T, &'static str),
}

/// What runs, checked.
#[derive(Debug, Clone, PartialEq)]
pub enum ValidRuntime {
    /// Any command that keeps the agent contract.
    Command {
        /// Program and arguments.
        args: Vec<String>,
        /// Further environment.
        env: BTreeMap<String, String>,
    },
    /// A runtime that this version knows by name but cannot run yet; admission refuses it with this text.
    NotBuilt(String),
}

/// Limits of one sandbox. Units are in the names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// CPU in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Processes and threads at once.
    pub pids_max: u32,
    /// Tree and HOME together, in bytes.
    pub disk_bytes: u64,
}

/// An agent whose every field was checked and parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidAgent {
    /// Namespace.
    pub namespace: Namespace,
    /// Name.
    pub name: AgentName,
    /// Identity.
    pub uid: Uid,
    /// Generation of the spec.
    pub generation: i64,
    /// When the record was created.
    pub created_at: Timestamp,
    /// Whether our finalizer is on the record.
    pub has_finalizer: bool,
    /// The caller's id of the task.
    pub task_id: String,
    /// What kind of agent.
    pub agent_type: AgentType,
    /// URL or path of the repository.
    pub repository: String,
    /// Base branch; `None`: the repository's default branch.
    pub branch: Option<Branch>,
    /// Branch to push to.
    pub target_branch: Branch,
    /// Pieces of work.
    pub work_items: Vec<String>,
    /// What to do.
    pub instructions: String,
    /// Skills.
    pub skills: Vec<String>,
    /// What runs.
    pub runtime: ValidRuntime,
    /// Wished driver.
    pub driver: Driver,
    /// Wished image.
    pub image: Option<String>,
    /// Wished runtime of the container engine.
    pub runtime_class: Option<String>,
    /// Limits.
    pub limits: Limits,
    /// Things the spec asks for that are not built yet (egress, budget, runtimeClass, …), each as a sentence.
    pub not_built: Vec<String>,
    /// Gate profile.
    pub profile: GateProfile,
    /// Further required gates.
    pub required_gates: Vec<GateName>,
    /// 1 to 10, 10 is most urgent.
    pub priority: u8,
    /// From the first start to the push.
    pub timeout: Duration,
    /// Without a sign of life.
    pub idle_timeout: Duration,
    /// Agent failures and rejections together that are answered by another round.
    pub retries_max: u32,
    /// First waiting time after a failure.
    pub backoff_initial: Duration,
    /// Longest waiting time after a failure.
    pub backoff_max: Duration,
    /// Agents of this namespace that must complete first.
    pub depends_on: Vec<AgentName>,
    /// How long the finished record is kept.
    pub ttl_after_finished: Option<Duration>,
    /// Not started, or stopped with its tree kept.
    pub suspend: bool,
    /// What was seen so far.
    pub status: AgentStatus,
}

impl ValidAgent {
    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Name of the working tree, `agent-{agentId}-{taskId}`.
    #[must_use]
    pub fn worktree_name(&self) -> String {
        format!("agent-{}-{}", self.uid, crate::api::names::slug(&self.task_id, 40))
    }
}

/// Checks a record and parses every field of it.
/// # Errors
/// Every mistake as one sentence that names the field.
pub fn validate(record: &Record) -> Result<ValidAgent, Vec<String>> {
    let spec: AgentSpec = serde_json::from_value(record.spec.clone()).map_err(|e| vec![format!("spec: {e}")])?;
    let mut mistakes = Mistakes::default();
    let meta = Meta::read(record, &mut mistakes);
    let (branch, target_branch) = branches(&spec, &meta, &mut mistakes);
    let runtime = runtime(&spec.runtime, &mut mistakes);
    let limits = limits(spec.sandbox.as_ref(), &mut mistakes);
    let (backoff_initial, backoff_max) = backoff(&spec, &mut mistakes);
    let required_gates = required_gates(&spec, &mut mistakes);
    let depends_on = depends_on(&spec, &meta, &mut mistakes);
    let priority = number(spec.priority, PRIORITY_DEFAULT, 1..=10, "spec.priority", &mut mistakes);
    let retries_max = number(spec.max_retries, RETRIES_DEFAULT, 0..=20, "spec.maxRetries", &mut mistakes);
    let timeout = duration(spec.timeout.as_deref(), TIMEOUT_DEFAULT, "spec.timeout", &mut mistakes);
    let idle_timeout = duration(spec.idle_timeout.as_deref(), IDLE_TIMEOUT_DEFAULT, "spec.idleTimeout", &mut mistakes);
    let ttl_after_finished = ttl(&spec, &mut mistakes);
    check_repository(&spec.context.repository, &mut mistakes);
    let checked = (meta.namespace, meta.name, meta.uid, target_branch, runtime);
    let (Some(namespace), Some(name), Some(uid), Some(target_branch), Some(runtime)) = checked else { return Err(mistakes.0) };
    if !mistakes.0.is_empty() {
        return Err(mistakes.0);
    }
    Ok(ValidAgent {
        task_id: spec.task_id.clone().unwrap_or_else(|| name.to_string()),
        agent_type: spec.agent_type.unwrap_or_default(),
        driver: spec.sandbox.as_ref().and_then(|s| s.driver).unwrap_or_default(),
        image: spec.sandbox.as_ref().and_then(|s| s.image.clone()),
        runtime_class: spec.sandbox.as_ref().and_then(|s| s.runtime_class.clone()),
        not_built: not_built(&spec),
        profile: spec.gates.as_ref().and_then(|g| g.profile).unwrap_or_default(),
        suspend: spec.suspend.unwrap_or_default(),
        status: serde_json::from_value(record.status.clone()).unwrap_or_default(),
        repository: spec.context.repository,
        work_items: spec.context.work_items.unwrap_or_default(),
        instructions: spec.context.instructions.unwrap_or_default(),
        skills: spec.context.skills.unwrap_or_default(),
        generation: record.metadata.generation.unwrap_or(1),
        created_at: record.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        has_finalizer: record.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER),
        namespace,
        name,
        uid,
        branch,
        target_branch,
        runtime,
        limits,
        required_gates,
        priority,
        timeout,
        idle_timeout,
        retries_max,
        backoff_initial,
        backoff_max,
        depends_on,
        ttl_after_finished,
    })
}

/// Sentences about one record.
#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    /// Takes the value, or keeps the sentence behind the field's name.
    fn take<T>(&mut self, field: &str, result: Result<T, impl std::fmt::Display>) -> Option<T> {
        result.map_err(|sentence| self.0.push(format!("{field}: {sentence}"))).ok()
    }
}

/// Typed metadata.
struct Meta {
    namespace: Option<Namespace>,
    name: Option<AgentName>,
    uid: Option<Uid>,
}

impl Meta {
    fn read(record: &Record, mistakes: &mut Mistakes) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Self {
            namespace: mistakes.take("metadata.namespace", Namespace::new(text(&record.metadata.namespace))),
            name: mistakes.take("metadata.name", AgentName::new(text(&record.metadata.name))),
            uid: mistakes.take("metadata.uid", Uid::new(text(&record.metadata.uid))),
        }
    }
}

/// Base and target branch; a target of `None` has its sentence among the mistakes.
fn branches(spec: &AgentSpec, meta: &Meta, mistakes: &mut Mistakes) -> (Option<Branch>, Option<Branch>) {
    let base = spec.context.branch.as_deref().and_then(|b| mistakes.take("spec.context.branch", Branch::new(b)));
    let target = match (&spec.context.target_branch, &meta.name, &meta.uid) {
        (Some(given), _, _) => mistakes.take("spec.context.targetBranch", Branch::new(given.as_str())),
        (None, Some(name), Some(uid)) => Some(default_target_branch(name, uid)),
        (None, _, _) => None,
    };
    if base.is_some() && base == target {
        mistakes.0.push("spec.context.targetBranch: must differ from spec.context.branch".to_owned());
    }
    (base, target)
}

/// Branch that an agent pushes to when the spec names none: `mosaic/<name>-<first 8 of the uid>`.
#[must_use]
pub fn default_target_branch(name: &AgentName, uid: &Uid) -> Branch {
    Branch::new(format!("mosaic/{name}-{}", uid.short())).expect("a label and a uid make a branch")
}

fn duration(text: Option<&str>, default: Duration, field: &str, mistakes: &mut Mistakes) -> Duration {
    let Some(parsed) = text.and_then(|text| mistakes.take(field, parse_duration(text))) else { return default };
    if parsed.is_zero() {
        mistakes.0.push(format!("{field}: must be longer than 0"));
    }
    parsed
}

fn ttl(spec: &AgentSpec, mistakes: &mut Mistakes) -> Option<Duration> {
    // Zero is meant here: the record goes as soon as it is finished.
    spec.ttl_after_finished.as_deref().and_then(|text| mistakes.take("spec.ttlAfterFinished", parse_duration(text)))
}

fn number<T: TryFrom<i32> + Copy>(
    value: Option<i32>,
    default: T,
    range: std::ops::RangeInclusive<i32>,
    field: &str,
    mistakes: &mut Mistakes,
) -> T {
    let Some(value) = value else { return default };
    if !range.contains(&value) {
        mistakes.0.push(format!("{field}: {value} is not between {} and {}", range.start(), range.end()));
    }
    T::try_from(value).unwrap_or(default)
}

fn limits(spec: Option<&SandboxSpec>, mistakes: &mut Mistakes) -> Limits {
    let Some(spec) = spec else { return LIMITS_DEFAULT };
    let mut limits = LIMITS_DEFAULT;
    if let Some(cpu) = spec.cpu.as_deref().and_then(|text| mistakes.take("spec.sandbox.cpu", parse_cpu_millis(text))) {
        limits.cpu_millis = within(cpu, &CPU_RANGE, "spec.sandbox.cpu", mistakes);
    }
    if let Some(memory) = spec.memory.as_deref().and_then(|text| mistakes.take("spec.sandbox.memory", parse_bytes(text))) {
        limits.memory_bytes = within(memory, &MEMORY_RANGE, "spec.sandbox.memory", mistakes);
    }
    if let Some(disk) = spec.disk.as_deref().and_then(|text| mistakes.take("spec.sandbox.disk", parse_bytes(text))) {
        limits.disk_bytes = within(disk, &DISK_RANGE, "spec.sandbox.disk", mistakes);
    }
    limits.pids_max = number(spec.pids, limits.pids_max, 1..=1_000_000, "spec.sandbox.pids", mistakes);
    limits
}

fn within<T: PartialOrd>(value: T, range: &Range<T>, field: &str, mistakes: &mut Mistakes) -> T {
    if value < range.least.0 {
        mistakes.0.push(format!("{field}: must be at least {}", range.least.1));
    } else if value > range.most.0 {
        mistakes.0.push(format!("{field}: must be at most {}", range.most.1));
    }
    value
}

fn runtime(spec: &Runtime, mistakes: &mut Mistakes) -> Option<ValidRuntime> {
    match (&spec.claude, &spec.preset, &spec.command) {
        (None, None, Some(command)) => {
            if command.args.first().is_none_or(String::is_empty) {
                mistakes.0.push("spec.runtime.command.args: must name a program".to_owned());
            }
            let env = command.env.iter().flatten().map(|(name, value)| (name.clone(), value.0.clone())).collect();
            check_process_text(&command.args, &env, mistakes);
            Some(ValidRuntime::Command { args: command.args.clone(), env })
        }
        (Some(_), None, None) => Some(ValidRuntime::NotBuilt("the claude runtime is not built yet: use spec.runtime.command".to_owned())),
        (None, Some(preset), None) => {
            Some(ValidRuntime::NotBuilt(format!("the preset {} is not built yet: use spec.runtime.command", written(preset))))
        }
        _ => {
            mistakes.0.push("spec.runtime: needs exactly one of claude, preset and command".to_owned());
            None
        }
    }
}

/// What the kernel would refuse or read as something else: NUL in any text, `=` or nothing in a variable's name.
fn check_process_text(args: &[String], env: &BTreeMap<String, String>, mistakes: &mut Mistakes) {
    if args.iter().any(|arg| arg.contains('\0')) {
        mistakes.0.push("spec.runtime.command.args: must not contain NUL".to_owned());
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            mistakes.0.push(format!("spec.runtime.command.env: {name:?} cannot be an environment variable (empty, '=' or NUL)"));
        }
    }
}

/// A value of an enum as records write it.
fn written(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        other => unreachable!("a plain enum is written as one word, not {other:?}"),
    }
}

fn not_built(spec: &AgentSpec) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut say = |asked: bool, what: &str, instead: &str| {
        if asked {
            sentences.push(format!("{what} is not built yet: {instead}"));
        }
    };
    let sandbox = spec.sandbox.clone().unwrap_or_default();
    let is_process = sandbox.driver == Some(Driver::Process);
    say(is_process && sandbox.image.is_some(), "spec.sandbox.image with driver process", "it uses the host's tools; leave one of them out");
    say(sandbox.egress.is_some_and(|e| !e.is_empty()), "spec.sandbox.egress", "agents have no network; leave it out");
    let runtime = is_process && sandbox.runtime_class.is_some();
    say(runtime, "spec.sandbox.runtimeClass with driver process", "only a container engine has runtimes; leave one of them out");
    say(spec.budget.is_some(), "spec.budget", "it needs the model gateway; leave it out");
    sentences
}

fn required_gates(spec: &AgentSpec, mistakes: &mut Mistakes) -> Vec<GateName> {
    let names = spec.gates.iter().filter_map(|g| g.required.as_ref()).flatten();
    names.filter_map(|name| mistakes.take("spec.gates.required", GateName::new(name.as_str()))).collect()
}

fn depends_on(spec: &AgentSpec, meta: &Meta, mistakes: &mut Mistakes) -> Vec<AgentName> {
    let names = spec.depends_on.iter().flatten();
    let names: Vec<AgentName> = names.filter_map(|name| mistakes.take("spec.dependsOn", AgentName::new(name.as_str()))).collect();
    if let Some(own) = meta.name.as_ref().filter(|own| names.contains(own)) {
        mistakes.0.push(format!("spec.dependsOn: {own} cannot depend on itself"));
    }
    names
}

/// First and longest waiting time; a first one beyond the default of the longest raises that.
fn backoff(spec: &AgentSpec, mistakes: &mut Mistakes) -> (Duration, Duration) {
    let given = spec.backoff.clone().unwrap_or_default();
    let initial = duration(given.initial.as_deref(), BACKOFF_INITIAL_DEFAULT, "spec.backoff.initial", mistakes);
    let max = duration(given.max.as_deref(), BACKOFF_MAX_DEFAULT.max(initial), "spec.backoff.max", mistakes);
    if max < initial {
        mistakes.0.push("spec.backoff.max: must not be shorter than spec.backoff.initial".to_owned());
    }
    (initial, max)
}

fn check_repository(repository: &str, mistakes: &mut Mistakes) {
    if let Err(why) = Address::read(repository) {
        mistakes.0.push(format!("spec.context.repository: {why}"));
    }
}
